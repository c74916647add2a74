// SPDX-License-Identifier: LGPL-2.1-or-later
//
// delay: a filter that holds each request for a while before it hands it on: what a slow disk does
// to a guest, without one. docs/driver-author.md explains this file line by line.
#include <deque>

#include "drivers/drivers.h"
#include "drivers/options.h"

namespace vbdkit::drivers {
namespace {

using Clock = std::chrono::steady_clock;

class DelayFilter final : public Filter {
 public:
  DelayFilter(NodePtr next, NodeSpec spec, std::chrono::milliseconds delay, io::Reactor& reactor)
      : Filter(std::move(next)), spec_(std::move(spec)), delay_(delay) {
    timer_ = reactor.timer([this] { expired(); });
  }

  std::string_view driver() const override { return "delay"; }
  std::string spec() const override { return spec_in_front(spec_, next()); }

  void submit(Request& request) override {
    waiting_.push_back({Clock::now() + delay_, &request});
    if (waiting_.size() == 1) timer_->arm(waiting_.front().until);
  }

 private:
  struct Waiting {
    Clock::time_point until;
    Request* request;
  };

  // All wait equally long, so the first to come is the first to go.
  void expired() {
    const auto now = Clock::now();
    while (!waiting_.empty() && waiting_.front().until <= now) {
      Request& request = *waiting_.front().request;
      waiting_.pop_front();
      next().submit(request);
    }
    if (!waiting_.empty()) timer_->arm(waiting_.front().until);
  }

  const NodeSpec spec_;
  const std::chrono::milliseconds delay_;
  std::deque<Waiting> waiting_;
  std::unique_ptr<io::Timer> timer_;
};

constexpr const char* kKeys[] = {"ms"};
constexpr uint64_t kMost = 60'000;  // a guest gives up on a disk after minutes

Result<NodePtr> open_delay(const NodeSpec& spec, NodePtr next, const OpenContext& context) {
  VBDKIT_ASSIGN(const uint64_t ms, OptionReader(spec).number("ms", 10));
  if (ms > kMost)
    return Error(ErrorKind::kInvalid, "delay: ms=" + std::to_string(ms) + ": at most " +
                                          std::to_string(kMost) + " milliseconds");
  return NodePtr(std::make_unique<DelayFilter>(std::move(next), spec, std::chrono::milliseconds(ms),
                                               context.reactor));
}

}  // namespace

DriverEntry delay_driver() {
  return {"delay", "holds each request for a while", true, false, kKeys, open_delay};
}

}  // namespace vbdkit::drivers
