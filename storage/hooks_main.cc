// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit-hooks: runs the storage hooks of one instance, which starts it and tells it what happens
// by single letters on its standard input (backend/hook_link.h).
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "config.h"
#include "storage/hook_runner.h"

int main(int argc, char** argv) {
  using namespace vbdkit;
  if (argc == 2 && std::strcmp(argv[1], "--version") == 0) {
    std::puts("vbdkit-hooks " PACKAGE_VERSION);
    return 0;
  }
  const Logger log("vbdkit-hooks", LogLevel::kNotice);
  char* end = nullptr;
  const unsigned long seconds = argc == 4 ? std::strtoul(argv[3], &end, 10) : 0;
  if (seconds == 0 || seconds > 3600 || *end != '\0') {
    log.error("usage: vbdkit-hooks HOOKS-DIR RUNTIME-DIR SECONDS; started by vbdkit-backend");
    return 2;
  }
  storage::HookRunner runner(
      Fd(STDIN_FILENO),
      {.hooks_dir = argv[1], .runtime_dir = argv[2], .timeout = std::chrono::seconds(seconds)},
      log);
  if (const auto ran = runner.run(); !ran) {
    log.error("%s", ran.error().message().c_str());
    return 1;
  }
  return 0;
}
