// SPDX-License-Identifier: LGPL-2.1-or-later
//
// log: a filter that writes a line for each request when it is done (what, where, result, how long
// it took), and counts. Several may stand in one graph, to see what goes into a filter and what
// comes out. The lines are bounded per second, as a guest decides how many there are; the counters
// are exact. The reactor's thread.
#pragma once

#include <array>
#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "base/log.h"
#include "drivers/node.h"
#include "drivers/registry.h"
#include "drivers/request_pool.h"

namespace vbdkit::drivers {

inline constexpr size_t kOpCount = 5;

struct LogOptions {
  LogLevel level = LogLevel::kInfo;
  std::string name{};  // tells the lines of several filters apart; may be empty
  std::array<bool, kOpCount> ops = {true, true, true, true, true};  // by Op
  unsigned rate = 100;                                              // lines a second; 0: no limit
  std::chrono::milliseconds slower_than{0};  // quicker requests get no line unless they fail
  std::chrono::seconds summary{0};           // time between two summaries; 0: only at the end
};

struct LogCounters {
  struct PerOp {
    uint64_t requests = 0;
    uint64_t bytes = 0;
  };
  std::array<PerOp, kOpCount> ops{};  // by Op; requests that are done
  uint64_t failed = 0;
  uint64_t in_flight = 0;
  std::chrono::nanoseconds slowest{0};
};

class LogFilter final : public Filter {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using Clock = std::function<Time()>;

  LogFilter(NodePtr next, const NodeSpec& spec, LogOptions options, const OpenContext& context,
            Clock clock = std::chrono::steady_clock::now);
  ~LogFilter() override;

  const LogCounters& counters() const { return counters_; }

  std::string_view driver() const override { return "log"; }
  std::string spec() const override { return spec_in_front(spec_, next()); }
  void submit(Request& request) override;

 private:
  struct Watched : Request {
    LogFilter* filter = nullptr;
    Request* origin = nullptr;
    Time start{};
  };

  void done(Watched& watched, int error);
  void write_line(const Watched& watched, int error, std::chrono::nanoseconds took);
  void write_summary();
  void arm_summary();

  const NodeSpec spec_;
  const LogOptions options_;
  const std::string label_;  // how each line begins
  const Logger& log_;
  const Clock clock_;
  RateLimit limit_;
  LogCounters counters_;
  uint64_t summed_up_ = 0;  // requests done when the last summary was written
  RequestPool<Watched> pool_;
  std::unique_ptr<io::Timer> timer_;
};

}  // namespace vbdkit::drivers
