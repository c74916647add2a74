// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Process: a program under test as a child of ours, its output in a log file. It cannot outlive us.
// One thread, the one that started it.
#pragma once

#include <sys/types.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "tests/sim/event_channels.h"

namespace vbdkit::sim {

class Process {
 public:
  using Environment = std::map<std::string, std::string>;
  struct Options {
    Environment environment = {};  // added to ours
    std::string log_path = {};     // stdout and stderr
    int stdout_fd = -1;            // where stdout shall not go to the log
    int inherit_fd = -1;           // stays open in the program
  };
  static Result<std::unique_ptr<Process>> start(const std::vector<std::string>& argv,
                                                const Options& options);
  // Kills it, if need be.
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  const std::string& log_path() const { return log_path_; }
  std::string log() const;
  bool running();
  void signal(int number) const;
  // The wait status, or kTimedOut.
  Result<int> wait(Deadline deadline);
  // SIGTERM, then SIGKILL past the deadline; the wait status.
  Result<int> stop(Deadline deadline);

 private:
  Process(pid_t pid, Fd pidfd, std::string log_path)
      : pid_(pid), pidfd_(std::move(pidfd)), log_path_(std::move(log_path)) {}
  pid_t pid_;
  Fd pidfd_;
  std::string log_path_;
  std::optional<int> status_;
};

}  // namespace vbdkit::sim
