// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit tree: the images of a directory, or those of the running instances, and who stands on
// whom.
#include <cstdio>

#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/forest_drawing.h"
#include "storage/instance_argument.h"
#include "storage/instances.h"

namespace vbdkit::storage {
namespace {

Result<int> show_running(const po::variables_map& vm) {
  if (vm.count("dot") + vm.count("svg") != 0)
    return usage_error("--dot and --svg draw the images of a directory: which?");
  VBDKIT_ASSIGN(const auto records, registry_of(vm).list());
  if (vm.count("json") != 0)
    print_json(running_tree_json(records));
  else
    std::fputs(draw_running_tree(records).c_str(), stdout);
  return kExitOk;
}

Result<int> run(const po::variables_map& vm) {
  if (vm.count("json") + vm.count("dot") + vm.count("svg") > 1)
    return usage_error("--json, --dot and --svg exclude each other");
  if (vm.count("DIR") == 0) return show_running(vm);
  const std::string directory = text_of(vm, "DIR");
  VBDKIT_ASSIGN(const drivers::ImageForest forest, drivers::ImageForest::scan(directory));
  if (vm.count("json") != 0)
    print_json(draw_json(forest));
  else if (vm.count("dot") != 0)
    std::fputs(draw_dot(forest, directory).c_str(), stdout);
  else if (vm.count("svg") != 0)
    std::fputs(draw_svg(forest, directory).c_str(), stdout);
  else
    std::fputs(draw_text(forest, directory).c_str(), stdout);
  return kExitOk;
}

}  // namespace

int tree(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("tree [OPTION...] [DIR]", {}, {"DIR"});
  syntax.options.add_options()         //
      ("dot", "a graph for Graphviz")  //
      ("svg", "a picture")             //
      ("json", "for programs");
  add_runtime_dir_option(syntax.options);
  return run_command(syntax, args, log, run);
}

}  // namespace vbdkit::storage
