// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit resize: another size for the disk in an image.
#include "drivers/image_forest.h"
#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/job_runner.h"

namespace vbdkit::storage {
namespace {

Result<int> run(const po::variables_map& vm, const Logger& log) {
  VBDKIT_ASSIGN(const drivers::NodeSpec image, parse_image(text_of(vm, "SPEC")));
  VBDKIT_TRY(format_of(image));
  VBDKIT_ASSIGN(const auto runner, JobRunner::create(io::EngineKind::kAuto, log));
  VBDKIT_ASSIGN(const drivers::NodePtr node, runner->open({{image}}, false));
  VBDKIT_TRY(drivers::check_childless(image.path));
  const Bytes present = node->info().size;
  VBDKIT_ASSIGN(const Bytes size, parse_size_argument(text_of(vm, "SIZE"), present));
  const Bytes whole{align_up(size.v, kSectorSize)};
  if (whole < present && vm.count("shrink") == 0)
    return usage_error(std::to_string(whole.v) + " bytes are less than the " +
                       std::to_string(present.v) +
                       " that the disk has; --shrink does it, and what lies beyond is lost");
  VBDKIT_TRY(node->resize(whole));
  return kExitOk;
}

}  // namespace

int resize(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("resize [OPTION...] SPEC [+|-]SIZE", {"SPEC", "SIZE"});
  syntax.options.add_options()("shrink", "allow a smaller size, which loses what lies beyond it");
  return run_command(syntax, args, log, [&](const po::variables_map& vm) { return run(vm, log); });
}

}  // namespace vbdkit::storage
