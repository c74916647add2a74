// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Starts a vbdkit-backend: for the daemon and for `vbdkit activate`. The connection exists before
// the process does, so commands wait in it and nothing has to be polled until the instance listens;
// where there will be no instance, X_VBDKIT_FAILED comes on it and says why.
// The process gets a session of its own: what stops its starter (a terminal, a service manager)
// does not reach it. Any thread.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"

namespace vbdkit {

struct LaunchOptions {
  std::string program{};
  std::vector<std::string> arguments{};  // beyond what launch_instance() gives itself
  std::string instances_dir{};
  std::string spec{};
  bool read_only = false;
  bool shared = false;
  bool managed = false;
  int output = -1;  // takes its stdout and stderr; -1: ours
};

struct LaunchedInstance {
  std::string uuid;
  std::string directory;
  pid_t pid = -1;  // our child
  Fd control;      // QMP
};

Result<LaunchedInstance> launch_instance(const LaunchOptions& options);

}  // namespace vbdkit
