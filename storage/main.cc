// SPDX-License-Identifier: LGPL-2.1-or-later
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "config.h"
#include "storage/command.h"

namespace vbdkit::storage {
namespace {

constexpr Command kCommands[] = {
    {"drivers", "list the image drivers and filters", list_drivers},
    {"serve", "export a disk over NBD, without Xen", serve},
};

void print_usage(std::FILE* to) {
  std::fputs("Usage: vbdkit COMMAND [OPTION...]\n\nCommands:\n", to);
  for (const Command& command : kCommands)
    std::fprintf(to, "  %-10s %s\n", command.name, command.summary);
  std::fputs(
      "\n'vbdkit COMMAND --help' lists a command's options.\n"
      "vbdkit --version and vbdkit --help say what they say.\n",
      to);
}

int run(const std::vector<std::string>& args) {
  if (args.empty()) {
    print_usage(stderr);
    return kExitUsage;
  }
  if (args[0] == "--help" || args[0] == "-h") {
    print_usage(stdout);
    return kExitOk;
  }
  if (args[0] == "--version") {
    std::puts("vbdkit " PACKAGE_VERSION);
    return kExitOk;
  }
  const Logger log("vbdkit",
                   std::getenv("VBDKIT_DEBUG") != nullptr ? LogLevel::kDebug : LogLevel::kInfo);
  for (const Command& command : kCommands)
    if (args[0] == command.name) return command.run({args.begin() + 1, args.end()}, log);
  log.error("'%s' is no command; 'vbdkit --help' lists them", args[0].c_str());
  return kExitUsage;
}

}  // namespace
}  // namespace vbdkit::storage

int main(int argc, char** argv) {
  const int status = vbdkit::storage::run({argv + (argc > 0 ? 1 : 0), argv + argc});
  if (std::fflush(stdout) != 0) {
    std::perror("vbdkit: stdout");
    return vbdkit::storage::kExitFailure;
  }
  return status;
}
