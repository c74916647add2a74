// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Power cuts: a random guest writes to a VHD on a recording disk; then the image is looked at as a
// cut at every event would leave it, with everything completed and with random losses.
#include <gtest/gtest.h>

#include <list>

#include "drivers/chain/chain_node.h"
#include "drivers/crash_replay.h"
#include "drivers/vhd/check.h"
#include "drivers/vhd/create.h"
#include "drivers/vhd/open.h"
#include "drivers/vhd/test_image.h"
#include "drivers/vhd/write_layer.h"

namespace vbdkit::drivers::vhd {
namespace {

constexpr uint64_t kDisk = 3 << 20;  // bytes
constexpr uint64_t kSectors = kDisk / kSectorSize;
constexpr uint64_t kBlock = kMinBlock / kSectorSize;  // sectors

struct Scenario {
  const char* name;
  bool parent;
  bool batmap;
  size_t dirty_limit;
  uint64_t longest;  // write, sectors
};

void PrintTo(const Scenario& s, std::ostream* out) { *out << s.name; }

// A guest's request with its memory.
struct GuestRequest {
  Request request;  // first
  std::vector<std::byte> memory;
  iovec iov{};
  uint64_t tag = 0;
  uint64_t covers = 0;  // of a flush
  class VhdCrash* test = nullptr;
  bool done = false;
};

class VhdCrash : public testing::TestWithParam<Scenario> {
 protected:
  VhdCrash()
      : log_("test", LogLevel::kWarning),
        reactor_(std::move(io::Reactor::create({}, log_)).value()) {}

  void SetUp() override {
    CreateOptions options{.size = Bytes{kDisk}, .block_size = kMinBlock};
    options.batmap = GetParam().batmap;
    base_.resize(kDisk);
    if (GetParam().parent) {
      ASSERT_TRUE(create(parent_path(), options).ok());
      fill_parent();
      options.type = DiskType::kDifferencing;
      options.parent = parent_path();
    }
    const auto created = create(leaf_path(), options);
    ASSERT_TRUE(created.ok()) << created.error().message();
  }

  std::string parent_path() const { return directory_ / "parent.vhd"; }
  std::string leaf_path() const { return directory_ / "leaf.vhd"; }
  std::string cut_path() const { return directory_ / "cut.vhd"; }

  std::unique_ptr<ChainNode> open(const std::string& path, CrashRecorder& disk);
  void fill_parent();
  // Lets a guest do `count` things; everything is completed in the end.
  void work(ChainNode& node, CrashRecorder& disk, WriteOracle& oracle, unsigned count);
  void submit(ChainNode& node, CrashRecorder& disk, WriteOracle& oracle);
  static void completed(Request& request, int error);
  bool busy(uint64_t offset, uint64_t length) const;
  void look(const CrashRecorder& disk, const WriteOracle& oracle, size_t cut,
            CrashRecorder::Loss loss);

  TestDirectory directory_;
  Logger log_;
  std::unique_ptr<io::Reactor> reactor_;
  std::mt19937_64 random_;
  std::vector<std::byte> base_;
  std::unique_ptr<CrashRecorder> parent_disk_;
  std::list<GuestRequest> requests_;
  bool may_fail_ = false;
  CrashRecorder* disk_ = nullptr;
  WriteOracle* oracle_ = nullptr;
};

std::unique_ptr<ChainNode> VhdCrash::open(const std::string& path, CrashRecorder& disk) {
  Chain chain;
  auto control = ImageFile::open(path, ImageFile::Mode::kWrite);
  EXPECT_TRUE(control.ok());
  auto metadata = read_metadata(*control);
  EXPECT_TRUE(metadata.ok()) << metadata.error().message();
  const LayerContext context{*reactor_, log_, false};
  auto leaf = WriteLayer::open({path, disk.node()}, context, std::move(control).value(),
                               std::move(metadata).value(), GetParam().dirty_limit);
  EXPECT_TRUE(leaf.ok()) << leaf.error().message();
  chain.layers.push_back(std::move(leaf).value());
  chain.paths = {path, parent_path()};
  if (chain.layers[0]->parent() != nullptr) {
    parent_disk_ =
        std::make_unique<CrashRecorder>(std::move(SparseBytes::load(parent_path())).value());
    auto parent = open_layer({parent_path(), parent_disk_->node()}, {*reactor_, log_, true});
    EXPECT_TRUE(parent.ok());
    chain.layers.push_back(std::move(parent).value());
  }
  return std::make_unique<ChainNode>(std::move(chain), ChainOptions{"vhd", "vhd:" + path});
}

void VhdCrash::fill_parent() {
  WriteOracle::fill(1 << 20, 0, base_);
  CrashRecorder disk(std::move(SparseBytes::load(parent_path())).value());
  {
    auto node = open(parent_path(), disk);
    iovec iov{base_.data(), base_.size()};
    Request write;
    write.op = Op::kWrite;
    write.iov = &iov;
    write.iov_count = 1;
    write.length = base_.size();
    Request flush;
    flush.op = Op::kFlush;
    write.done = flush.done = [](Request&, int error) { EXPECT_EQ(error, 0); };
    node->submit(write);
    disk.complete_all(random_);
    node->submit(flush);
    disk.complete_all(random_);
  }
  std::mt19937_64 any;
  const auto content = disk.after_cut(disk.events(), CrashRecorder::Loss::kNothing, any);
  ASSERT_TRUE(content.save(parent_path()).ok());
  const auto read = read_disk(parent_path(), {});
  ASSERT_TRUE(read.ok()) << read.error().message();
  ASSERT_EQ(*read, base_);
}

bool VhdCrash::busy(uint64_t offset, uint64_t length) const {
  for (const GuestRequest& r : requests_)
    if (!r.done && offset < r.request.offset + r.request.length &&
        r.request.offset < offset + length)
      return true;
  return false;
}

void VhdCrash::completed(Request& request, int error) {
  auto& guest = *reinterpret_cast<GuestRequest*>(&request);
  VhdCrash& test = *guest.test;
  EXPECT_TRUE(error == 0 || (test.may_fail_ && error == EIO)) << error;
  guest.done = true;
  if (error != 0) return;
  const size_t event = test.disk_->events();
  if (request.op == Op::kFlush)
    test.oracle_->flushed(guest.covers, event);
  else if (request.op == Op::kRead)
    return;
  else if (request.flags & kFua)
    test.oracle_->completed_durably(guest.tag, event);
  else
    test.oracle_->completed(guest.tag);
}

void VhdCrash::submit(ChainNode& node, CrashRecorder& disk, WriteOracle& oracle) {
  const uint64_t kind = random_() % 16;
  uint64_t start = random_() % kSectors;
  uint64_t count = std::min(kSectors - start, 1 + random_() % GetParam().longest);
  if (count > kBlock / 4) {
    start = align_down(start, kBlock);
    count = kBlock;
  }
  const uint64_t offset = start * kSectorSize;
  const uint64_t length = count * kSectorSize;
  if (kind > 1 && busy(offset, length)) return;
  GuestRequest& r = requests_.emplace_back();
  r.test = this;
  r.covers = oracle.flush_submitted();
  r.request.done = completed;
  if (kind <= 1) {
    r.request.op = Op::kFlush;
  } else {
    const bool zeroes = kind == 2;
    r.request.op = zeroes ? Op::kWriteZeroes : kind == 3 ? Op::kRead : Op::kWrite;
    r.request.flags = random_() % 16 == 0 ? kFua : 0;
    r.request.offset = offset;
    r.request.length = length;
    r.memory.resize(length);
    if (r.request.op != Op::kRead) {
      r.tag = oracle.submitted(offset, length, zeroes, disk.events());
      WriteOracle::fill(r.tag, offset, r.memory);
    }
    if (!zeroes) {
      r.iov = {r.memory.data(), length};
      r.request.iov = &r.iov;
      r.request.iov_count = 1;
    }
  }
  node.submit(r.request);
}

void VhdCrash::work(ChainNode& node, CrashRecorder& disk, WriteOracle& oracle, unsigned count) {
  disk_ = &disk;
  oracle_ = &oracle;
  const auto drain_parent = [&] {
    if (parent_disk_ != nullptr) parent_disk_->complete_all(random_);
  };
  for (unsigned i = 0; i < count; ++i) {
    submit(node, disk, oracle);
    drain_parent();
    if (may_fail_ && random_() % 8 == 0) disk.fail(1, EIO);
    for (uint64_t n = random_() % 4; n > 0 && !disk.idle(); --n) {
      disk.complete_one(random_);
      drain_parent();
    }
  }
  while (!disk.idle()) {
    disk.complete_one(random_);
    drain_parent();
  }
  for (const GuestRequest& r : requests_) ASSERT_TRUE(r.done);
  requests_.clear();
}

void VhdCrash::look(const CrashRecorder& disk, const WriteOracle& oracle, size_t cut,
                    CrashRecorder::Loss loss) {
  ASSERT_TRUE(disk.after_cut(cut, loss, random_).save(cut_path()).ok());
  const auto report = check(cut_path(), false);
  ASSERT_TRUE(report.ok()) << "cut " << cut << ": " << report.error().message();
  ASSERT_TRUE(report->errors.empty()) << "cut " << cut << ": " << report->errors.front();
  const auto content = read_disk(cut_path(), GetParam().parent ? base_ : std::vector<std::byte>{});
  ASSERT_TRUE(content.ok()) << "cut " << cut << ": " << content.error().message();
  ASSERT_EQ(oracle.check(cut, *content), "") << (loss == CrashRecorder::Loss::kRandom);
}

// The build with sanitizers, eight times slower, looks for what a cut does to our code rather than
// for one more cut.
#ifdef __SANITIZE_ADDRESS__
constexpr uint64_t kSeeds = 1;
constexpr int kRandomLosses = 1;
#else
constexpr uint64_t kSeeds = 2;
constexpr int kRandomLosses = 3;
#endif

TEST_P(VhdCrash, EveryCutLeavesAnImageWithAllThatWasFlushed) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SCOPED_TRACE(seed);
    random_.seed(seed);
    CrashRecorder disk(std::move(SparseBytes::load(leaf_path())).value());
    WriteOracle oracle(base_);
    {
      auto node = open(leaf_path(), disk);
      work(*node, disk, oracle, 60);
    }
    for (size_t cut = 0; cut <= disk.events(); ++cut) {
      ASSERT_NO_FATAL_FAILURE(look(disk, oracle, cut, CrashRecorder::Loss::kNothing));
      for (int i = 0; i < kRandomLosses; ++i)
        ASSERT_NO_FATAL_FAILURE(look(disk, oracle, cut, CrashRecorder::Loss::kRandom));
    }
    // The destructor's blocking writes went to the file itself; the next round wants it empty.
    std::mt19937_64 any;
    ASSERT_TRUE(disk.after_cut(0, CrashRecorder::Loss::kNothing, any).save(leaf_path()).ok());
  }
}

// Cut, open again, go on, cut again: the footer is mended, and old blocks are met with no bitmap
// in memory.
TEST_P(VhdCrash, AnImageThatWasCutGoesOn) {
  for (uint64_t seed = 100; seed < 106; ++seed) {
    SCOPED_TRACE(seed);
    random_.seed(seed);
    const std::string path = directory_ / "going-on.vhd";
    std::filesystem::copy_file(leaf_path(), path,
                               std::filesystem::copy_options::overwrite_existing);
    for (int generation = 0; generation < 4; ++generation) {
      auto before = read_disk(path, GetParam().parent ? base_ : std::vector<std::byte>{});
      ASSERT_TRUE(before.ok()) << before.error().message();
      // Opening mends the file before anything is recorded.
      ASSERT_TRUE(check(path, true).ok());
      CrashRecorder disk(std::move(SparseBytes::load(path)).value());
      WriteOracle oracle(*before);
      {
        auto node = open(path, disk);
        work(*node, disk, oracle, 40);
      }
      const size_t cut = random_() % (disk.events() + 1);
      ASSERT_NO_FATAL_FAILURE(look(disk, oracle, cut, CrashRecorder::Loss::kRandom));
      std::filesystem::rename(cut_path(), path);
    }
  }
}

// A write, flush or piece of metadata that fails now and then: who asked is told, nothing that was
// completed is lost, and the next flush writes what the failed one did not.
TEST_P(VhdCrash, FailuresOfTheDiskLoseNothingThatWasCompleted) {
  for (uint64_t seed = 200; seed < 210; ++seed) {
    SCOPED_TRACE(seed);
    random_.seed(seed);
    CrashRecorder disk(std::move(SparseBytes::load(leaf_path())).value());
    WriteOracle oracle(base_);
    {
      auto node = open(leaf_path(), disk);
      may_fail_ = true;
      work(*node, disk, oracle, 80);
      may_fail_ = false;
      disk.fail(0, 0);
      GuestRequest flush;
      flush.test = this;
      flush.covers = oracle.flush_submitted();
      flush.request.op = Op::kFlush;
      flush.request.done = completed;
      node->submit(flush.request);
      disk.complete_all(random_);
      ASSERT_TRUE(flush.done);
    }
    const size_t end = disk.events();
    for (const size_t cut : {end, end / 2, end / 3, end / 4})
      ASSERT_NO_FATAL_FAILURE(look(disk, oracle, cut, CrashRecorder::Loss::kRandom));
    // The orderly end of the node went to the file itself.
    std::mt19937_64 any;
    ASSERT_TRUE(disk.after_cut(0, CrashRecorder::Loss::kNothing, any).save(leaf_path()).ok());
  }
}

// A flush that fails at its first, second, third… step is repeated whole by the next.
TEST_P(VhdCrash, AFlushThatFailsAtAnyStepIsRepeated) {
  for (unsigned step = 0, failed = 1; failed > 0; ++step) {
    SCOPED_TRACE(step);
    random_.seed(step);
    CrashRecorder disk(std::move(SparseBytes::load(leaf_path())).value());
    WriteOracle oracle(base_);
    {
      auto node = open(leaf_path(), disk);
      disk_ = &disk;
      oracle_ = &oracle;
      may_fail_ = true;
      GuestRequest write;
      write.test = this;
      write.memory.resize(kMinBlock + 4096);
      write.tag = oracle.submitted(0, write.memory.size(), false, 0);
      WriteOracle::fill(write.tag, 0, write.memory);
      write.iov = {write.memory.data(), write.memory.size()};
      write.request.op = Op::kWrite;
      write.request.iov = &write.iov;
      write.request.iov_count = 1;
      write.request.length = write.memory.size();
      write.request.done = completed;
      node->submit(write.request);
      disk.complete_all(random_);
      failed = 0;
      for (int attempt = 0; attempt < 2; ++attempt) {
        GuestRequest flush;
        flush.test = this;
        flush.covers = oracle.flush_submitted();
        flush.request.op = Op::kFlush;
        flush.request.done = completed;
        node->submit(flush.request);
        for (unsigned i = 0; i < step && attempt == 0 && !disk.idle(); ++i)
          disk.complete_one(random_);
        if (attempt == 0 && !disk.idle()) {
          disk.fail(1, EIO);
          ++failed;
        }
        disk.complete_all(random_);
        ASSERT_TRUE(flush.done);
      }
    }
    ASSERT_NO_FATAL_FAILURE(look(disk, oracle, disk.events(), CrashRecorder::Loss::kRandom));
    std::mt19937_64 any;
    ASSERT_TRUE(disk.after_cut(0, CrashRecorder::Loss::kNothing, any).save(leaf_path()).ok());
  }
}

// What was acknowledged and never flushed is there after an orderly end.
TEST_P(VhdCrash, AnOrderlyEndLosesNothing) {
  random_.seed(7);
  WriteOracle oracle(base_);
  {
    CrashRecorder disk(std::move(SparseBytes::load(leaf_path())).value());
    auto node = open(leaf_path(), disk);
    work(*node, disk, oracle, 60);
    std::mt19937_64 any;
    // What the node wrote is on the recorder; its end goes to the file.
    ASSERT_TRUE(
        disk.after_cut(disk.events(), CrashRecorder::Loss::kNothing, any).save(cut_path()).ok());
    const auto content = std::move(SparseBytes::load(cut_path())).value();
    std::vector<std::byte> bytes(content.size());
    content.read(0, bytes.data(), bytes.size());
    auto target = ImageFile::open(leaf_path(), ImageFile::Mode::kWrite);
    ASSERT_TRUE(target->resize(Bytes{bytes.size()}).ok());
    ASSERT_TRUE(target->write(0, bytes).ok());
    oracle.flushed(oracle.flush_submitted(), disk.events());
    node.reset();
    const auto report = check(leaf_path(), false);
    ASSERT_TRUE(report.ok()) << report.error().message();
    EXPECT_TRUE(report->errors.empty());
    EXPECT_TRUE(report->remains.empty()) << report->remains.front();
    const auto disk_content =
        read_disk(leaf_path(), GetParam().parent ? base_ : std::vector<std::byte>{});
    ASSERT_TRUE(disk_content.ok());
    EXPECT_EQ(oracle.check(disk.events(), *disk_content), "");
  }
}

INSTANTIATE_TEST_SUITE_P(Vhd, VhdCrash,
                         testing::Values(Scenario{"Dynamic", false, true, 1024, 64},
                                         Scenario{"DynamicWholeBlocks", false, true, 1024, 2048},
                                         Scenario{"Differencing", true, false, 1024, 64},
                                         Scenario{"DifferencingWithBatmap", true, true, 1024, 2048},
                                         Scenario{"DifferencingFewDirty", true, true, 1, 64}),
                         [](const auto& scenario) { return std::string(scenario.param.name); });

}  // namespace
}  // namespace vbdkit::drivers::vhd
