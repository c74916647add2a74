// SPDX-License-Identifier: LGPL-2.1-or-later
//
// TokenBucket: lets `rate` units a second through, and `burst` units at once after a rest. It keeps
// one number, the time at which the bucket will be full again, so it needs no refilling. What costs
// more than the burst passes when the bucket is full, and later requests wait for it: nothing is
// too large ever to pass. Pure: time is passed in.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace vbdkit::drivers {

class TokenBucket {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using Nanoseconds = std::chrono::nanoseconds;

  TokenBucket() = default;  // no limit

  // rate 0: no limit. What is owed at `now` stays owed, as far as the new burst reaches.
  void set(uint64_t rate, uint64_t burst, Time now) {
    rate_ = rate;
    if (rate == 0) return;
    depth_ = time_for(std::max<uint64_t>(burst, 1));
    full_ = std::min(full_, now + depth_);
  }

  bool limited() const { return rate_ != 0; }

  // From when on a request of that cost may pass.
  Time ready_at(uint64_t units, Time now) const {
    return limited() ? full_ - depth_ + std::min(time_for(units), depth_) : now;
  }

  void take(uint64_t units, Time now) {
    if (limited()) full_ = std::max(full_, now) + time_for(units);
  }

 private:
  Nanoseconds time_for(uint64_t units) const {
    const auto ns = static_cast<unsigned __int128>(units) * 1'000'000'000 / rate_;
    return Nanoseconds(static_cast<int64_t>(std::min<unsigned __int128>(ns, INT64_MAX / 4)));
  }

  uint64_t rate_ = 0;
  Nanoseconds depth_{0};
  Time full_{};
};

}  // namespace vbdkit::drivers
