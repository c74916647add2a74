// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Commands on another host: vbdkit there, reached by ssh(1), whose keys and rules say who may. The
// control sockets themselves are never on a network.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/result.h"

namespace vbdkit::storage {

// HOST, or @INSTANCE: the host on which that runs, by the registry that hosts share.
Result<std::string> host_named(const std::string& text);

// Becomes ssh; returns the exit code only where that fails.
int run_on_host(const std::string& host, const std::vector<std::string>& args, const Logger& log);

struct RemoteAnswer {
  int status = 0;  // exit code of the command there, or ssh's own, 255
  std::string output;
  std::string errors;  // what it has said on stderr
};
// Runs vbdkit there and waits for its end; never asks anybody for a password.
Result<RemoteAnswer> ask_host(const std::string& host, const std::vector<std::string>& args,
                              std::chrono::milliseconds timeout);

// For a POSIX shell: one word, whatever is in it.
std::string quoted(const std::string& word);

}  // namespace vbdkit::storage
