// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit tree: the images of a directory, and who stands on whom.
#include <cstdio>

#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/forest_drawing.h"

namespace vbdkit::storage {
namespace {

Result<int> run(const po::variables_map& vm) {
  const std::string directory = text_of(vm, "DIR");
  if (vm.count("json") + vm.count("dot") + vm.count("svg") > 1)
    return usage_error("--json, --dot and --svg exclude each other");
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
  Syntax syntax("tree [OPTION...] DIR", {"DIR"});
  syntax.options.add_options()         //
      ("dot", "a graph for Graphviz")  //
      ("svg", "a picture")             //
      ("json", "for programs");
  return run_command(syntax, args, log, run);
}

}  // namespace vbdkit::storage
