// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/cbt/cbt_filter.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <deque>
#include <fstream>
#include <iterator>
#include <random>
#include <set>

#include "drivers/allocation_count.h"
#include "drivers/conformance.h"

namespace vbdkit::drivers::cbt {
namespace {

constexpr uint64_t kBlock = 64 << 10;           // bytes
constexpr uint64_t kDisk = uint64_t{64} << 30;  // bytes
constexpr uint64_t kRegion = kDisk / kRegions;  // bytes

using Bytes8 = std::vector<uint8_t>;

// A disk of no content that tells what reached it.
class Reached final : public Node {
 public:
  Reached() { info_.size = Bytes{kDisk}; }
  std::string_view driver() const override { return "null"; }
  std::string spec() const override { return "null,size=64G"; }
  const NodeInfo& info() const override { return info_; }
  void submit(Request& r) override {
    if (r.op == Op::kWrite || r.op == Op::kDiscard || r.op == Op::kWriteZeroes)
      for (uint64_t at = r.offset; at < r.offset + r.length; at += kBlock)
        blocks.insert(at / kBlock);
    r.done(r, 0);
  }
  void block_status(StatusRequest& r) override { r.done(0); }
  Result<void> refresh_size() override { return {}; }
  Result<void> resize(Bytes size) override {
    info_.size = size;
    return {};
  }
  Result<void> reopen(bool) override { return {}; }

  std::set<uint64_t> blocks;

 private:
  NodeInfo info_;
};

// A loop whose file operations are done one by one, when the test says so. Knows what a power cut
// may leave of the file.
class CutReactor final : public io::Reactor {
 public:
  class NoTimer final : public io::Timer {
    void arm(Clock::time_point) override {}
    void cancel() override {}
  };
  Result<void> run() override { return {}; }
  void submit(io::FileOp& op) override {
    queued_.push_back({&op, completed_});
    if (op.kind != io::FileOp::Kind::kWrite) return;
    Write& w = writes_.emplace_back();
    w.op = &op;
    w.offset = op.offset;
    for (uint32_t i = 0; i < op.iov_count; ++i) {
      const auto* from = static_cast<const uint8_t*>(op.iov[i].iov_base);
      w.data.insert(w.data.end(), from, from + op.iov[i].iov_len);
    }
  }
  void submit(io::SocketOp&) override { FAIL(); }
  void defer(io::Deferred& d) override {
    if (d.queued) return;
    d.queued = true;
    deferred_.push_back(&d);
  }
  std::unique_ptr<io::FdWatch> watch(int, std::function<void()>) override { return nullptr; }
  std::unique_ptr<io::Timer> timer(std::function<void()>) override {
    return std::make_unique<NoTimer>();
  }
  void post(std::function<void()>) override {}
  void stop() override {}
  const char* engine_name() const override { return "cut"; }
  const io::ReactorCounters& counters() const override { return counters_; }

  bool idle() const { return deferred_.empty() && queued_.empty(); }

  void step(std::mt19937_64& random) {
    while (!deferred_.empty()) {
      io::Deferred* d = deferred_.front();
      deferred_.pop_front();
      d->queued = false;
      d->run(*d);
    }
    if (queued_.empty()) return;
    const size_t chosen = random() % queued_.size();
    const Queued q = queued_[chosen];
    queued_.erase(queued_.begin() + static_cast<ptrdiff_t>(chosen));
    io::FileOp& op = *q.op;
    ++completed_;
    int64_t result = 0;
    if (fail_next > 0) {
      --fail_next;
      result = -EIO;
    } else if (op.kind == io::FileOp::Kind::kWrite) {
      result =
          pwritev(op.fd, op.iov, static_cast<int>(op.iov_count), static_cast<off_t>(op.offset));
      for (Write& w : writes_) {
        if (w.op != &op || w.completed != 0) continue;
        w.completed = completed_;
        w.durable = op.rw_flags & RWF_DSYNC;
      }
    } else {
      for (Write& w : writes_)
        if (w.completed != 0 && w.completed <= q.at) w.durable = true;
    }
    op.done(op, result);
  }

  // After a crash of the process: what was completed. After one of the system: what is durable, and
  // any sectors of the rest.
  Bytes8 after_cut(const Bytes8& before, bool system, std::mt19937_64& random) const {
    Bytes8 file = before;
    for (const Write& w : writes_) {
      for (size_t at = 0; at < w.data.size(); at += 512) {
        const bool kept = w.durable || (system ? random() % 2 == 0 : w.completed != 0);
        if (kept)
          std::copy_n(w.data.begin() + static_cast<ptrdiff_t>(at), 512,
                      file.begin() + static_cast<ptrdiff_t>(w.offset + at));
      }
    }
    return file;
  }

  // What was written so far is old.
  void forget() { writes_.clear(); }

  unsigned fail_next = 0;

 private:
  struct Queued {
    io::FileOp* op;
    uint64_t at;  // how many operations had been completed
  };
  struct Write {
    io::FileOp* op = nullptr;
    uint64_t offset = 0;
    Bytes8 data;
    uint64_t completed = 0;
    bool durable = false;
  };
  std::deque<io::Deferred*> deferred_;
  std::vector<Queued> queued_;
  std::deque<Write> writes_;
  uint64_t completed_ = 0;
  io::ReactorCounters counters_;
};

struct Change : Request {
  int error = -1;
  bool in_flight = false;
};

class CbtTest : public testing::Test {
 protected:
  CbtTest() {
    char name[] = "/var/tmp/vbdkit-cbt-XXXXXX";
    EXPECT_NE(nullptr, mkdtemp(name));
    directory_ = name;
  }
  ~CbtTest() override {
    filter_.reset();
    for (const char* name : {"file", "copy"}) unlink(path(name).c_str());
    rmdir(directory_.c_str());
  }

  std::string path(const std::string& name) const { return directory_ + "/" + name; }

  Result<std::unique_ptr<BitmapFile>> open_file(const std::string& name, const std::string& boot,
                                                uint64_t size = kDisk, bool read_only = false) {
    FileOptions options;
    options.path = path(name);
    options.name = "test";
    options.boot_id = boot;
    options.read_only = read_only;
    options.checkpoint = checkpoint_;
    return BitmapFile::open(options, Bytes{size}, reactor_, log_);
  }

  void open(const std::string& boot = "first") {
    auto file = open_file("file", boot);
    ASSERT_TRUE(file.ok()) << file.error().message();
    auto disk = std::make_unique<Reached>();
    disk_ = disk.get();
    filter_ = std::make_unique<CbtFilter>(std::move(disk), NodeSpec{"cbt", "", {}},
                                          std::move(file).value());
  }

  void submit(Change& c, Op op, uint64_t block = 0, uint64_t blocks = 0) {
    c.op = op;
    c.offset = block * kBlock;
    c.length = blocks * kBlock;
    c.error = -1;
    c.in_flight = true;
    c.done = [](Request& r, int error) {
      auto& change = static_cast<Change&>(r);
      change.error = error;
      change.in_flight = false;
    };
    filter_->submit(c);
  }
  int run(Op op, uint64_t block = 0, uint64_t blocks = 0) {
    Change c;
    submit(c, op, block, blocks);
    while (c.in_flight) reactor_.step(random_);
    return c.error;
  }

  static std::set<uint64_t> marked(const BitmapFile& file, uint64_t size = kDisk) {
    std::set<uint64_t> blocks;
    for (uint64_t at = 0; at < size;) {
      const auto run = file.run_at(at, size);
      EXPECT_GT(run.length, 0u);
      for (uint64_t i = 0; run.dirty && i < run.length; i += kBlock)
        blocks.insert((at + i) / kBlock);
      at += run.length;
    }
    return blocks;
  }

  Bytes8 contents(const std::string& name) const {
    std::ifstream in(path(name), std::ios::binary);
    return Bytes8(std::istreambuf_iterator<char>(in), {});
  }
  void save(const std::string& name, const Bytes8& bytes) const {
    std::ofstream(path(name), std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  }

  Logger log_{"test", LogLevel::kError};
  CutReactor reactor_;
  std::mt19937_64 random_{std::random_device{}()};
  std::chrono::milliseconds checkpoint_ = std::chrono::hours(1);
  std::string directory_;
  std::unique_ptr<CbtFilter> filter_;
  Reached* disk_ = nullptr;
};

TEST_F(CbtTest, EveryChangeIsMarkedAndReadsAndFlushesAreNot) {
  open();
  EXPECT_TRUE(marked(filter_->file()).empty());
  run(Op::kRead, 3, 2);
  run(Op::kFlush);
  EXPECT_TRUE(marked(filter_->file()).empty());
  run(Op::kWrite, 7, 1);
  run(Op::kDiscard, 100, 3);
  run(Op::kWriteZeroes, kDisk / kBlock - 1, 1);
  EXPECT_EQ((std::set<uint64_t>{7, 100, 101, 102, kDisk / kBlock - 1}), marked(filter_->file()));
}

TEST_F(CbtTest, TheMarksAreThereAfterAnOrderlyEndAlsoAfterARestartOfTheSystem) {
  open();
  run(Op::kWrite, 7, 1);
  run(Op::kWrite, 500'000, 64);
  const auto before = marked(filter_->file());
  filter_.reset();
  open("second");
  EXPECT_EQ(before, marked(filter_->file()));
}

TEST_F(CbtTest, ClearingBeginsAnewForGood) {
  open();
  run(Op::kWrite, 7, 1);
  ASSERT_TRUE(filter_->dirty_bitmap()->clear().ok());
  run(Op::kWrite, 9, 1);
  EXPECT_EQ(std::set<uint64_t>{9}, marked(filter_->file()));
  filter_.reset();
  open();
  EXPECT_EQ(std::set<uint64_t>{9}, marked(filter_->file()));
}

// Cuts at random moments of random work. Whatever the disk below may have seen is marked.
TEST_F(CbtTest, NoChangeIsMissedWheneverTheProcessOrTheSystemCrashes) {
  checkpoint_ = {};  // with each flush
  size_t overstated = 0;
  for (int round = 0; round < 60; ++round) {
    unlink(path("file").c_str());
    ASSERT_NO_FATAL_FAILURE(open());
    const Bytes8 before = contents("file");
    reactor_.forget();
    std::deque<Change> changes(8);
    std::set<uint64_t> asked;
    const uint64_t steps = 1 + random_() % 300;
    for (uint64_t i = 0; i < steps; ++i) {
      Change& c = changes[random_() % changes.size()];
      if (c.in_flight) {
        reactor_.step(random_);
      } else if (random_() % 8 == 0) {
        submit(c, Op::kFlush);
      } else {
        // In few places, so that pages and regions are shared.
        const uint64_t block = random_() % 4 * 200'000 + random_() % 400;
        const uint64_t count = 1 + random_() % 3;
        for (uint64_t b = block; b < block + count; ++b) asked.insert(b);
        submit(c, Op::kWrite, block, count);
      }
    }
    for (const bool system : {false, true}) {
      save("copy", reactor_.after_cut(before, system, random_));
      auto after = open_file("copy", system ? "second" : "first");
      ASSERT_TRUE(after.ok()) << after.error().message();
      const auto found = marked(**after);
      for (const uint64_t block : disk_->blocks)
        ASSERT_TRUE(found.contains(block))
            << (system ? "system" : "process") << ", block " << block;
      for (const uint64_t block : found) {
        if (asked.contains(block)) continue;
        ASSERT_TRUE(system) << "block " << block << " was never written";
        ++overstated;
        // Only where a region was hot.
        const uint64_t first = block * kBlock / kRegion * kRegion / kBlock;
        const auto near = asked.lower_bound(first);
        ASSERT_TRUE(near != asked.end() && *near < first + kRegion / kBlock);
      }
    }
    while (!reactor_.idle()) reactor_.step(random_);
    filter_.reset();
  }
  EXPECT_GT(overstated, 0u);  // the cuts did cut something
}

TEST_F(CbtTest, AfterACheckpointASystemCrashAddsNothing) {
  checkpoint_ = {};
  open();
  const Bytes8 before = contents("file");
  run(Op::kWrite, 7, 1);
  run(Op::kFlush);
  EXPECT_EQ(1u, filter_->file().counters().checkpoints);
  save("copy", reactor_.after_cut(before, true, random_));
  auto after = open_file("copy", "second");
  ASSERT_TRUE(after.ok()) << after.error().message();
  EXPECT_EQ(std::set<uint64_t>{7}, marked(**after));
}

TEST_F(CbtTest, ManyChangesOfOneRegionWaitForStableStorageOnce) {
  open();
  for (uint64_t i = 0; i < kRegion / kBlock; ++i) run(Op::kWrite, i, 1);
  EXPECT_EQ(1u, filter_->file().counters().superblocks);
}

TEST_F(CbtTest, WhatIsMarkedAlreadyCostsNoOperationAndNoAllocation) {
  open();
  run(Op::kWrite, 7, 3);
  const uint64_t commits = filter_->file().counters().commits;
  const uint64_t before = allocation_count();
  for (int i = 0; i < 100; ++i) {
    Change c;
    c.op = Op::kRead;  // the disk that the test has would allocate for a write
    c.offset = 8 * kBlock;
    c.length = kBlock;
    c.done = [](Request&, int) {};
    EXPECT_TRUE(filter_->file().covers(c.offset, c.length));
    filter_->submit(c);
  }
  EXPECT_EQ(before, allocation_count());
  EXPECT_EQ(0, run(Op::kWrite, 7, 3));
  EXPECT_EQ(commits, filter_->file().counters().commits);
}

TEST_F(CbtTest, AChangeThatCannotBeRecordedIsNotMade) {
  open();
  reactor_.fail_next = 2;
  EXPECT_EQ(EIO, run(Op::kWrite, 7, 1));
  EXPECT_TRUE(disk_->blocks.empty());
  EXPECT_EQ(0, run(Op::kWrite, 7, 1)) << "the file works again";
  EXPECT_TRUE(disk_->blocks.contains(7));
  filter_.reset();
  open();
  EXPECT_TRUE(marked(filter_->file()).contains(7));
}

TEST_F(CbtTest, WhatALargerDiskHasMoreCountsAsChanged) {
  open();
  run(Op::kWrite, 1, 1);
  ASSERT_TRUE(filter_->resize(Bytes{kDisk + 5 * kBlock}).ok());
  const uint64_t first = kDisk / kBlock;
  const std::set<uint64_t> expected{1, first, first + 1, first + 2, first + 3, first + 4};
  EXPECT_EQ(expected, marked(filter_->file(), kDisk + 5 * kBlock));
  EXPECT_EQ(0, run(Op::kWrite, first + 2, 1));
  filter_.reset();
  auto again = open_file("file", "second", kDisk + 5 * kBlock, true);
  ASSERT_TRUE(again.ok()) << again.error().message();
  EXPECT_EQ(expected, marked(**again, kDisk + 5 * kBlock));
}

TEST_F(CbtTest, AFileOfSomethingElseIsRefusedAndLeftAsItIs) {
  const Bytes8 other(10'000, 'x');
  save("file", other);
  const auto opened = open_file("file", "first");
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(ErrorKind::kCorrupt, opened.error().kind());
  EXPECT_EQ(other, contents("file"));
}

TEST_F(CbtTest, AFailedOpenDoesNotMakeACrashedFileLookClean) {
  open();
  run(Op::kWrite, 7, 1);
  save("copy", contents("file"));
  FileOptions options;
  options.path = path("copy");
  options.name = "another";
  options.boot_id = "second";
  EXPECT_FALSE(BitmapFile::open(options, Bytes{kDisk}, reactor_, log_).ok());
  auto after = open_file("copy", "second");
  ASSERT_TRUE(after.ok()) << after.error().message();
  EXPECT_GT(marked(**after).size(), 1u) << "the region was hot";
}

TEST(CbtSuperblock, SurvivesEncodingAndIsNotTakenWhenDamaged) {
  Superblock s;
  s.sequence = 77;
  s.disk_size = kDisk;
  s.granularity = kBlock;
  s.in_use = true;
  s.boot_id = "0b9aa7b6-6a2c-4a4e-8f0e-0d4f8a6d6b11";
  s.name = "backup";
  s.hot.set(3).set(kRegions - 1);
  Page page;
  encode(s, page);
  const auto read = decode(page);
  ASSERT_TRUE(read.has_value());
  EXPECT_EQ(s.sequence, read->sequence);
  EXPECT_EQ(s.disk_size, read->disk_size);
  EXPECT_EQ(s.granularity, read->granularity);
  EXPECT_EQ(s.in_use, read->in_use);
  EXPECT_EQ(s.boot_id, read->boot_id);
  EXPECT_EQ(s.name, read->name);
  EXPECT_EQ(s.hot, read->hot);
  for (size_t at : {size_t{0}, size_t{9}, size_t{40}, size_t{100}, size_t{4095}}) {
    Page damaged = page;
    damaged[at] ^= 0x10;
    EXPECT_FALSE(decode(damaged).has_value()) << at;
  }
}

Subject tracked(std::string name, const std::string& options) {
  return {.name = std::move(name),
          .create = storage_by_spec([options](const std::string& path, uint64_t) {
            unlink((path + ".cbt").c_str());
            return "cbt:name=a,file=" + path + ".cbt" + options + "|raw:" + path;
          })};
}

class CbtStorageCleanup : public testing::Environment {
 public:
  void TearDown() override {
    EXPECT_EQ(0, system("rm -f \"${TMPDIR:-/var/tmp}\"/vbdkit-conformance-*.cbt"));
  }
};
[[maybe_unused]] const auto* const cleanup =
    testing::AddGlobalTestEnvironment(new CbtStorageCleanup);

INSTANTIATE_TEST_SUITE_P(Cbt, NodeConformance,
                         testing::Values(tracked("Cbt", ""),
                                         tracked("CbtOfSmallBlocks", ",granularity=4K")),
                         subject_name);

}  // namespace
}  // namespace vbdkit::drivers::cbt
