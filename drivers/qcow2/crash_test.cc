// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Power cuts: random writes on images of all kinds, cut at every kind of moment. After each cut the
// image must have nothing wrong but leaks, and hold what the oracle allows.
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <set>

#include "drivers/chain/open_chain.h"
#include "drivers/crash_replay.h"
#include "drivers/qcow2/check.h"
#include "drivers/qcow2/create.h"
#include "drivers/qcow2/qcow2_layer.h"
#include "drivers/qcow2/test_disk.h"

namespace vbdkit::drivers::qcow2 {
namespace {

struct Case {
  std::string name;
  std::map<std::string, std::string> options;
  uint64_t size = 4 << 20;       // bytes
  uint64_t longest = 128 << 10;  // of one write
  bool parent = false;
  // Shell commands that prepare the image, which is $IMAGE.
  std::string prepare;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

uint64_t chosen_seed() {
  const char* text = getenv("VBDKIT_TEST_SEED");
  return text != nullptr ? strtoull(text, nullptr, 10) : std::random_device{}();
}

class Qcow2Crash : public testing::TestWithParam<Case> {
 protected:
  static constexpr unsigned kSteps = 400;
  static constexpr unsigned kCuts = 150;

  // A request of the guest.
  struct Io {
    Request request;  // first
    iovec iov{};
    std::vector<std::byte> memory;
    uint64_t tag = 0;
    uint64_t covers = 0;  // of a flush
    Qcow2Crash* test = nullptr;
  };

  void SetUp() override {
    disk_.make_image("parent", {}, GetParam().size, "");
    auto options = GetParam().options;
    if (GetParam().parent) {
      options["backing_file"] = "parent";
      options["backing_fmt"] = "qcow2";
    }
    disk_.make_image("image", options, GetParam().size, GetParam().prepare);
  }

  void submit(Op op, uint64_t offset, uint64_t length);
  static void completed(Request& request, int error);
  bool advance();
  void workload();
  void check_cut(size_t cut, CrashRecorder::Loss loss, bool ask_qemu);

  const uint64_t seed_ = chosen_seed();
  testing::ScopedTrace trace_{__FILE__, __LINE__, "VBDKIT_TEST_SEED=" + std::to_string(seed_)};
  std::mt19937_64 random_{seed_};
  TestDisk disk_;
  std::unique_ptr<CrashRecorder> recorder_;
  std::unique_ptr<CrashRecorder> parent_recorder_;
  std::unique_ptr<WriteOracle> oracle_;
  NodePtr node_;
  std::set<Io*> in_flight_;
};

void Qcow2Crash::submit(Op op, uint64_t offset, uint64_t length) {
  for (const Io* other : in_flight_) {
    const Request& r = other->request;
    if (r.length > 0 && length > 0 && offset < r.offset + r.length && r.offset < offset + length)
      return;
  }
  auto* io = new Io;
  io->test = this;
  io->request.op = op;
  io->request.offset = offset;
  io->request.length = length;
  io->request.flags = op == Op::kWriteZeroes && random_() % 2 ? kMayUnmap : 0;
  io->request.done = &Qcow2Crash::completed;
  if (op == Op::kFlush)
    io->covers = oracle_->flush_submitted();
  else
    io->tag = oracle_->submitted(offset, length, op == Op::kWriteZeroes, recorder_->events());
  if (op == Op::kWrite) {
    io->memory.resize(length);
    WriteOracle::fill(io->tag, offset, io->memory);
    io->iov = {io->memory.data(), length};
    io->request.iov = &io->iov;
    io->request.iov_count = 1;
  }
  in_flight_.insert(io);
  node_->submit(io->request);
}

void Qcow2Crash::completed(Request& request, int error) {
  const std::unique_ptr<Io> io(reinterpret_cast<Io*>(&request));
  EXPECT_EQ(0, error);
  Qcow2Crash& test = *io->test;
  test.in_flight_.erase(io.get());
  if (request.op == Op::kFlush)
    test.oracle_->flushed(io->covers, test.recorder_->events());
  else
    test.oracle_->completed(io->tag);
}

// Completes something that is in flight; false where nothing is.
bool Qcow2Crash::advance() {
  if (parent_recorder_ != nullptr && !parent_recorder_->idle())
    parent_recorder_->complete_one(random_);
  else if (!recorder_->idle())
    recorder_->complete_one(random_);
  else
    return false;
  return true;
}

void Qcow2Crash::workload() {
  const uint64_t sectors = GetParam().size / kSectorSize;
  for (unsigned step = 0; step < kSteps; ++step) {
    const unsigned what = static_cast<unsigned>(random_() % 16);
    if (what == 0) {
      submit(Op::kFlush, 0, 0);
    } else if (what < 10) {
      const uint64_t longest = GetParam().longest / kSectorSize;
      const uint64_t first = random_() % sectors;
      uint64_t count = std::min(1 + random_() % (random_() % 4 ? 16 : longest), sectors - first);
      // Whole clusters often enough.
      const uint64_t align = random_() % 2 ? 128 : 1;
      submit(what < 8 ? Op::kWrite : Op::kWriteZeroes, first / align * align * kSectorSize,
             std::max(align, count / align * align) * kSectorSize);
    } else {
      for (uint64_t n = 1 + random_() % 8; n > 0; --n) advance();
    }
  }
  // The end of the layer then has nothing to write.
  submit(Op::kFlush, 0, 0);
  while (advance()) {
  }
  ASSERT_TRUE(in_flight_.empty());
}

void Qcow2Crash::check_cut(size_t cut, CrashRecorder::Loss loss, bool ask_qemu) {
  SCOPED_TRACE("cut at event " + std::to_string(cut) + " of " +
               std::to_string(recorder_->events()));
  const std::string path = disk_.path("cut");
  const auto saved = recorder_->after_cut(cut, loss, random_).save(path);
  ASSERT_TRUE(saved.ok()) << saved.error().message();
  // Opening for writing rebuilds what lazy refcounts left.
  if (GetParam().options.contains("lazy_refcounts")) disk_.open("qcow2:" + path);
  if (GetParam().options.contains("lazy_refcounts")) disk_.close();
  const auto checked = check_image(path, Repair::kNone);
  ASSERT_TRUE(checked.ok()) << checked.error().message();
  ASSERT_EQ(0u, checked->corruptions) << testing::PrintToString(checked->messages);
  if (ask_qemu) {
    // 0: clean, 3: leaks.
    const int status = disk_.run("qemu-img check -q -f qcow2 " + path + " >/dev/null 2>&1");
    ASSERT_TRUE(status == 0 || status == 3) << status;
  }
  ASSERT_NO_FATAL_FAILURE(disk_.open("qcow2:" + path, {.read_only = true}));
  const std::vector<uint8_t> content = disk_.read(0, GetParam().size);
  disk_.close();
  ASSERT_EQ("", oracle_->check(cut, std::as_bytes(std::span(content))));
}

TEST_P(Qcow2Crash, AnyCutLeavesAnImageThatHoldsWhatWasFlushed) {
  ASSERT_NO_FATAL_FAILURE(disk_.open("qcow2:" + disk_.path("image"), {.read_only = true}));
  const std::vector<uint8_t> before = disk_.read(0, GetParam().size);
  disk_.close();
  const auto bytes = std::as_bytes(std::span(before));
  oracle_ = std::make_unique<WriteOracle>(std::vector<std::byte>(bytes.begin(), bytes.end()));
  auto content = SparseBytes::load(disk_.path("image"));
  ASSERT_TRUE(content.ok()) << content.error().message();
  recorder_ = std::make_unique<CrashRecorder>(std::move(content).value());

  // The disk of the recorder under the leaf; the parent is an ordinary file.
  Chain chain;
  const LayerContext leaf{disk_.reactor(), disk_.log(), false};
  auto layer = Qcow2Layer::open({disk_.path("image"), recorder_->node()}, leaf);
  ASSERT_TRUE(layer.ok()) << layer.error().message();
  chain.layers.push_back(std::move(layer).value());
  chain.paths.push_back(disk_.path("image"));
  if (GetParam().parent) {
    auto bottom = SparseBytes::load(disk_.path("parent"));
    ASSERT_TRUE(bottom.ok());
    parent_recorder_ = std::make_unique<CrashRecorder>(std::move(bottom).value());
    auto below = Qcow2Layer::open({disk_.path("parent"), parent_recorder_->node()},
                                  {disk_.reactor(), disk_.log(), true});
    ASSERT_TRUE(below.ok()) << below.error().message();
    chain.layers.push_back(std::move(below).value());
    chain.paths.push_back(disk_.path("parent"));
  }
  node_ = std::make_unique<ChainNode>(std::move(chain), ChainOptions{"qcow2", "qcow2:image"});
  ASSERT_NO_FATAL_FAILURE(workload());
  for (unsigned i = 0; i < kCuts; ++i) {
    const size_t cut = random_() % (recorder_->events() + 1);
    const auto loss = i % 4 == 0 ? CrashRecorder::Loss::kNothing : CrashRecorder::Loss::kRandom;
    ASSERT_NO_FATAL_FAILURE(check_cut(cut, loss, i % 10 == 0));
  }
  node_.reset();
}

std::vector<Case> cases() {
  // A disk with something on it, some of it compressed and shared with an internal snapshot.
  const std::string fill = "qemu-io -f qcow2 -c 'write -P 1 0 2M' $IMAGE >/dev/null";
  const std::string snapshot = fill + " && qemu-img snapshot -c before $IMAGE";
  const std::string compress =
      "qemu-img create -q -f raw r 4M && qemu-io -f raw -c 'write -P 7 1M 2M' r >/dev/null && "
      "rm $IMAGE && qemu-img convert -c -f raw -O qcow2 r $IMAGE && "
      "qemu-img resize -q -f qcow2 $IMAGE 4M";
  return {
      {.name = "Clusters64K", .options = {}, .prepare = ""},
      {.name = "Clusters4K", .options = {{"cluster_size", "4K"}}, .prepare = fill},
      {.name = "TinyClustersLargeRefcounts",
       .options = {{"cluster_size", "512"}, {"refcount_bits", "64"}},
       .prepare = ""},
      {.name = "Extended", .options = {{"extended_l2", "on"}}, .prepare = ""},
      {.name = "ExtendedOnParent",
       .options = {{"extended_l2", "on"}, {"cluster_size", "16K"}},
       .parent = true,
       .prepare = ""},
      {.name = "OnParent", .options = {{"cluster_size", "4K"}}, .parent = true, .prepare = ""},
      {.name = "Version2", .options = {{"compat", "v2"}, {"cluster_size", "4K"}}, .prepare = fill},
      {.name = "Lazy",
       .options = {{"lazy_refcounts", "on"}, {"cluster_size", "4K"}},
       .prepare = fill},
      {.name = "InternalSnapshot", .options = {{"cluster_size", "4K"}}, .prepare = snapshot},
      {.name = "ExtendedInternalSnapshot", .options = {{"extended_l2", "on"}}, .prepare = snapshot},
      {.name = "Compressed", .options = {}, .prepare = compress},
  };
}

INSTANTIATE_TEST_SUITE_P(Qcow2, Qcow2Crash, testing::ValuesIn(cases()),
                         [](const auto& named) { return std::string(named.param.name); });

}  // namespace
}  // namespace vbdkit::drivers::qcow2
