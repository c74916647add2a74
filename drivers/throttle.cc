// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/throttle.h"

#include <algorithm>
#include <utility>

#include "drivers/drivers.h"
#include "drivers/options.h"

namespace vbdkit::drivers {
namespace {

// One row per limit: its key, its place, and whether it counts bytes.
struct LimitKey {
  const char* rate;
  const char* burst;
  Limit ThrottleLimits::*limit;
  bool bytes;
};

constexpr LimitKey kLimitKeys[] = {
    {"bps", "bps-burst", &ThrottleLimits::bps, true},
    {"bps-read", "bps-read-burst", &ThrottleLimits::bps_read, true},
    {"bps-write", "bps-write-burst", &ThrottleLimits::bps_write, true},
    {"iops", "iops-burst", &ThrottleLimits::iops, false},
    {"iops-read", "iops-read-burst", &ThrottleLimits::iops_read, false},
    {"iops-write", "iops-write-burst", &ThrottleLimits::iops_write, false},
};

constexpr const char* kKeys[] = {
    "bps",  "bps-burst",  "bps-read",  "bps-read-burst",  "bps-write",  "bps-write-burst",
    "iops", "iops-burst", "iops-read", "iops-read-burst", "iops-write", "iops-write-burst",
};

Result<ThrottleLimits> read_limits(const NodeSpec& spec) {
  const OptionReader reader(spec);
  ThrottleLimits limits;
  for (const LimitKey& key : kLimitKeys) {
    Limit& limit = limits.*key.limit;
    VBDKIT_ASSIGN(limit.rate, key.bytes ? reader.size(key.rate, 0) : reader.number(key.rate, 0));
    VBDKIT_ASSIGN(limit.burst, key.bytes ? reader.size(key.burst, 0) : reader.number(key.burst, 0));
    if (limit.burst != 0 && limit.rate == 0)
      return Error(ErrorKind::kInvalid, "throttle: key '" + std::string(key.burst) + "' without '" +
                                            key.rate + "' has no meaning");
  }
  return limits;
}

uint64_t bytes_of(const Request& request) {
  return request.op == Op::kRead || request.op == Op::kWrite ? request.length : 0;
}

void set_bucket(TokenBucket& bucket, const Limit& limit, TokenBucket::Time now) {
  bucket.set(limit.rate, limit.burst != 0 ? limit.burst : limit.rate / 10, now);
}

}  // namespace

ThrottleFilter::Time ThrottleFilter::Buckets::ready_at(const Request& request, Time now) const {
  return std::max(bytes.ready_at(bytes_of(request), now), requests.ready_at(1, now));
}

void ThrottleFilter::Buckets::take(const Request& request, Time now) {
  bytes.take(bytes_of(request), now);
  requests.take(1, now);
}

void ThrottleFilter::Buckets::set(const Limit& bps, const Limit& iops, Time now) {
  set_bucket(bytes, bps, now);
  set_bucket(requests, iops, now);
}

ThrottleFilter::ThrottleFilter(NodePtr next, io::Reactor& reactor, const ThrottleLimits& limits,
                               Clock clock)
    : Filter(std::move(next)),
      clock_(std::move(clock)),
      timer_(reactor.timer([this] { dispatch(); })) {
  set_limits(limits);
}

void ThrottleFilter::set_limits(const ThrottleLimits& limits) {
  limits_ = limits;
  limited_ = std::ranges::any_of(
      kLimitKeys, [&](const LimitKey& key) { return (limits.*key.limit).rate != 0; });
  const Time now = clock_();
  total_.set(limits.bps, limits.iops, now);
  lanes_[0].buckets.set(limits.bps_read, limits.iops_read, now);
  lanes_[1].buckets.set(limits.bps_write, limits.iops_write, now);
  dispatch();
}

std::string ThrottleFilter::spec() const {
  NodeSpec own{.driver = "throttle", .path = {}, .options = {}};
  for (const LimitKey& key : kLimitKeys) {
    const Limit& limit = limits_.*key.limit;
    if (limit.rate != 0) own.options[key.rate] = std::to_string(limit.rate);
    if (limit.burst != 0) own.options[key.burst] = std::to_string(limit.burst);
  }
  return spec_in_front(own, next());
}

void ThrottleFilter::submit(Request& request) {
  Lane& lane = lanes_[lane_of(request)];
  if (request.op == Op::kFlush || request.op == Op::kCopy || (!limited_ && lane.queue.empty())) {
    next().submit(request);
    return;
  }
  // Behind others nothing can change by this request; the timer is armed for the first of them.
  const bool first = lane.queue.empty();
  lane.queue.push(request);
  if (first) dispatch();
}

ThrottleFilter::Time ThrottleFilter::ready_at(const Lane& lane, Time now) const {
  const Request& request = *lane.queue.front();
  return std::max(lane.buckets.ready_at(request, now), total_.ready_at(request, now));
}

void ThrottleFilter::dispatch() {
  // A request that completes inside submit() may bring the next one.
  if (std::exchange(dispatching_, true)) return;
  const Time now = clock_();
  while (dispatch_one(now)) {
  }
  dispatching_ = false;
  wait_for_next(now);
}

bool ThrottleFilter::dispatch_one(Time now) {
  for (const size_t i : {turn_, 1 - turn_}) {
    Lane& lane = lanes_[i];
    if (lane.queue.empty() || ready_at(lane, now) > now) continue;
    turn_ = 1 - i;
    pass(lane, now);
    return true;
  }
  return false;
}

const Request& ThrottleFilter::pass(Lane& lane, Time now) {
  Request& request = lane.queue.pop();
  total_.take(request, now);
  lane.buckets.take(request, now);
  next().submit(request);
  return request;
}

// Only what waits at this moment: a completion may bring more.
void ThrottleFilter::hurry() {
  const bool inside = std::exchange(dispatching_, true);
  const Time now = clock_();
  for (Lane& lane : lanes_)
    for (const Request* last = lane.queue.back(); last != nullptr;)
      if (&pass(lane, now) == last) last = nullptr;
  Filter::hurry();
  dispatching_ = inside;
  if (!inside) wait_for_next(now);
}

void ThrottleFilter::wait_for_next(Time now) {
  Time wake = Time::max();
  for (const Lane& lane : lanes_)
    if (!lane.queue.empty()) wake = std::min(wake, ready_at(lane, now));
  if (wake != Time::max()) timer_->arm(wake);
}

namespace {

Result<NodePtr> open_throttle(const NodeSpec& spec, NodePtr next, const OpenContext& context) {
  VBDKIT_ASSIGN(const ThrottleLimits limits, read_limits(spec));
  return NodePtr(std::make_unique<ThrottleFilter>(std::move(next), context.reactor, limits));
}

}  // namespace

DriverEntry throttle_driver() {
  return {"throttle", "bounds requests and bytes per second", true, false, kKeys, open_throttle};
}

}  // namespace vbdkit::drivers
