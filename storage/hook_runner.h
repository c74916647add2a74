// SPDX-License-Identifier: LGPL-2.1-or-later
//
// HookRunner: runs the executables of a directory, one after the other, for each event of one
// instance. The record is each one's standard input, the event its argument; what it prints goes to
// the log, rate-limited; one that takes too long is killed with all that it started. Events that
// come meanwhile wait; of changes that wait only the last is told.
//
// Executables that others than their owner (root, or the user that runs this) may write to are
// skipped, and so is such a directory. One thread; the program vbdkit-hooks is all around it.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <deque>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/log.h"
#include "base/result.h"

namespace vbdkit::storage {

class HookRunner {
 public:
  using Clock = std::chrono::steady_clock;
  struct Options {
    std::string hooks_dir;
    std::string runtime_dir;                                       // of the instance
    std::chrono::milliseconds timeout = std::chrono::seconds(10);  // of one hook
  };

  // `events`: what HookLink (backend/hook_link.h) writes to.
  HookRunner(Fd events, Options options, const Logger& log)
      : events_(std::move(events)), options_(std::move(options)), log_(log) {}

  // Until the instance has ended and all is told.
  Result<void> run();

 private:
  struct Event {
    std::string name;
    std::string record;
  };
  struct Hook {
    std::string name;
    pid_t pid = -1;
    Fd process;
    Fd output;
    std::string line;  // not ended yet
    Clock::time_point deadline;
    bool killed = false;
  };

  void take_events();
  void queue(const std::string& name);
  void start_next();
  Result<void> start(const std::string& name, const Event& event);
  void read_output();
  void log_line(const std::string& line);
  void kill_late();
  void reap();
  bool is_safe(const std::string& path, bool directory) const;
  std::vector<std::string> list_hooks() const;

  Fd events_;
  const Options options_;
  const Logger& log_;
  RateLimit chatter_{20, std::chrono::seconds(10)};

  std::string record_;  // as it was read last
  bool registered_ = false;
  bool ended_ = false;
  std::deque<Event> queue_;            // the first is being told
  std::deque<std::string> remaining_;  // hooks that it is still to be told to
  Hook hook_;                          // that runs; pid -1: none
};

}  // namespace vbdkit::storage
