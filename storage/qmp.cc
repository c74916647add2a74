// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit qmp: one command to the control socket of a running instance, for scripts, and for what
// other hosts ask of this one's instances.
#include <cstdio>

#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/instance_argument.h"

namespace vbdkit::storage {
namespace {

Result<int> run(const po::variables_map& vm, const Logger& log) {
  const double seconds = vm["timeout"].as<double>();
  if (!(seconds >= 0.001 && seconds <= 86400))
    return usage_error("--timeout: from 0.001 to 86400 seconds");
  std::string arguments;
  if (vm.count("ARGUMENTS") != 0) {
    arguments = text_of(vm, "ARGUMENTS");
    const auto json = control::Json::parse(arguments);
    if (!json || !json->is_object())
      return usage_error("ARGUMENTS: '" + arguments + "' is no JSON object");
  }
  const auto instance = find_instance(registry_of(vm), text_of(vm, "INSTANCE"), log);
  if (!instance && instance.error().kind() == ErrorKind::kNotFound) {
    log.error("%s", instance.error().message().c_str());
    return kExitNoInstance;
  }
  if (!instance) return instance.error();
  VBDKIT_ASSIGN(const auto answer,
                ask(*instance, text_of(vm, "COMMAND"), arguments,
                    std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000))));
  std::printf("%s\n", answer.dump().c_str());
  return kExitOk;
}

}  // namespace

int qmp(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("qmp [OPTION...] INSTANCE COMMAND [ARGUMENTS]", {"INSTANCE", "COMMAND"},
                {"ARGUMENTS"});
  syntax.options.add_options()("timeout",
                               po::value<double>()->value_name("SECONDS")->default_value(30, "30"),
                               "how long to wait for the answer");
  add_runtime_dir_option(syntax.options);
  return run_command(syntax, args, log, [&](const po::variables_map& vm) { return run(vm, log); });
}

}  // namespace vbdkit::storage
