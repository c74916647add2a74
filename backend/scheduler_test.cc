// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/scheduler.h"

#include <gtest/gtest.h>

#include <deque>
#include <numeric>
#include <random>

#include "backend/manual_reactor.h"
#include "backend/overlap_filter.h"

namespace vbdkit {
namespace {

using drivers::Op;
using drivers::Request;

// Holds requests until the test completes them.
class HeldNode final : public drivers::Node {
 public:
  HeldNode() {
    info_.size = Bytes{1 << 30};
    info_.request_alignment = 512;
  }
  std::string_view driver() const override { return "held"; }
  std::string spec() const override { return "held"; }
  const drivers::NodeInfo& info() const override { return info_; }
  void submit(Request& r) override {
    if (inline_error >= 0)
      r.done(r, inline_error);
    else
      held.push_back(&r);
  }
  void block_status(drivers::StatusRequest&) override {}
  Result<void> refresh_size() override { return {}; }
  Result<void> resize(Bytes) override { return {}; }
  Result<void> reopen(bool) override { return {}; }
  void hurry() override {
    ++hurried;
    if (completes_in_a_hurry)
      while (!held.empty()) complete(0);
  }

  void complete(size_t i, int error = 0) {
    Request* r = held.at(i);
    held.erase(held.begin() + static_cast<std::ptrdiff_t>(i));
    r->done(*r, error);
  }

  drivers::NodeInfo info_;
  std::vector<Request*> held;
  int inline_error = -1;
  unsigned hurried = 0;
  bool completes_in_a_hurry = false;
};

struct Client : Request {
  Client(Op o, uint64_t off, uint64_t len, uint8_t f = 0) {
    op = o;
    flags = f;
    offset = off;
    length = len;
    vec = {buffer, len};
    if (o == Op::kRead || o == Op::kWrite) {
      iov = &vec;
      iov_count = 1;
    }
    done = [](Request& r, int result) {
      auto& c = static_cast<Client&>(r);
      ++c.completions;
      c.error = result;
    };
  }
  iovec vec{};
  char buffer[8];  // its address stands for the data; nobody reads it
  int completions = 0;
  int error = -1;
};

class SchedulerTest : public ::testing::Test {
 protected:
  ManualReactor reactor;
  HeldNode node;
  std::unique_ptr<Scheduler> scheduler = Scheduler::create(reactor, node);

  void go(std::initializer_list<Client*> clients) {
    for (Client* c : clients) scheduler->submit(*c);
    reactor.turn();
  }
};

TEST_F(SchedulerTest, SendsIndependentRequestsOfATurnTogether) {
  Client a(Op::kRead, 0, 4096), b(Op::kWrite, 1 << 20, 4096);
  scheduler->submit(a);
  scheduler->submit(b);
  EXPECT_TRUE(node.held.empty()) << "nothing is sent before the turn ends";
  reactor.turn();
  ASSERT_EQ(2u, node.held.size());
  node.complete(1);
  EXPECT_EQ(0, a.completions);
  EXPECT_EQ(1, b.completions);
  node.complete(0);
  EXPECT_EQ(1, a.completions);
  EXPECT_EQ(0, a.error);
  EXPECT_TRUE(scheduler->idle());
}

TEST_F(SchedulerTest, AnOverlappingWriteWaitsForTheEarlierOne) {
  Client a(Op::kWrite, 4096, 4096), b(Op::kWrite, 4608, 512), c(Op::kRead, 8191 - 511, 512);
  go({&a, &b, &c});
  ASSERT_EQ(1u, node.held.size());
  EXPECT_EQ(4096u, node.held[0]->offset);
  node.complete(0);
  reactor.turn();
  ASSERT_EQ(2u, node.held.size()) << "the write and the read do not overlap each other";
}

TEST_F(SchedulerTest, ManyWritesOfOneSectorRunOneAfterTheOtherInOrder) {
  std::deque<Client> writes;
  for (int i = 0; i < 64; ++i) scheduler->submit(writes.emplace_back(Op::kWrite, 512, 512));
  for (int i = 0; i < 64; ++i) {
    reactor.turn();
    ASSERT_EQ(1u, node.held.size()) << i;
    EXPECT_EQ(&writes[static_cast<size_t>(i)].vec, node.held[0]->iov);
    node.complete(0);
  }
  EXPECT_TRUE(scheduler->idle());
}

TEST_F(SchedulerTest, ReadsOfTheSameRangeDoNotWait) {
  Client a(Op::kRead, 0, 4096), b(Op::kRead, 0, 4096);
  go({&a, &b});
  EXPECT_EQ(2u, node.held.size());
}

TEST_F(SchedulerTest, AReadWaitsForADiscardOfItsRangeOfAnySize) {
  Client a(Op::kDiscard, 0, 512 << 20), b(Op::kRead, 300 << 20, 4096);
  go({&a, &b});
  ASSERT_EQ(1u, node.held.size());
  EXPECT_EQ(Op::kDiscard, node.held[0]->op);
  node.complete(0);
  reactor.turn();
  EXPECT_EQ(1u, node.held.size());
}

TEST_F(SchedulerTest, MergesAdjacentRequestsOfOneTurnAndCompletesEach) {
  Client a(Op::kWrite, 0, 4096), b(Op::kWrite, 4096, 4096), c(Op::kWrite, 8192, 4096);
  Client other(Op::kRead, 12288, 4096);
  go({&a, &b, &other, &c});
  ASSERT_EQ(2u, node.held.size());
  EXPECT_EQ(0u, node.held[0]->offset);
  EXPECT_EQ(12288u, node.held[0]->length);
  EXPECT_EQ(3u, node.held[0]->iov_count);
  EXPECT_EQ(2u, scheduler->counters().merged);
  node.complete(0);
  EXPECT_EQ(1, a.completions + b.completions - c.completions);
  EXPECT_EQ(0, c.error);
}

TEST_F(SchedulerTest, MergesTwoInterleavedSequentialStreams) {
  std::deque<Client> all;
  for (uint64_t i = 0; i < 8; ++i) {
    scheduler->submit(all.emplace_back(Op::kRead, i * 4096, 4096));
    scheduler->submit(all.emplace_back(Op::kRead, (64 << 20) + i * 4096, 4096));
  }
  reactor.turn();
  EXPECT_EQ(2u, node.held.size());
}

TEST_F(SchedulerTest, DoesNotMergeWhatDiffersInDurability) {
  Client a(Op::kWrite, 0, 4096), b(Op::kWrite, 4096, 4096, drivers::kFua);
  go({&a, &b});
  EXPECT_EQ(2u, node.held.size());
}

TEST_F(SchedulerTest, RepeatsTheMembersOfAFailedMergeSoThatOnlyTheBadOneFails) {
  Client a(Op::kRead, 0, 4096), b(Op::kRead, 4096, 4096);
  go({&a, &b});
  ASSERT_EQ(1u, node.held.size());
  node.complete(0, EIO);
  EXPECT_EQ(0, a.completions + b.completions);
  reactor.turn();
  ASSERT_EQ(2u, node.held.size());
  node.complete(1, EIO);
  node.complete(0, 0);
  EXPECT_EQ(0, a.error);
  EXPECT_EQ(EIO, b.error);
  EXPECT_TRUE(scheduler->idle());
}

TEST_F(SchedulerTest, ABarrierWaitsForAllEarlierAndHoldsBackAllLater) {
  Client a(Op::kRead, 0, 512), barrier(Op::kWrite, 4096, 512, kBarrier | kPreflush | drivers::kFua);
  Client late(Op::kRead, 1 << 20, 512);
  go({&a, &barrier, &late});
  ASSERT_EQ(1u, node.held.size());
  EXPECT_EQ(0u, node.held[0]->offset);
  node.complete(0);
  reactor.turn();
  ASSERT_EQ(1u, node.held.size());
  EXPECT_EQ(Op::kFlush, node.held[0]->op);
  node.complete(0);
  reactor.turn();
  ASSERT_EQ(1u, node.held.size());
  EXPECT_EQ(Op::kWrite, node.held[0]->op);
  EXPECT_EQ(drivers::kFua, node.held[0]->flags) << "nodes see only their own flags";
  node.complete(0);
  reactor.turn();
  EXPECT_EQ(1, barrier.completions);
  ASSERT_EQ(1u, node.held.size());
  EXPECT_EQ(1u << 20, node.held[0]->offset);
}

TEST_F(SchedulerTest, AFailedPreflushFailsItsWriteWhichIsNeverSent) {
  Client w(Op::kWrite, 0, 512, kPreflush);
  go({&w});
  ASSERT_EQ(Op::kFlush, node.held.at(0)->op);
  node.complete(0, ENOSPC);
  reactor.turn();
  EXPECT_EQ(ENOSPC, w.error);
  EXPECT_TRUE(node.held.empty());
}

TEST_F(SchedulerTest, AFlushOvertakesWritesThatAreNotComplete) {
  Client w(Op::kWrite, 0, 512), f(Op::kFlush, 0, 0);
  go({&w, &f});
  EXPECT_EQ(2u, node.held.size());
}

TEST_F(SchedulerTest, SplitsWhatExceedsTheNodesTransferLimit) {
  node.info_.max_transfer = 8192;
  Client w(Op::kWrite, 4096, 20480);
  go({&w});
  uint64_t expected_offset = 4096;
  for (uint64_t length : {8192u, 8192u, 4096u}) {
    ASSERT_EQ(1u, node.held.size());
    EXPECT_EQ(expected_offset, node.held[0]->offset);
    EXPECT_EQ(length, node.held[0]->length);
    EXPECT_EQ(length, node.held[0]->iov[0].iov_len);
    EXPECT_EQ(w.buffer + (expected_offset - 4096), node.held[0]->iov[0].iov_base);
    expected_offset += length;
    EXPECT_EQ(0, w.completions);
    node.complete(0);
  }
  EXPECT_EQ(1, w.completions);
}

TEST_F(SchedulerTest, PauseDrainsHoldsNewRequestsAndResumeSendsThem) {
  Client a(Op::kRead, 0, 512), b(Op::kRead, 512, 512);
  go({&a});
  int drained = 0;
  scheduler->pause([&] { ++drained; });
  go({&b});
  EXPECT_EQ(0, drained);
  node.complete(0);
  reactor.turn();
  EXPECT_EQ(1, drained);
  EXPECT_TRUE(node.held.empty());
  scheduler->pause([&] { ++drained; });
  reactor.turn();
  EXPECT_EQ(2, drained);
  scheduler->resume();
  reactor.turn();
  EXPECT_TRUE(node.held.empty()) << "pauses nest";
  scheduler->resume();
  reactor.turn();
  EXPECT_EQ(1u, node.held.size());
  EXPECT_EQ(1, drained - 1);
}

TEST_F(SchedulerTest, APauseDoesNotWaitForLimits) {
  Client a(Op::kRead, 0, 512), b(Op::kWrite, 0, 512);
  go({&a, &b});
  node.completes_in_a_hurry = true;
  int drained = 0;
  scheduler->pause([&] { ++drained; });
  EXPECT_EQ(0u, node.hurried);
  reactor.turn();
  EXPECT_EQ(1, drained);
  EXPECT_EQ(1u, node.hurried);
  EXPECT_EQ(0, b.completions) << "it waits for the resume";
  scheduler->pause([&] { ++drained; });
  reactor.turn();
  EXPECT_EQ(1u, node.hurried) << "for nobody";
}

TEST_F(SchedulerTest, ANodeThatCompletesAtOnceAndAConsumerThatComesBackAtOnceAreFine) {
  node.inline_error = 0;
  struct Loop : Client {
    explicit Loop(Scheduler& s) : Client(Op::kRead, 0, 512), scheduler(s) {
      done = [](Request& r, int) {
        auto& l = static_cast<Loop&>(r);
        if (++l.completions < 1000) l.scheduler.submit(l);
      };
    }
    Scheduler& scheduler;
  } loop(*scheduler);
  go({&loop});
  EXPECT_EQ(1000, loop.completions);
  EXPECT_TRUE(scheduler->idle());
}

// Random requests, random completion order: overlapping ones must reach the node in order.
TEST_F(SchedulerTest, NeverHasTwoConflictingRequestsInFlight) {
  std::mt19937_64 rng(std::random_device{}());
  const uint64_t seed = rng();
  rng.seed(seed);
  SCOPED_TRACE(seed);
  std::deque<Client> all;
  for (int round = 0; round < 3000; ++round) {
    const uint64_t offset = rng() % 64 * 512;
    const uint64_t length = (1 + rng() % 16) * 512;
    const Op op = std::array{Op::kRead, Op::kWrite, Op::kDiscard, Op::kFlush}[rng() % 4];
    const uint8_t flags = rng() % 20 == 0 && op != Op::kFlush ? kBarrier : 0;
    if (op == Op::kFlush)
      scheduler->submit(all.emplace_back(op, 0, 0));
    else
      scheduler->submit(all.emplace_back(op, offset, length, flags));
    if (rng() % 3 == 0) reactor.turn();
    for (size_t i = 0; i < node.held.size(); ++i)
      for (size_t j = i + 1; j < node.held.size(); ++j) {
        const Request &x = *node.held[i], &y = *node.held[j];
        if (x.op == Op::kFlush || y.op == Op::kFlush) continue;
        if (x.op == Op::kRead && y.op == Op::kRead) continue;
        ASSERT_FALSE(x.offset < y.offset + y.length && y.offset < x.offset + x.length);
      }
    while (!node.held.empty() && rng() % 2 == 0)
      node.complete(rng() % node.held.size(), rng() % 50 == 0 ? EIO : 0);
  }
  do {
    reactor.turn();
    while (!node.held.empty()) node.complete(0);
    reactor.turn();
  } while (!node.held.empty());
  EXPECT_TRUE(scheduler->idle());
  for (const Client& c : all) ASSERT_EQ(1, c.completions);
}

TEST(OverlapFilter, NeverMissesAConflict) {
  std::mt19937_64 rng(7);
  OverlapFilter filter;
  struct Range {
    uint64_t offset, length;
    bool writes;
  };
  std::vector<Range> live;
  for (int i = 0; i < 20000; ++i) {
    const uint64_t span = rng() % 10 == 0 ? 64 << 20 : 128 << 10;
    Range r{rng() % (1 << 30), 1 + rng() % span, rng() % 2 == 0};
    for (const Range& o : live) {
      const bool overlap = r.offset < o.offset + o.length && o.offset < r.offset + r.length;
      if (overlap && (r.writes || o.writes)) {
        ASSERT_TRUE(filter.may_conflict(r.offset, r.length, r.writes));
      }
    }
    filter.add(r.offset, r.length, r.writes);
    live.push_back(r);
    if (live.size() > 16) {
      const size_t victim = rng() % live.size();
      filter.remove(live[victim].offset, live[victim].length, live[victim].writes);
      live.erase(live.begin() + static_cast<std::ptrdiff_t>(victim));
    }
  }
  for (const Range& r : live) filter.remove(r.offset, r.length, r.writes);
  for (uint64_t off = 0; off < (1 << 30); off += 4096)
    ASSERT_FALSE(filter.may_conflict(off, 4096, true)) << "what was added is gone again";
}

}  // namespace
}  // namespace vbdkit
