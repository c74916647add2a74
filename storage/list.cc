// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit list: the instances that run here, or on all hosts that share a registry.
#include <cstdio>

#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/instance_argument.h"
#include "storage/instances.h"
#include "storage/shared_registry.h"

namespace vbdkit::storage {

namespace {

Result<std::vector<HostInstance>> on_this_host(const po::variables_map& vm, const Logger& log) {
  const Registry registry = registry_of(vm);
  std::vector<HostInstance> instances;
  if (vm.count("INSTANCE") != 0) {
    VBDKIT_ASSIGN(InstanceRecord one, find_instance(registry, text_of(vm, "INSTANCE"), log));
    instances.push_back({{}, std::move(one)});
    return instances;
  }
  VBDKIT_ASSIGN(auto records, registry.list());
  for (InstanceRecord& record : records) instances.push_back({{}, std::move(record)});
  return instances;
}

Result<std::vector<HostInstance>> on_all_hosts(const po::variables_map& vm) {
  VBDKIT_ASSIGN(auto shared, SharedRegistry::open(text_of(vm, "runtime-dir")));
  if (!shared)
    return Error(ErrorKind::kNotFound, "there is no " + registry_config_path() +
                                           ": this host shares its registry with none");
  if (vm.count("INSTANCE") == 0) return shared->list();
  VBDKIT_ASSIGN(HostInstance one, shared->find(text_of(vm, "INSTANCE")));
  return std::vector<HostInstance>{std::move(one)};
}

}  // namespace

int list(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("list [OPTION...] [INSTANCE]", {}, {"INSTANCE"});
  syntax.options.add_options()                                                          //
      ("all-hosts,a", "also those of other hosts that share a registry with this one")  //
      ("json", "for programs: an array of registry records");
  add_runtime_dir_option(syntax.options);
  return run_command(syntax, args, log, [&](const po::variables_map& vm) -> Result<int> {
    const bool everywhere = vm.count("all-hosts") != 0;
    VBDKIT_ASSIGN(const std::vector<HostInstance> instances,
                  everywhere ? on_all_hosts(vm) : on_this_host(vm, log));
    std::vector<InstanceRecord> records;
    std::vector<std::string> hosts;
    Json json = Json::array();
    for (const HostInstance& instance : instances) {
      records.push_back(instance.record);
      hosts.push_back(instance.host);
      json.push_back(to_json(instance.record));
      if (everywhere) json.back()["registry-host"] = instance.host;
    }
    if (vm.count("json") != 0)
      print_json(json);
    else
      std::fputs(draw_list(records, everywhere ? &hosts : nullptr).c_str(), stdout);
    return kExitOk;
  });
}

}  // namespace vbdkit::storage
