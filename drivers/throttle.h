// SPDX-License-Identifier: LGPL-2.1-or-later
//
// throttle: a filter that bounds requests and bytes per second, in total and for each direction,
// with bursts. What must wait stands in line by direction, and the two lines take turns, so that
// neither starves; a flush never waits, as it concerns completed requests only, nor does a job's
// copy, which has a limit of its own.
// While nothing is limited a request passes straight through; waiting allocates nothing.
// The reactor's thread.
#pragma once

#include <functional>
#include <memory>

#include "drivers/node.h"
#include "drivers/registry.h"
#include "drivers/request_queue.h"
#include "drivers/token_bucket.h"

namespace vbdkit::drivers {

struct Limit {
  uint64_t rate = 0;   // units a second; 0: no limit
  uint64_t burst = 0;  // units at once; 0: what a tenth of a second lets through

  friend bool operator==(const Limit&, const Limit&) = default;
};

// Discard and write-zeroes count as writes of no bytes.
struct ThrottleLimits {
  Limit bps{};  // bytes: in total, and by direction
  Limit bps_read{};
  Limit bps_write{};
  Limit iops{};  // requests, likewise
  Limit iops_read{};
  Limit iops_write{};

  friend bool operator==(const ThrottleLimits&, const ThrottleLimits&) = default;
};

class ThrottleFilter final : public Filter {
 public:
  using Time = TokenBucket::Time;
  using Clock = std::function<Time()>;

  ThrottleFilter(NodePtr next, io::Reactor& reactor, const ThrottleLimits& limits,
                 Clock clock = std::chrono::steady_clock::now);

  // At any time: what waits is judged anew.
  void set_limits(const ThrottleLimits& limits);
  const ThrottleLimits& limits() const { return limits_; }

  std::string_view driver() const override { return "throttle"; }
  std::string spec() const override;
  void submit(Request& request) override;
  void hurry() override;

 private:
  struct Buckets {
    TokenBucket bytes, requests;

    Time ready_at(const Request& request, Time now) const;
    void take(const Request& request, Time now);
    void set(const Limit& bps, const Limit& iops, Time now);
  };
  struct Lane {
    RequestQueue queue;
    Buckets buckets;
  };

  static size_t lane_of(const Request& request) { return request.op == Op::kRead ? 0 : 1; }
  Time ready_at(const Lane& lane, Time now) const;  // its first request
  void dispatch();
  bool dispatch_one(Time now);
  const Request& pass(Lane& lane, Time now);  // its first request; only its address is left
  void wait_for_next(Time now);

  ThrottleLimits limits_;
  bool limited_ = false;
  Clock clock_;
  Buckets total_;
  Lane lanes_[2];
  size_t turn_ = 0;  // the lane that goes first
  bool dispatching_ = false;
  std::unique_ptr<io::Timer> timer_;
};

}  // namespace vbdkit::drivers
