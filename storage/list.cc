// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit list: the instances that run here.
#include <cstdio>

#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/instance_argument.h"
#include "storage/instances.h"

namespace vbdkit::storage {

int list(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("list [OPTION...] [INSTANCE]", {}, {"INSTANCE"});
  syntax.options.add_options()("json", "for programs: an array of registry records");
  add_runtime_dir_option(syntax.options);
  return run_command(syntax, args, log, [&](const po::variables_map& vm) -> Result<int> {
    const Registry registry = registry_of(vm);
    std::vector<InstanceRecord> records;
    if (vm.count("INSTANCE") != 0) {
      VBDKIT_ASSIGN(InstanceRecord one, find_instance(registry, text_of(vm, "INSTANCE"), log));
      records.push_back(std::move(one));
    } else {
      VBDKIT_ASSIGN(records, registry.list());
    }
    if (vm.count("json") != 0) {
      Json json = Json::array();
      for (const InstanceRecord& record : records) json.push_back(to_json(record));
      print_json(json);
    } else {
      std::fputs(draw_list(records).c_str(), stdout);
    }
    return kExitOk;
  });
}

}  // namespace vbdkit::storage
