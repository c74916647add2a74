// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/throttle.h"

#include <gtest/gtest.h>

#include <deque>
#include <vector>

namespace vbdkit::drivers {
namespace {

using Time = TokenBucket::Time;
using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;

constexpr Time kStart{std::chrono::hours(1)};

uint64_t pass_all_at(TokenBucket& bucket, Time now, uint64_t units = 1) {
  uint64_t passed = 0;
  for (; bucket.ready_at(units, now) <= now && passed < 1'000'000; ++passed)
    bucket.take(units, now);
  return passed;
}

TEST(TokenBucket, LetsABurstThroughAndThenTheRate) {
  TokenBucket bucket;
  bucket.set(1000, 50, kStart);
  EXPECT_EQ(50u, pass_all_at(bucket, kStart));
  EXPECT_EQ(0u, pass_all_at(bucket, kStart + microseconds(999)));
  EXPECT_EQ(1u, pass_all_at(bucket, kStart + microseconds(1000)));
  EXPECT_EQ(20u, pass_all_at(bucket, kStart + microseconds(21000)));
}

TEST(TokenBucket, ARestNeverSavesMoreThanTheBurst) {
  TokenBucket bucket;
  bucket.set(1000, 50, kStart);
  EXPECT_EQ(50u, pass_all_at(bucket, kStart));
  EXPECT_EQ(50u, pass_all_at(bucket, kStart + std::chrono::hours(5)));
}

TEST(TokenBucket, WhatIsLargerThanTheBurstPassesAndIsPaidForLater) {
  TokenBucket bucket;
  bucket.set(1000, 10, kStart);
  ASSERT_LE(bucket.ready_at(5000, kStart), kStart);
  bucket.take(5000, kStart);
  EXPECT_EQ(kStart + milliseconds(4991), bucket.ready_at(1, kStart));
  EXPECT_EQ(kStart + milliseconds(5000), bucket.ready_at(5000, kStart));
}

TEST(TokenBucket, ALowerRateDoesNotLockOutWhatOwedLittle) {
  TokenBucket bucket;
  bucket.set(1'000'000, 1'000'000, kStart);
  pass_all_at(bucket, kStart, 1000);
  bucket.set(10, 1, kStart);
  EXPECT_LE(bucket.ready_at(1, kStart), kStart + milliseconds(100));
}

TEST(TokenBucket, HugeRatesCostsAndBurstsDoNotOverflow) {
  TokenBucket bucket;
  bucket.set(1, UINT64_MAX, kStart);
  for (int i = 0; i < 100; ++i) {
    if (bucket.ready_at(UINT64_MAX, kStart) > kStart) break;
    bucket.take(UINT64_MAX, kStart);
  }
  EXPECT_GT(bucket.ready_at(1, kStart), kStart);
  bucket.set(UINT64_MAX, 1, kStart);
  EXPECT_LE(bucket.ready_at(1, kStart), kStart + seconds(1));
}

// A loop whose time the test moves.
class ManualReactor final : public io::Reactor {
 public:
  class ManualTimer final : public io::Timer {
   public:
    ManualTimer(ManualReactor& reactor, std::function<void()> expired)
        : reactor_(reactor), expired_(std::move(expired)) {
      reactor_.timers_.push_back(this);
    }
    ~ManualTimer() override { std::erase(reactor_.timers_, this); }
    void arm(Clock::time_point deadline) override { deadline_ = deadline; }
    void cancel() override { deadline_ = Time::max(); }

    ManualReactor& reactor_;
    std::function<void()> expired_;
    Time deadline_ = Time::max();
  };

  Result<void> run() override { return {}; }
  void submit(io::FileOp&) override { FAIL(); }
  void submit(io::SocketOp&) override { FAIL(); }
  void defer(io::Deferred&) override { FAIL(); }
  std::unique_ptr<io::FdWatch> watch(int, std::function<void()>) override { return nullptr; }
  std::unique_ptr<io::Timer> timer(std::function<void()> expired) override {
    return std::make_unique<ManualTimer>(*this, std::move(expired));
  }
  void post(std::function<void()>) override {}
  void stop() override {}
  const char* engine_name() const override { return "manual"; }
  const io::ReactorCounters& counters() const override { return counters_; }

  bool armed() const { return timers_.front()->deadline_ != Time::max(); }

  // Fires whatever expires up to `until`, at its own time.
  void advance(nanoseconds by) {
    const Time until = now_ + by;
    while (timers_.front()->deadline_ <= until) {
      now_ = std::max(now_, std::exchange(timers_.front()->deadline_, Time::max()));
      timers_.front()->expired_();
    }
    now_ = until;
  }

  Time now_ = kStart;
  std::vector<ManualTimer*> timers_;

 private:
  io::ReactorCounters counters_;
};

// Records the order of what arrives and completes it at once.
class RecordingNode final : public Node {
 public:
  RecordingNode() { info_.size = Bytes{1 << 30}; }
  std::string_view driver() const override { return "recording"; }
  std::string spec() const override { return "null,size=1G"; }
  const NodeInfo& info() const override { return info_; }
  void submit(Request& r) override {
    arrived.push_back({r.op, r.offset});
    r.done(r, 0);
  }
  void block_status(StatusRequest& r) override { r.done(0); }
  Result<void> refresh_size() override { return {}; }
  Result<void> resize(Bytes) override { return {}; }
  Result<void> reopen(bool) override { return {}; }

  struct Seen {
    Op op;
    uint64_t offset;
  };
  std::vector<Seen> arrived;

 private:
  NodeInfo info_;
};

class ThrottleTest : public testing::Test {
 protected:
  void make(const ThrottleLimits& limits) {
    auto node = std::make_unique<RecordingNode>();
    below_ = node.get();
    filter_ = std::make_unique<ThrottleFilter>(std::move(node), reactor_, limits,
                                               [this] { return reactor_.now_; });
  }

  void submit(Op op, uint64_t offset = 0, uint64_t length = 4096) {
    Request& r = requests_.emplace_back();
    r.op = op;
    r.offset = offset;
    r.length = length;
    r.done = [](Request& request, int error) {
      EXPECT_EQ(0, error);
      request.owner = nullptr;
    };
    filter_->submit(r);
  }
  size_t arrived() const { return below_->arrived.size(); }

  ManualReactor reactor_;
  std::deque<Request> requests_;
  RecordingNode* below_ = nullptr;
  std::unique_ptr<ThrottleFilter> filter_;
};

TEST_F(ThrottleTest, WithoutLimitsNothingWaitsAndNoTimerRuns) {
  make({});
  for (int i = 0; i < 1000; ++i) submit(Op::kWrite);
  EXPECT_EQ(1000u, arrived());
  EXPECT_FALSE(reactor_.armed());
}

TEST_F(ThrottleTest, RequestsPassAtTheirRateInTheirOrder) {
  make({.iops = {.rate = 100, .burst = 5}});
  for (uint64_t i = 0; i < 105; ++i) submit(Op::kRead, i * 4096);
  EXPECT_EQ(5u, arrived());
  reactor_.advance(milliseconds(500));
  EXPECT_EQ(55u, arrived());
  reactor_.advance(milliseconds(500));
  EXPECT_EQ(105u, arrived());
  for (uint64_t i = 0; i < 105; ++i) EXPECT_EQ(i * 4096, below_->arrived[i].offset);
  EXPECT_FALSE(reactor_.armed());
}

TEST_F(ThrottleTest, BytesAreCountedByLengthAndDiscardMovesNone) {
  make({.bps = {.rate = 1 << 20, .burst = 4096}});
  submit(Op::kWrite, 0, 1 << 20);
  for (int i = 0; i < 10; ++i) submit(Op::kDiscard, 0, 1 << 30);
  EXPECT_EQ(1u, arrived());
  reactor_.advance(milliseconds(995));
  EXPECT_EQ(1u, arrived());
  reactor_.advance(milliseconds(5));
  EXPECT_EQ(11u, arrived());
}

TEST_F(ThrottleTest, ADirectionsLimitLeavesTheOtherAlone) {
  make({.iops_write = {.rate = 10, .burst = 1}});
  for (int i = 0; i < 5; ++i) submit(Op::kWrite);
  for (int i = 0; i < 50; ++i) submit(Op::kRead);
  EXPECT_EQ(51u, arrived());
  reactor_.advance(milliseconds(400));
  EXPECT_EQ(55u, arrived());
}

TEST_F(ThrottleTest, BothDirectionsShareATotalEvenlyWhoeverCameFirst) {
  make({.iops = {.rate = 1000, .burst = 1}});
  for (int i = 0; i < 100; ++i) submit(Op::kWrite);
  for (int i = 0; i < 100; ++i) submit(Op::kRead);
  reactor_.advance(milliseconds(61));
  size_t reads = 0;
  for (const auto& seen : below_->arrived) reads += seen.op == Op::kRead;
  EXPECT_EQ(62u, arrived());
  EXPECT_EQ(31u, reads);
}

TEST_F(ThrottleTest, AFlushNeverWaits) {
  make({.iops = {.rate = 1, .burst = 1}});
  for (int i = 0; i < 3; ++i) submit(Op::kWrite);
  submit(Op::kFlush, 0, 0);
  ASSERT_EQ(2u, arrived());
  EXPECT_EQ(Op::kFlush, below_->arrived[1].op);
}

TEST_F(ThrottleTest, NewLimitsConcernWhatWaitsAlready) {
  make({.iops = {.rate = 1, .burst = 1}});
  for (int i = 0; i < 30; ++i) submit(Op::kWrite);
  EXPECT_EQ(1u, arrived());
  filter_->set_limits({.iops = {.rate = 1000, .burst = 10}});
  reactor_.advance(milliseconds(11));
  EXPECT_GE(arrived(), 11u);
  EXPECT_LT(arrived(), 30u);
  filter_->set_limits({});
  EXPECT_EQ(30u, arrived());
}

TEST_F(ThrottleTest, WhatWaitsGoesAtOnceWhenSomebodyIsInAHurryAndIsPaidForLater) {
  make({.iops = {10, 1}});
  for (uint64_t i = 0; i < 4; ++i) submit(Op::kRead, i * 4096);
  for (uint64_t i = 4; i < 8; ++i) submit(Op::kWrite, i * 4096);
  EXPECT_EQ(1u, arrived());
  filter_->hurry();
  EXPECT_EQ(8u, arrived());
  submit(Op::kRead);
  reactor_.advance(milliseconds(799));
  EXPECT_EQ(8u, arrived());
  reactor_.advance(milliseconds(2));
  EXPECT_EQ(9u, arrived());
}

TEST_F(ThrottleTest, ItsSpecTellsTheLimitsOfNow) {
  make({.bps = {.rate = 5}});
  EXPECT_EQ("throttle:bps=5|null,size=1G", filter_->spec());
  filter_->set_limits({.iops = {.rate = 7, .burst = 9}});
  EXPECT_EQ("throttle:iops=7,iops-burst=9|null,size=1G", filter_->spec());
}

// A consumer that sends the next request when one is done, all inside submit().
TEST_F(ThrottleTest, ARequestFromInsideACompletionDoesNotRecurse) {
  make({.iops = {.rate = 1'000'000, .burst = 100'000}});
  struct Loop {
    Request request;
    ThrottleFilter* filter;
    int left = 50'000;
  } loop;
  loop.filter = filter_.get();
  loop.request.op = Op::kRead;
  loop.request.length = 512;
  loop.request.done = [](Request& r, int) {
    auto& l = reinterpret_cast<Loop&>(r);
    if (--l.left > 0) l.filter->submit(r);
  };
  filter_->submit(loop.request);
  EXPECT_EQ(0, loop.left);
  EXPECT_EQ(50'000u, arrived());
}

TEST(ThrottleSpec, RefusesABurstWithoutItsRate) {
  Logger log("test", LogLevel::kWarning);
  ManualReactor reactor;
  auto node =
      open_graph(parse_graph("throttle:iops-burst=5|null,size=1M").value(), {reactor, log, {}});
  ASSERT_FALSE(node.ok());
  EXPECT_EQ("throttle: key 'iops-burst' without 'iops' has no meaning", node.error().message());
}

}  // namespace
}  // namespace vbdkit::drivers
