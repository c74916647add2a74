// SPDX-License-Identifier: LGPL-2.1-or-later
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/signals.h"
#include "config.h"
#include "storage/command.h"
#include "storage/remote.h"

namespace vbdkit::storage {
namespace {

constexpr Command kCommands[] = {
    {"activate", "serve an image, with or without a domain", activate},
    {"attach", "make a running disk a block device of this host", attach},
    {"check", "look whether an image contradicts itself, and repair it", check},
    {"clone", "make an image that shares another one's content", clone},
    {"coalesce", "merge an image into its parent", coalesce},
    {"compare", "look whether two disks have the same content", compare},
    {"convert", "copy a disk into an image of any format", convert},
    {"create", "make an image", create},
    {"deactivate", "end that when nobody uses it", deactivate},
    {"detach", "take that device away", detach},
    {"drain", "wait until what a disk has in flight is done", drain},
    {"drivers", "list the image drivers and filters", list_drivers},
    {"gc", "merge and remove what is not needed in a directory of images", gc},
    {"grow", "make a running disk larger", grow},
    {"info", "show what an image says of itself and its parents", info},
    {"jobs", "show and steer the jobs of running disks", jobs},
    {"list", "list the running instances", list},
    {"map", "show which file holds which part of a disk", map},
    {"pause", "hold a running disk between two requests", pause},
    {"priority", "weigh a running disk against others", priority},
    {"qmp", "say one command to a running disk's control socket", qmp},
    {"refresh", "have a running disk look at its chain again", refresh},
    {"resize", "change the size of the disk in an image", resize},
    {"resume", "end a pause", resume},
    {"serve", "export a disk over NBD, without Xen", serve, LogLevel::kInfo},
    {"snapshot", "keep an image's present content under another name", snapshot},
    {"stats", "show what running instances have done", stats},
    {"stream", "pull what an image holds only in its parents into it", stream},
    {"throttle", "show or set a running disk's limits", throttle},
    {"top", "show what running instances are doing", top},
    {"tree", "draw which images stand on which, in a directory or in use", tree},
};

void print_usage(std::FILE* to) {
  std::fputs("Usage: vbdkit COMMAND [OPTION...]\n\nCommands:\n", to);
  for (const Command& command : kCommands)
    std::fprintf(to, "  %-10s %s\n", command.name, command.summary);
  std::fputs(
      "\n'vbdkit COMMAND --help' lists a command's options.\n"
      "'vbdkit --host HOST COMMAND...' runs it there, by ssh;\n"
      "'vbdkit --host @INSTANCE COMMAND...' on the host that the registry names.\n"
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
  if (args[0] == "--host") {
    const Logger log("vbdkit", LogLevel::kNotice);
    if (args.size() >= 3 && !args[1].empty() && args[1] != "@") {
      const auto host = host_named(args[1]);
      if (host) return run_on_host(*host, {args.begin() + 2, args.end()}, log);
      log.error("--host %s: %s", args[1].c_str(), host.error().message().c_str());
      return kExitFailure;
    }
    log.error("--host: which, and what shall be done there?");
    return kExitUsage;
  }
  const bool debug = std::getenv("VBDKIT_DEBUG") != nullptr;
  for (const Command& command : kCommands) {
    if (args[0] != command.name) continue;
    const Logger log("vbdkit", debug ? LogLevel::kDebug : command.threshold);
    return command.run({args.begin() + 1, args.end()}, log);
  }
  const Logger log("vbdkit", LogLevel::kNotice);
  log.error("'%s' is no command; 'vbdkit --help' lists them", args[0].c_str());
  return kExitUsage;
}

}  // namespace
}  // namespace vbdkit::storage

int main(int argc, char** argv) {
  vbdkit::survive_file_size_limit();
  const int status = vbdkit::storage::run({argv + (argc > 0 ? 1 : 0), argv + argc});
  if (std::fflush(stdout) != 0) {
    std::perror("vbdkit: stdout");
    return vbdkit::storage::kExitFailure;
  }
  return status;
}
