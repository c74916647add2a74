// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The mirror filter beneath a real scheduler: guests write at random while a job copies, requests
// complete in any order and fail at any point; in the end both sides hold the same bytes.
#include "drivers/jobs/mirror_filter.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <random>

#include "backend/manual_reactor.h"
#include "backend/scheduler.h"
#include "drivers/iov.h"

namespace vbdkit::drivers {
namespace {

constexpr uint64_t kSize = 2 << 20;
constexpr uint64_t kChunk = 64 << 10;
using Mode = MirrorOptions::Mode;

// Memory in two layers, as a leaf over its parent; a held request is carried out when it is
// released.
class LayeredNode final : public Node {
 public:
  explicit LayeredNode(std::vector<uint8_t>& parent)
      : parent_(parent), leaf_(kSize), own_(kSize / kSectorSize) {
    info_.size = Bytes{kSize};
    info_.request_alignment = kSectorSize;
  }

  std::string_view driver() const override { return "layered"; }
  std::string spec() const override { return "layered"; }
  const NodeInfo& info() const override { return info_; }
  void submit(Request& request) override { held_.push_back(&request); }
  void block_status(StatusRequest& request) override {
    for (uint64_t at = request.offset; at < request.offset + request.length; at += kSectorSize) {
      const bool own = own_[at / kSectorSize];
      const bool zero = !own && all_zero(reinterpret_cast<const char*>(&parent_[at]), kSectorSize);
      if (!request.extents.empty() && request.extents.back().own == own &&
          request.extents.back().zero == zero)
        request.extents.back().length += kSectorSize;
      else if (request.extents.size() == request.max_extents)
        break;
      else
        request.extents.push_back({kSectorSize, own || !zero, zero, own});
    }
    request.done(0);
  }
  Result<void> refresh_size() override { return {}; }
  Result<void> resize(Bytes) override { return {}; }
  Result<void> reopen(bool) override { return {}; }

  // Fails requests from now on, at random, of the given kinds.
  void fail(std::function<int(const Request&)> judge) { judge_ = std::move(judge); }
  bool release(std::mt19937_64& random) {
    if (held_.empty()) return false;
    std::swap(held_[random() % held_.size()], held_.back());
    Request& request = *held_.back();
    held_.pop_back();
    const int error = judge_ ? judge_(request) : 0;
    if (error == 0) execute(request);
    request.done(request, error);
    return true;
  }
  std::vector<uint8_t> content() const {
    std::vector<uint8_t> all(kSize);
    for (uint64_t at = 0; at < kSize; at += kSectorSize)
      std::copy_n(&layer(at)[at], kSectorSize, &all[at]);
    return all;
  }
  std::vector<uint8_t>& leaf() { return leaf_; }
  void own_all() { own_.assign(own_.size(), true); }
  bool own(uint64_t offset) const { return own_[offset / kSectorSize]; }

 private:
  const std::vector<uint8_t>& layer(uint64_t at) const {
    return own_[at / kSectorSize] ? leaf_ : parent_;
  }
  void execute(const Request& request) {
    for (uint64_t at = request.offset; at < request.offset + request.length; at += kSectorSize) {
      const uint64_t skip = at - request.offset;
      switch (request.op) {
        case Op::kRead:
          copy_to_iov(request.iov, skip, reinterpret_cast<const char*>(&layer(at)[at]),
                      kSectorSize);
          break;
        case Op::kWrite:
          copy_from_iov(request.iov, skip, reinterpret_cast<char*>(&leaf_[at]), kSectorSize);
          own_[at / kSectorSize] = true;
          break;
        case Op::kWriteZeroes:
        case Op::kDiscard:
          std::fill_n(&leaf_[at], kSectorSize, uint8_t{0});
          own_[at / kSectorSize] = true;
          break;
        case Op::kFlush:
        case Op::kCopy:
          break;
      }
    }
  }

  std::vector<uint8_t>& parent_;
  std::vector<uint8_t> leaf_;
  std::vector<bool> own_;
  NodeInfo info_;
  std::vector<Request*> held_;
  std::function<int(const Request&)> judge_;
};

class Borrow final : public Filter {
 public:
  explicit Borrow(Node& node) : Filter(nullptr), node_(node) {}
  std::string_view driver() const override { return "borrow"; }
  std::string spec() const override { return node_.spec(); }
  const NodeInfo& info() const override { return node_.info(); }
  void submit(Request& request) override { node_.submit(request); }
  void block_status(StatusRequest& request) override { node_.block_status(request); }

 private:
  Node& node_;
};

struct GuestIo : Request {
  std::vector<uint8_t> memory;
  std::vector<uint8_t> expected;  // of a read
  iovec vector{};
  bool finished = false;
  int error = -1;
};

struct CopyIo : Request {
  bool busy = false;
  int error = 0;
};

class MirrorTest : public testing::TestWithParam<uint64_t> {
 protected:
  MirrorTest() : random_(GetParam()) {
    for (uint8_t& byte : base_) byte = static_cast<uint8_t>(random_());
    std::fill_n(&base_[kSize / 4], kSize / 4, uint8_t{0});
  }

  void start(MirrorOptions options) {
    options.chunk = kChunk;
    options.transfer = 2 * kChunk;
    Node& target = options.mode == Mode::kPullIn ? static_cast<Node&>(disk_) : target_;
    model_ = disk_.content();
    filter_ = std::make_unique<MirrorFilter>(std::make_unique<Borrow>(disk_), target, options,
                                             [this] { ++failures_; });
    filter_->mark(0, kSize);
    scheduler_ = Scheduler::create(reactor_, *filter_);
  }

  void guest_request() {
    const uint64_t length = kSectorSize * (1 + random_() % 200);
    const uint64_t offset = align_down(random_() % (kSize - length), kSectorSize);
    GuestIo& io = guests_.emplace_back();
    constexpr Op kOps[] = {Op::kWrite,   Op::kWrite, Op::kWrite,      Op::kRead,
                           Op::kDiscard, Op::kFlush, Op::kWriteZeroes};
    io.op = kOps[random_() % std::size(kOps)];
    if (io.op != Op::kFlush) {
      io.offset = offset;
      io.length = length;
    }
    if (io.op == Op::kRead || io.op == Op::kWrite) {
      io.memory.resize(length);
      io.vector = {io.memory.data(), length};
      io.iov = &io.vector;
      io.iov_count = 1;
    }
    const auto at = model_.begin() + static_cast<ptrdiff_t>(io.offset);
    if (io.op == Op::kWrite) {
      for (uint8_t& byte : io.memory) byte = static_cast<uint8_t>(random_());
      std::copy(io.memory.begin(), io.memory.end(), at);
    } else if (io.op == Op::kRead) {
      io.expected.assign(at, at + static_cast<ptrdiff_t>(length));
    } else if (io.op != Op::kFlush) {
      std::fill_n(at, io.length, uint8_t{0});
    }
    io.done = [](Request& request, int error) {
      auto& self = static_cast<GuestIo&>(request);
      self.finished = true;
      self.error = error;
    };
    scheduler_->submit(io);
  }

  void look_at_guests() {
    std::erase_if(guests_, [this](const GuestIo& io) {
      if (!io.finished) return false;
      if (io.error != 0) ++guest_errors_;
      if (check_reads_ && io.error == 0 && io.op == Op::kRead) {
        EXPECT_TRUE(io.memory == io.expected) << "a guest read something else";
      }
      return true;
    });
  }

  // Scribbles over what a guest has given for writing, as guests do.
  void scribble() {
    for (GuestIo& io : guests_)
      if (io.op == Op::kWrite && random_() % 4 == 0)
        for (uint8_t& byte : io.memory) ++byte;
  }

  void copy_request() {
    for (CopyIo& io : copies_) {
      if (io.busy) continue;
      const auto run = filter_->todo().next(cursor_, 2 * kChunk);
      cursor_ = run ? run->offset + run->length : 0;
      if (!run) return;
      uint64_t length = run->length;
      if (const uint64_t quiet = filter_->quiet_from(run->offset))
        length = std::min(kSize - run->offset, align_up(quiet, kChunk));
      static_cast<Request&>(io) = Request{};
      io.op = Op::kCopy;
      io.offset = run->offset;
      io.length = length;
      io.busy = true;
      io.done = [](Request& request, int error) {
        static_cast<CopyIo&>(request).busy = false;
        static_cast<CopyIo&>(request).error = error;
      };
      scheduler_->submit(io);
      return;
    }
  }

  // One random step; false where nothing could be done.
  bool step(bool guests, bool copies) {
    switch (random_() % 6) {
      case 0:
        if (guests && guests_.size() < 24) guest_request();
        break;
      case 1:
        if (copies) copy_request();
        break;
      case 2:
        reactor_.turn();
        break;
      case 3:
        target_.release(random_);
        break;
      default:
        disk_.release(random_);
        break;
    }
    look_at_guests();
    return filter_->failure() == std::nullopt;
  }

  void drain() {
    for (;;) {
      reactor_.turn();
      const bool released = disk_.release(random_) || target_.release(random_);
      look_at_guests();
      if (!released && scheduler_->idle()) break;
    }
    EXPECT_TRUE(guests_.empty());
  }

  void run_to_the_end() {
    uint64_t steps = 0;
    while (!filter_->todo().none() && step(true, true)) {
      ASSERT_LT(++steps, 400000u) << "the copy does not converge under load";
    }
    // In the end everything goes to both.
    filter_->flush_both(true);
    for (int i = 0; i < 500; ++i) step(true, false);
    while (!filter_->todo().none() && step(false, true)) {
    }
    drain();
  }

  std::mt19937_64 random_;
  ManualReactor reactor_;
  std::vector<uint8_t> base_ = std::vector<uint8_t>(kSize);
  std::vector<uint8_t> nothing_ = std::vector<uint8_t>(kSize);
  LayeredNode disk_{base_};
  LayeredNode target_{nothing_};
  std::vector<uint8_t> model_;
  std::unique_ptr<MirrorFilter> filter_;
  std::unique_ptr<Scheduler> scheduler_;
  std::list<GuestIo> guests_;
  CopyIo copies_[3];
  uint64_t cursor_ = 0;
  bool check_reads_ = true;
  int failures_ = 0;
  unsigned guest_errors_ = 0;
};

TEST_P(MirrorTest, TheTargetBecomesTheDiskUnderLoad) {
  const bool zero = random_() % 2 == 0;
  if (!zero) {
    for (uint8_t& byte : target_.leaf()) byte = 0xee;
    target_.own_all();
  }
  start({.target_zero = zero});
  run_to_the_end();
  EXPECT_TRUE(disk_.content() == model_);
  EXPECT_TRUE(target_.content() == disk_.content());
  EXPECT_EQ(0u, guest_errors_);
  EXPECT_EQ(0, failures_);
}

TEST_P(MirrorTest, TheSameBytesGoToBothWhateverTheGuestDoesToItsMemory) {
  check_reads_ = false;
  start({});
  for (int i = 0; i < 20000 && !filter_->todo().none(); ++i) {
    step(true, true);
    if (i % 3 == 0) scribble();
  }
  for (int i = 0; i < 1000; ++i) {
    step(true, false);
    scribble();
  }
  while (!filter_->todo().none()) step(false, true);
  drain();
  EXPECT_TRUE(target_.content() == disk_.content());
}

TEST_P(MirrorTest, WhatTheDiskRefusesIsCopiedAgain) {
  check_reads_ = false;
  uint64_t calls = 0;
  disk_.fail([&](const Request& r) { return r.op != Op::kRead && ++calls % 5 == 0 ? EIO : 0; });
  start({.disk_first = random_() % 2 == 0, .target_zero = true});
  for (int i = 0; i < 6000; ++i) step(true, true);
  disk_.fail(nullptr);
  while (!filter_->todo().none()) step(false, true);
  drain();
  EXPECT_GT(guest_errors_, 0u);
  EXPECT_TRUE(target_.content() == disk_.content());
}

TEST_P(MirrorTest, ATargetThatFailsEndsTheMirroringAndNoGuestsRequest) {
  const uint64_t after = random_() % 20;
  uint64_t calls = 0;
  target_.fail([&](const Request&) { return ++calls > after ? ENOSPC : 0; });
  start({.mode = random_() % 2 == 0 ? Mode::kFollow : Mode::kBeforeWrite});
  filter_->flush_both(true);
  for (int i = 0; i < 5000; ++i) step(true, filter_->failure() == std::nullopt);
  drain();
  EXPECT_EQ(0u, guest_errors_);
  EXPECT_EQ(1, failures_);
  ASSERT_TRUE(filter_->failure());
  EXPECT_EQ(ENOSPC, filter_->failure()->sys_errno());
  EXPECT_TRUE(disk_.content() == model_);
}

TEST_P(MirrorTest, BeforeWriteKeepsThePointInTime) {
  for (uint8_t& byte : target_.leaf()) byte = 0xee;
  target_.own_all();
  start({.mode = Mode::kBeforeWrite});
  const std::vector<uint8_t> then = disk_.content();
  run_to_the_end();
  EXPECT_TRUE(target_.content() == then);
  EXPECT_TRUE(disk_.content() == model_);
  EXPECT_EQ(0u, guest_errors_);
}

TEST_P(MirrorTest, OnlyWhatTheLeafHoldsGoesToItsParent) {
  model_ = disk_.content();
  MirrorOptions options{
      .own_only = true, .disk_first = true, .chunk = kChunk, .transfer = 2 * kChunk};
  filter_ = std::make_unique<MirrorFilter>(std::make_unique<Borrow>(disk_), target_, options,
                                           [this] { ++failures_; });
  // What the parent has, the target has.
  target_.leaf() = base_;
  target_.own_all();
  filter_->mark(0, kSize);
  scheduler_ = Scheduler::create(reactor_, *filter_);
  for (int i = 0; i < 2000; ++i) step(true, false);
  run_to_the_end();
  EXPECT_TRUE(target_.content() == model_);
  EXPECT_TRUE(disk_.content() == model_);
}

TEST_P(MirrorTest, PullingInMakesTheLeafWhole) {
  start({.mode = Mode::kPullIn});
  run_to_the_end();
  EXPECT_TRUE(disk_.content() == model_);
  // Without its parent it reads the same.
  base_.assign(kSize, 0);
  EXPECT_TRUE(disk_.content() == model_);
}

TEST_P(MirrorTest, AGuestWaitsForOneCopyAtMost) {
  start({});
  copy_request();
  reactor_.turn();
  // The copy of the first chunks is under way; what lies elsewhere passes, what overlaps waits.
  GuestIo elsewhere;
  GuestIo overlaps;
  for (GuestIo* io : {&elsewhere, &overlaps}) {
    io->op = Op::kRead;
    io->memory.resize(kSectorSize);
    io->vector = {io->memory.data(), kSectorSize};
    io->iov = &io->vector;
    io->iov_count = 1;
    io->length = kSectorSize;
    io->done = [](Request& request, int) { static_cast<GuestIo&>(request).finished = true; };
  }
  elsewhere.offset = kSize - kSectorSize;
  scheduler_->submit(elsewhere);
  scheduler_->submit(overlaps);
  reactor_.turn();
  EXPECT_EQ(1u, scheduler_->counters().delayed);
  drain();
  EXPECT_TRUE(elsewhere.finished);
  EXPECT_TRUE(overlaps.finished);
}

INSTANTIATE_TEST_SUITE_P(Seeds, MirrorTest, testing::Range(uint64_t{1}, uint64_t{5}));

TEST(ChunkBitmap, MarksWhatIsTouchedAndClearsWhatIsCovered) {
  ChunkBitmap map(10 * kChunk - 512, kChunk);
  EXPECT_TRUE(map.none());
  map.mark(kChunk - 1, 2);
  EXPECT_EQ(2 * kChunk, map.marked());
  EXPECT_TRUE(map.all(0, 2 * kChunk));
  EXPECT_FALSE(map.any(2 * kChunk, kChunk));
  map.clear(1, 2 * kChunk - 1);
  EXPECT_EQ(kChunk, map.marked());
  EXPECT_EQ(0u, map.next(0, kChunk)->offset);
  map.clear(0, kChunk);
  EXPECT_TRUE(map.none());
  EXPECT_FALSE(map.next(0, kChunk));
  map.mark(0, map.size());
  EXPECT_EQ(10 * kChunk, map.marked());
  const auto run = map.next(8 * kChunk, 4 * kChunk);
  ASSERT_TRUE(run);
  EXPECT_EQ(2 * kChunk - 512, run->length);
  map.clear(8 * kChunk, 2 * kChunk - 512);
  EXPECT_FALSE(map.next(8 * kChunk, kChunk));
}

TEST(ChunkBitmap, AgreesWithAPlainOne) {
  std::mt19937_64 random(7);
  constexpr uint64_t kSmall = 4096;
  ChunkBitmap map(300 * kSmall, kSmall);
  std::vector<bool> plain(300);
  for (int i = 0; i < 2000; ++i) {
    const uint64_t first = random() % 300;
    const uint64_t count = 1 + random() % (300 - first);
    const bool mark = random() % 2 == 0;
    if (mark)
      map.mark(first * kSmall, count * kSmall);
    else
      map.clear(first * kSmall, count * kSmall);
    std::fill_n(plain.begin() + static_cast<ptrdiff_t>(first), count, mark);
    ASSERT_EQ(static_cast<uint64_t>(std::count(plain.begin(), plain.end(), true)) * kSmall,
              map.marked());
    const uint64_t from = random() % 300;
    const auto expected =
        std::find(plain.begin() + static_cast<ptrdiff_t>(from), plain.end(), true);
    const auto run = map.next(from * kSmall, 300 * kSmall);
    ASSERT_EQ(expected != plain.end(), run.has_value());
    if (run) {
      ASSERT_EQ(static_cast<uint64_t>(expected - plain.begin()) * kSmall, run->offset);
      const auto stop = std::find(expected, plain.end(), false);
      ASSERT_EQ(static_cast<uint64_t>(stop - expected) * kSmall, run->length);
    }
  }
}

}  // namespace
}  // namespace vbdkit::drivers
