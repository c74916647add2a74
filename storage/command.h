// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The subcommands of vbdkit: one .cc each, one line in main.cc's table each. A command parses its
// own arguments, writes results to stdout, messages to the log, and returns the exit code.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/log.h"

namespace vbdkit::storage {

// Documented in vbdkit(1).
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;  // it was tried and failed
inline constexpr int kExitUsage = 2;    // the command line makes no sense
// Of check.
inline constexpr int kExitErrorsFound = 4;
inline constexpr int kExitRemainsFound = 3;  // nothing that does harm
// Of qmp.
inline constexpr int kExitNoInstance = 3;
// Of compare.
inline constexpr int kExitDifferent = 3;

struct Command {
  const char* name;
  const char* summary;
  // `args` are those after the command's name.
  int (*run)(const std::vector<std::string>& args, const Logger& log);
  LogLevel threshold = LogLevel::kNotice;
};

int activate(const std::vector<std::string>& args, const Logger& log);
int attach(const std::vector<std::string>& args, const Logger& log);
int check(const std::vector<std::string>& args, const Logger& log);
int clone(const std::vector<std::string>& args, const Logger& log);
int coalesce(const std::vector<std::string>& args, const Logger& log);
int compare(const std::vector<std::string>& args, const Logger& log);
int convert(const std::vector<std::string>& args, const Logger& log);
int create(const std::vector<std::string>& args, const Logger& log);
int deactivate(const std::vector<std::string>& args, const Logger& log);
int detach(const std::vector<std::string>& args, const Logger& log);
int drain(const std::vector<std::string>& args, const Logger& log);
int gc(const std::vector<std::string>& args, const Logger& log);
int grow(const std::vector<std::string>& args, const Logger& log);
int info(const std::vector<std::string>& args, const Logger& log);
int jobs(const std::vector<std::string>& args, const Logger& log);
int list(const std::vector<std::string>& args, const Logger& log);
int list_drivers(const std::vector<std::string>& args, const Logger& log);
int map(const std::vector<std::string>& args, const Logger& log);
int pause(const std::vector<std::string>& args, const Logger& log);
int priority(const std::vector<std::string>& args, const Logger& log);
int qmp(const std::vector<std::string>& args, const Logger& log);
int refresh(const std::vector<std::string>& args, const Logger& log);
int resize(const std::vector<std::string>& args, const Logger& log);
int resume(const std::vector<std::string>& args, const Logger& log);
int serve(const std::vector<std::string>& args, const Logger& log);
int snapshot(const std::vector<std::string>& args, const Logger& log);
int stats(const std::vector<std::string>& args, const Logger& log);
int stream(const std::vector<std::string>& args, const Logger& log);
int throttle(const std::vector<std::string>& args, const Logger& log);
int top(const std::vector<std::string>& args, const Logger& log);
int tree(const std::vector<std::string>& args, const Logger& log);

}  // namespace vbdkit::storage
