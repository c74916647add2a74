// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What io/reactor.h promises of file operations, on every engine.
#include <algorithm>
#include <array>
#include <deque>
#include <vector>

#include "io/test_reactor.h"

namespace vbdkit::io {
namespace {

TEST_P(ReactorTest, WhatWasWrittenIsRead) {
  std::string out = "what was written";
  std::string in(out.size(), ' ');
  TestFileOp read(file_.get(), FileOp::Kind::kRead, [&](int64_t result) {
    EXPECT_EQ(static_cast<int64_t>(out.size()), result);
    reactor_->stop();
  });
  TestFileOp sync(file_.get(), FileOp::Kind::kDataSync, [&](int64_t result) {
    EXPECT_EQ(0, result);
    read.with(in.data(), in.size(), 5000);
    reactor_->submit(read);
  });
  TestFileOp write(file_.get(), FileOp::Kind::kWrite, [&](int64_t result) {
    EXPECT_EQ(static_cast<int64_t>(out.size()), result);
    reactor_->submit(sync);
  });
  write.with(out.data(), out.size(), 5000);
  write.rw_flags = RWF_DSYNC;
  reactor_->submit(write);
  run();
  EXPECT_EQ(out, in);
}

TEST_P(ReactorTest, ABulkTransferMovesTheSameBytes) {
  std::string out(512 << 10, ' ');
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<char>('a' + i / 4096 % 26);
  std::string in(out.size(), ' ');
  TestFileOp read(file_.get(), FileOp::Kind::kRead, [&](int64_t result) {
    EXPECT_EQ(static_cast<int64_t>(out.size()), result);
    reactor_->stop();
  });
  read.bulk = true;
  read.copies_only = true;
  TestFileOp write(file_.get(), FileOp::Kind::kWrite, [&](int64_t result) {
    EXPECT_EQ(static_cast<int64_t>(out.size()), result);
    read.with(in.data(), in.size(), 4096);
    reactor_->submit(read);
  });
  write.with(out.data(), out.size(), 4096);
  write.bulk = true;
  reactor_->submit(write);
  run();
  EXPECT_EQ(out, in);
}

// How they are done depends on their number and size.
TEST_P(ReactorTest, CopiesArriveWhetherTheyAreFewOrManySmallOrLarge) {
  constexpr size_t kSmall = 600, kSmallBytes = 512, kLargeBytes = 256 << 10;
  std::string content(kSmall * kSmallBytes + kLargeBytes, ' ');
  for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>('a' + i % 19);
  std::deque<TestFileOp> ops;
  size_t left = kSmall + 1;
  for (size_t i = 0; i <= kSmall; ++i) {
    const size_t bytes = i < kSmall ? kSmallBytes : kLargeBytes;
    ops.emplace_back(file_.get(), FileOp::Kind::kWrite, [&, bytes](int64_t result) {
      EXPECT_EQ(static_cast<int64_t>(bytes), result);
      if (--left == 0) reactor_->stop();
    });
    ops.back().with(content.data() + i * kSmallBytes, bytes, i * kSmallBytes);
    ops.back().copies_only = true;
    reactor_->submit(ops.back());
  }
  run();
  std::string found(content.size(), ' ');
  ASSERT_EQ(static_cast<ssize_t>(found.size()), pread(file_.get(), found.data(), found.size(), 0));
  EXPECT_EQ(content, found);
}

TEST_P(ReactorTest, VectorsAndShortCountsAreReportedAsTheyAre) {
  std::array<char, 3> a{};
  std::array<char, 8192> b{};
  const iovec pieces[2] = {{a.data(), a.size()}, {b.data(), b.size()}};
  TestFileOp read(file_.get(), FileOp::Kind::kRead, [&](int64_t result) {
    EXPECT_EQ(4096, result);
    reactor_->stop();
  });
  read.iov = pieces;
  read.iov_count = 2;
  read.offset = (1 << 20) - 4096;
  reactor_->submit(read);
  run();
}

TEST_P(ReactorTest, FallocatePunchesAHole) {
  std::string data(65536, 'x');
  ASSERT_EQ(65536, pwrite(file_.get(), data.data(), data.size(), 0));
  int64_t result = -1;
  TestFileOp punch(file_.get(), FileOp::Kind::kFallocate, [&](int64_t r) {
    result = r;
    reactor_->stop();
  });
  punch.fallocate_mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  punch.offset = 4096;
  punch.length = 8192;
  reactor_->submit(punch);
  run();
  ASSERT_EQ(0, result);
  ASSERT_EQ(65536, pread(file_.get(), data.data(), data.size(), 0));
  EXPECT_EQ(std::string(8192, '\0'), data.substr(4096, 8192));
  EXPECT_EQ('x', data[4095]);
  EXPECT_EQ('x', data[4096 + 8192]);
}

TEST_P(ReactorTest, AFailureIsANegativeErrno) {
  int left = 3;
  const auto expect = [&](int64_t wanted) {
    return [&, wanted](int64_t result) {
      EXPECT_EQ(wanted, result);
      if (--left == 0) reactor_->stop();
    };
  };
  std::array<char, 512> memory{};
  TestFileOp closed(1'000'000, FileOp::Kind::kRead, expect(-EBADF));
  closed.with(memory.data(), memory.size(), 0);
  Fd read_only(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  TestFileOp refused(read_only.get(), FileOp::Kind::kWrite, expect(-EBADF));
  refused.with(memory.data(), memory.size(), 0);
  TestFileOp fault(file_.get(), FileOp::Kind::kRead, expect(-EFAULT));
  fault.with(reinterpret_cast<void*>(8), 512, 0);
  for (FileOp* op : {static_cast<FileOp*>(&closed), static_cast<FileOp*>(&refused),
                     static_cast<FileOp*>(&fault)})
    reactor_->submit(*op);
  run();
}

TEST_P(ReactorTest, NoCompletionRunsInsideSubmit) {
  bool inside = false;
  int left = 100;
  std::array<char, 512> memory{};
  std::function<void()> next;
  TestFileOp read(file_.get(), FileOp::Kind::kRead, [&](int64_t) {
    EXPECT_FALSE(inside);
    if (--left > 0)
      next();
    else
      reactor_->stop();
  });
  read.with(memory.data(), memory.size(), 0);
  next = [&] {
    inside = true;
    reactor_->submit(read);
    inside = false;
  };
  next();
  run();
  EXPECT_EQ(0, left);
}

TEST_P(ReactorTest, MoreOperationsThanTheQueueHoldsAllComplete) {
  auto small = Reactor::create({.engine = GetParam(), .queue_depth = 8}, log_);
  ASSERT_TRUE(small.ok());
  reactor_ = std::move(small).value();
  constexpr size_t kCount = 1000;
  size_t left = kCount;
  std::vector<std::array<char, 512>> memory(kCount);
  std::deque<TestFileOp> ops;
  for (size_t i = 0; i < kCount; ++i) {
    const auto kind = i % 7 == 0 ? FileOp::Kind::kDataSync : FileOp::Kind::kRead;
    ops.emplace_back(file_.get(), kind, [&, kind](int64_t result) {
      EXPECT_EQ(kind == FileOp::Kind::kRead ? 512 : 0, result);
      if (--left == 0) reactor_->stop();
    });
    if (kind == FileOp::Kind::kRead) ops.back().with(memory[i].data(), 512, i * 512);
    reactor_->submit(ops.back());
  }
  run();
  EXPECT_EQ(0u, left);
  EXPECT_EQ(kCount, reactor_->counters().file_ops);
}

// Direct I/O, so that nothing completes inside the submission.
TEST_P(ReactorTest, ReadsOfOneTurnShareTheirKernelEntry) {
  if (GetParam() == EngineKind::kSync) GTEST_SKIP() << "one system call per operation";
  constexpr size_t kCount = 32;
  if (fcntl(file_.get(), F_SETFL, O_DIRECT) != 0) GTEST_SKIP() << "no direct I/O here";
  std::unique_ptr<char, void (*)(void*)> memory(
      static_cast<char*>(aligned_alloc(4096, kCount * 4096)), free);
  std::deque<TestFileOp> ops;
  uint64_t before = 0;
  uint64_t handed_over = 0;
  size_t left = kCount;
  for (size_t i = 0; i < kCount; ++i) {
    ops.emplace_back(file_.get(), FileOp::Kind::kRead, [&](int64_t result) {
      EXPECT_EQ(4096, result);
      // At the first completion all had been handed over.
      if (handed_over == 0) handed_over = reactor_->counters().kernel_entries - before;
      if (--left == 0) reactor_->stop();
    });
    ops.back().with(memory.get() + i * 4096, 4096, i * 4096);
  }
  // From inside the loop, when its own start is over.
  TestFileOp first(file_.get(), FileOp::Kind::kDataSync, [&](int64_t) {
    before = reactor_->counters().kernel_entries;
    for (TestFileOp& op : ops) reactor_->submit(op);
  });
  reactor_->submit(first);
  run();
  EXPECT_LE(handed_over, 2u);
}

// Who is answered early asks for more before the loop runs out of work.
TEST_P(ReactorTest, WhatThePageCacheAnswersIsAnsweredBeforeTheWholeBatchIsRead) {
  if (GetParam() != EngineKind::kUring) GTEST_SKIP() << "what io_uring does";
  constexpr size_t kCount = 32;
  std::vector<char> memory(kCount * 4096);
  ASSERT_EQ(1 << 20, pwrite(file_.get(), std::string(1 << 20, 'x').data(), 1 << 20, 0));
  std::deque<TestFileOp> ops;
  size_t completed = 0;
  std::vector<size_t> seen;  // how many were completed whenever a turn ended
  TestDeferred turn_end([&] { seen.push_back(completed); });
  unsigned batches = 0;
  for (size_t i = 0; i < kCount; ++i) {
    ops.emplace_back(file_.get(), FileOp::Kind::kRead, [&](int64_t result) {
      EXPECT_EQ(4096, result);
      reactor_->defer(turn_end);
      if (++completed < kCount) return;
      // The first batch shows the loop that it is answered at once; the second one counts.
      if (++batches == 2) return reactor_->stop();
      completed = 0;
      seen.clear();
      for (TestFileOp& op : ops) reactor_->submit(op);
    });
    ops.back().with(memory.data() + i * 4096, 4096, i * 4096);
  }
  for (TestFileOp& op : ops) reactor_->submit(op);
  run();
  // The turn that ended the first batch saw none of the second one.
  EXPECT_GE(seen.size(), 4u);
  EXPECT_TRUE(std::ranges::is_sorted(seen));
}

}  // namespace
}  // namespace vbdkit::io
