// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/conformance.h"

#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>

#include "drivers/fault_filter.h"
#include "drivers/iov.h"

namespace vbdkit::drivers {
namespace {

uint64_t chosen_seed() {
  const char* text = getenv("VBDKIT_TEST_SEED");
  return text != nullptr ? strtoull(text, nullptr, 10) : std::random_device{}();
}

NodePtr unwrapped(NodePtr node) { return node; }

class SpecStorage final : public TestStorage {
 public:
  SpecStorage(const std::function<std::string(const std::string&, uint64_t)>& make_spec,
              const std::string& directory, uint64_t size) {
    path_ = directory + "/vbdkit-conformance-XXXXXX";
    Fd file(mkostemp(path_.data(), O_CLOEXEC));
    EXPECT_TRUE(file.valid()) << path_;
    EXPECT_EQ(0, ftruncate(file.get(), static_cast<off_t>(size)));
    spec_ = make_spec(path_, size);
  }
  ~SpecStorage() override { unlink(path_.c_str()); }

  Result<NodePtr> open(const OpenContext& context, const Wrap& wrap) override {
    VBDKIT_ASSIGN(GraphSpec graph, parse_graph(spec_));
    if (graph.nodes.size() == 1) return open_graph(graph, context);
    // Filters on top of a wrapped leaf.
    VBDKIT_ASSIGN(NodePtr node, open_graph(GraphSpec{{graph.leaf()}}, context));
    node = wrap(std::move(node));
    for (auto it = graph.nodes.rbegin() + 1; it != graph.nodes.rend(); ++it) {
      const auto table = driver_table();
      const auto entry = std::ranges::find(table, it->driver, &DriverEntry::name);
      VBDKIT_ASSIGN(node, entry->open(*it, std::move(node), context));
    }
    return node;
  }

 private:
  std::string path_;
  std::string spec_;
};

}  // namespace

std::function<std::unique_ptr<TestStorage>(uint64_t)> storage_by_spec(
    std::function<std::string(const std::string& path, uint64_t size)> make_spec,
    std::string directory) {
  if (directory.empty()) {
    const char* tmpdir = getenv("TMPDIR");
    directory = tmpdir != nullptr ? tmpdir : "/var/tmp";
  }
  return [make_spec = std::move(make_spec), directory = std::move(directory)](uint64_t size) {
    return std::make_unique<SpecStorage>(make_spec, directory, size);
  };
}

NodeConformance::NodeConformance()
    : seed_(chosen_seed()),
      trace_(__FILE__, __LINE__, "VBDKIT_TEST_SEED=" + std::to_string(seed_)),
      rng_(seed_),
      log_("test", LogLevel::kWarning) {}

void NodeConformance::SetUp() {
  if (GetParam().reactor) {
    reactor_ = GetParam().reactor(seed_);
  } else {
    auto reactor = io::Reactor::create({.engine = GetParam().engine}, log_);
    ASSERT_TRUE(reactor.ok()) << reactor.error().message();
    reactor_ = std::move(reactor).value();
  }
  storage_ = GetParam().create(kSize);
  if (const std::string missing = storage_->missing(); !missing.empty()) GTEST_SKIP() << missing;
  ASSERT_NO_FATAL_FAILURE(open());
  model_.assign(node_->info().size.v, 0);
  ASSERT_GE(model_.size(), kSize);
}

void NodeConformance::open(OpenOptions options) {
  close();
  auto node = storage_->open({*reactor_, log_, options}, unwrapped);
  ASSERT_TRUE(node.ok()) << node.error().message();
  node_ = std::move(node).value();
}

void NodeConformance::open_wrapped(const TestStorage::Wrap& wrap) {
  close();
  auto node = storage_->open({*reactor_, log_, {}}, wrap);
  ASSERT_TRUE(node.ok()) << node.error().message();
  node_ = std::move(node).value();
}

// Cuts the request's memory into pieces. Half of the vectors are what a guest sends, sectors on
// sector borders; the others have any length and address.
void NodeConformance::split(TestIo& io) {
  const bool odd = random(2) == 0;
  const uint64_t grain = odd ? 1 : 512;
  const uint64_t pieces = 1 + random(8);
  std::vector<uint64_t> cuts = {0, io.request.length};
  for (uint64_t i = 1; i < pieces; ++i)
    cuts.push_back(align_down(random(io.request.length), grain));
  std::ranges::sort(cuts);
  constexpr uint64_t kGap = 4096;
  io.memory.resize(io.request.length + (pieces + 1) * (kGap + 16));
  uint8_t* at = io.memory.data();
  for (size_t i = 0; i < pieces; ++i) {
    auto address = align_up(reinterpret_cast<uint64_t>(at), kGap) + (odd ? random(16) : 0);
    const uint64_t length = cuts[i + 1] - cuts[i];
    io.iov.push_back({reinterpret_cast<void*>(address), length});
    at = reinterpret_cast<uint8_t*>(address + length);
  }
}

void NodeConformance::fill(std::vector<uint8_t>& memory) {
  for (size_t i = 0; i < memory.size(); i += sizeof(uint64_t)) {
    const uint64_t word = rng_();
    memcpy(memory.data() + i, &word, std::min(sizeof word, memory.size() - i));
  }
}

TestIo& NodeConformance::add(Op op, uint64_t offset, uint64_t length, uint8_t flags) {
  TestIo& io = ios_.emplace_back();
  io.test = this;
  io.request.op = op;
  io.request.flags = flags;
  io.request.offset = offset;
  io.request.length = length;
  io.request.done = completed;
  if (op == Op::kRead || op == Op::kWrite) {
    split(io);
    fill(io.memory);
  }
  io.request.iov = io.iov.data();
  io.request.iov_count = static_cast<uint32_t>(io.iov.size());
  return io;
}

void NodeConformance::completed(Request& request, int error) {
  static_assert(offsetof(TestIo, request) == 0);
  auto& io = reinterpret_cast<TestIo&>(request);
  EXPECT_EQ(-1, io.error) << "done twice";
  io.error = error;
  if (--io.test->pending_ == 0 && io.test->running_) io.test->reactor_->stop();
}

void NodeConformance::run() {
  run_with([] {});
}

void NodeConformance::run_with(const std::function<void()>& meanwhile) {
  pending_ += ios_.size();
  for (TestIo& io : ios_) node_->submit(io.request);
  meanwhile();
  wait();
  done_ = std::move(ios_);
  ios_.clear();
}

void NodeConformance::wait() {
  if (pending_ == 0) return;
  running_ = true;
  auto ran = reactor_->run();
  running_ = false;
  ASSERT_TRUE(ran.ok()) << ran.error().message();
  ASSERT_EQ(0u, pending_);
}

int NodeConformance::run_one(Op op, uint64_t offset, uint64_t length, uint8_t flags) {
  add(op, offset, length, flags);
  run();
  return done_.front().error;
}

void NodeConformance::apply(const TestIo& io) {
  const Request& r = io.request;
  uint8_t* const expected = model_.data() + r.offset;
  const auto what = testing::Message()
                    << "op " << static_cast<int>(r.op) << " flags " << static_cast<int>(r.flags)
                    << " at " << r.offset << "+" << r.length;
  if (r.op == Op::kDiscard && io.error == EOPNOTSUPP) return;
  ASSERT_EQ(0, io.error) << what;
  switch (r.op) {
    case Op::kRead: {
      if (!GetParam().keeps_data) return;
      std::vector<uint8_t> got(r.length);
      copy_from_iov(r.iov, 0, reinterpret_cast<char*>(got.data()), r.length);
      ASSERT_TRUE(std::equal(got.begin(), got.end(), expected)) << what;
      return;
    }
    case Op::kWrite:
      copy_from_iov(r.iov, 0, reinterpret_cast<char*>(expected), r.length);
      return;
    case Op::kWriteZeroes:
      memset(expected, 0, r.length);
      return;
    case Op::kDiscard: {
      // Either what was there or zeroes, and the same from now on.
      if (!GetParam().keeps_data) return;
      const std::vector<uint8_t> now = read(r.offset, r.length);
      for (uint64_t i = 0; i < r.length; ++i)
        ASSERT_TRUE(now[i] == 0 || now[i] == expected[i]) << what << " byte " << i;
      std::ranges::copy(now, expected);
      return;
    }
    case Op::kFlush:
    case Op::kCopy:
      return;
  }
}

void NodeConformance::apply_all() {
  const auto done = std::move(done_);
  for (const TestIo& io : done) ASSERT_NO_FATAL_FAILURE(apply(io));
}

std::vector<uint8_t> NodeConformance::read(uint64_t offset, uint64_t length) {
  std::vector<uint8_t> out(length);
  if (length == 0) return out;
  add(Op::kRead, offset, length);
  run();
  EXPECT_EQ(0, done_.front().error);
  copy_from_iov(done_.front().request.iov, 0, reinterpret_cast<char*>(out.data()), length);
  return out;
}

void NodeConformance::expect_model() {
  if (!GetParam().keeps_data) return;
  ASSERT_EQ(model_.size(), node_->info().size.v);
  const std::vector<uint8_t> now = read(0, model_.size());
  const auto differ = std::ranges::mismatch(now, model_);
  ASSERT_TRUE(differ.in1 == now.end()) << "at byte " << differ.in1 - now.begin();
}

void NodeConformance::expect_status(uint64_t offset, uint64_t length, size_t max_extents) {
  StatusRequest status;
  status.offset = offset;
  status.length = length;
  status.max_extents = max_extents;
  int error = -1;
  ++pending_;
  status.done = [&](int e) {
    error = e;
    if (--pending_ == 0 && running_) reactor_->stop();
  };
  node_->block_status(status);
  ASSERT_NO_FATAL_FAILURE(wait());
  ASSERT_EQ(0, error);
  ASSERT_FALSE(status.extents.empty());
  ASSERT_LE(status.extents.size(), max_extents);
  uint64_t at = offset;
  for (const Extent& extent : status.extents) {
    ASSERT_GT(extent.length, 0u);
    ASSERT_LE(extent.length, offset + length - at);
    const auto first = model_.begin() + static_cast<ptrdiff_t>(at);
    const bool zero = std::all_of(first, first + static_cast<ptrdiff_t>(extent.length),
                                  [](uint8_t b) { return b == 0; });
    if (GetParam().keeps_data) {
      ASSERT_TRUE(zero || !extent.zero)
          << "data in a zero extent at " << at << "+" << extent.length;
    }
    ASSERT_TRUE(extent.allocated || extent.zero) << "bytes that come from nowhere at " << at;
    at += extent.length;
  }
}

std::pair<uint64_t, uint64_t> NodeConformance::random_range(uint64_t from, uint64_t to,
                                                            uint64_t typical) {
  const uint64_t units = (to - from) / unit();
  const uint64_t start = random(units);
  uint64_t length = 1 + random(std::max<uint64_t>(typical / unit(), 1));
  if (random(50) == 0) length = units;
  length = std::min(length, units - start);
  return {from + start * unit(), length * unit()};
}

Op NodeConformance::random_op() {
  switch (random(10)) {
    case 0:
      return Op::kDiscard;
    case 1:
      return Op::kWriteZeroes;
    case 2:
      return Op::kFlush;
    case 3:
    case 4:
    case 5:
      return Op::kRead;
    default:
      return Op::kWrite;
  }
}

uint8_t NodeConformance::random_flags(Op op) {
  uint8_t flags = 0;
  if ((op == Op::kWrite || op == Op::kDiscard || op == Op::kWriteZeroes) && random(6) == 0)
    flags |= kFua;
  if (op == Op::kWriteZeroes && random(2) == 0) flags |= kMayUnmap;
  return flags;
}

TEST_P(NodeConformance, FreshStorageReadsAsZeroes) {
  EXPECT_GE(node_->info().size.v, kSize);
  EXPECT_EQ(0u, node_->info().size.v % unit());
  expect_model();
}

TEST_P(NodeConformance, RandomRequestsInSequenceMatchTheModel) {
  for (int i = 0; i < 150; ++i) {
    const Op op = random_op();
    auto [offset, length] = random_range(0, model_.size(), 64 << 10);
    if (op == Op::kFlush) offset = length = 0;
    run_one(op, offset, length, random_flags(op));
    ASSERT_NO_FATAL_FAILURE(apply_all());
  }
  expect_model();
}

// The scheduler keeps overlapping requests apart, so those of one round are disjoint.
TEST_P(NodeConformance, DisjointRequestsInFlightTogetherMatchTheModel) {
  for (int round = 0; round < 12; ++round) {
    const uint64_t slots = 1 + random(64);
    const uint64_t slot = align_down(model_.size() / slots, unit());
    for (uint64_t i = 0; i < slots; ++i) {
      const Op op = random_op();
      auto [offset, length] = random_range(i * slot, (i + 1) * slot, 32 << 10);
      if (op == Op::kFlush) offset = length = 0;
      add(op, offset, length, random_flags(op));
    }
    run();
    ASSERT_NO_FATAL_FAILURE(apply_all());
  }
  expect_model();
}

// Where a node works in larger units than its requests (blocks of direct I/O, clusters), neighbours
// in one unit must not lose each other's data.
TEST_P(NodeConformance, NeighboursInOneBlockDoNotDisturbEachOther) {
  for (int round = 0; round < 12; ++round) {
    uint64_t at = random(model_.size() / 4 / unit()) * unit();
    for (int i = 0; i < 48; ++i) {
      const uint64_t length = (1 + random(3)) * unit();
      const uint64_t kind = random(12);
      add(kind == 0   ? Op::kWriteZeroes
          : kind == 1 ? Op::kDiscard
                      : Op::kWrite,
          at, length, kind == 0 && random(2) == 0 ? kMayUnmap : 0);
      at += length;
    }
    run();
    ASSERT_NO_FATAL_FAILURE(apply_all());
  }
  expect_model();
}

TEST_P(NodeConformance, ManyRequestsInFlightAllComplete) {
  const uint64_t length = align_up(4096, unit());
  for (uint64_t i = 0; i < 700; ++i) add(Op::kWrite, i * length, length);
  run();
  ASSERT_NO_FATAL_FAILURE(apply_all());
  for (uint64_t i = 0; i < 700; ++i) add(Op::kRead, i * length, length);
  run();
  ASSERT_NO_FATAL_FAILURE(apply_all());
}

TEST_P(NodeConformance, TheFirstAndTheLastUnitAndTheWholeDiskAreReachable) {
  const uint64_t last = model_.size() - unit();
  for (auto [offset, length] : {std::pair<uint64_t, uint64_t>{0, model_.size()},
                                {0, unit()},
                                {last, unit()},
                                {last - unit(), 2 * unit()}}) {
    EXPECT_EQ(0, run_one(Op::kWrite, offset, length));
    ASSERT_NO_FATAL_FAILURE(apply_all());
    EXPECT_EQ(0, run_one(Op::kRead, offset, length));
    ASSERT_NO_FATAL_FAILURE(apply_all());
  }
  EXPECT_EQ(0, run_one(Op::kWriteZeroes, 0, model_.size(), kMayUnmap));
  ASSERT_NO_FATAL_FAILURE(apply_all());
  expect_model();
}

TEST_P(NodeConformance, AVectorOfVeryManyPiecesIsOneRequest) {
  const uint64_t length = align_up(3 * 1024 * 512, unit());
  for (Op op : {Op::kWrite, Op::kRead}) {
    TestIo& io = add(op, unit(), length);
    io.iov.clear();
    uint8_t* at =
        reinterpret_cast<uint8_t*>(align_up(reinterpret_cast<uint64_t>(io.memory.data()), 512));
    for (uint64_t i = 0; i < length; i += 512) io.iov.push_back({at + i, 512});
    io.request.iov = io.iov.data();
    io.request.iov_count = static_cast<uint32_t>(io.iov.size());
    run();
    ASSERT_NO_FATAL_FAILURE(apply_all());
  }
  expect_model();
}

TEST_P(NodeConformance, BlockStatusNeverCallsDataZero) {
  for (int i = 0; i < 25; ++i) {
    const Op op = random(3) == 0 ? Op::kWriteZeroes : Op::kWrite;
    const auto [offset, length] = random_range(0, model_.size(), 512 << 10);
    run_one(op, offset, length, random_flags(op));
    ASSERT_NO_FATAL_FAILURE(apply_all());
    ASSERT_NO_FATAL_FAILURE(expect_status(0, model_.size(), 1000));
    const auto [from, span] = random_range(0, model_.size(), 1 << 20);
    ASSERT_NO_FATAL_FAILURE(expect_status(from, span, 1 + random(4)));
  }
}

TEST_P(NodeConformance, AReadOnlyNodeReadsAndRefusesEveryChange) {
  EXPECT_EQ(0, run_one(Op::kWrite, 0, 64 * unit(), kFua));
  ASSERT_NO_FATAL_FAILURE(apply_all());
  if (!GetParam().persistent) model_.assign(model_.size(), 0);
  ASSERT_NO_FATAL_FAILURE(open({.read_only = true}));
  EXPECT_TRUE(node_->info().read_only);
  for (Op op : {Op::kWrite, Op::kDiscard, Op::kWriteZeroes})
    EXPECT_EQ(EROFS, run_one(op, 0, unit()));
  EXPECT_FALSE(node_->resize(Bytes{kSize * 2}).ok());
  EXPECT_EQ(0, run_one(Op::kFlush, 0, 0));
  expect_model();
}

TEST_P(NodeConformance, ACopyIsForAJobsFilterAlone) {
  ASSERT_NO_FATAL_FAILURE(open());
  EXPECT_EQ(EOPNOTSUPP, run_one(Op::kCopy, 0, unit()));
  expect_model();
}

TEST_P(NodeConformance, WhatWasFlushedIsFoundByTheNextOpen) {
  if (!GetParam().persistent) GTEST_SKIP() << "nothing outlives this node";
  for (int i = 0; i < 50; ++i) {
    const auto [offset, length] = random_range(0, model_.size(), 128 << 10);
    run_one(Op::kWrite, offset, length);
    ASSERT_NO_FATAL_FAILURE(apply_all());
  }
  EXPECT_EQ(0, run_one(Op::kFlush, 0, 0));
  for (int i = 0; i < 3; ++i) {
    ASSERT_NO_FATAL_FAILURE(open({.read_only = i == 1}));
    ASSERT_NO_FATAL_FAILURE(expect_model());
  }
}

// Who makes a node read-only waits for its writes first, as they might still stand in line; reads
// go on, and so does everything where the node stays writable.
TEST_P(NodeConformance, AReopenLosesNoRequestInFlight) {
  for (bool read_only : {false, true, true, false, false}) {
    const bool writes = !read_only && !node_->info().read_only;
    for (uint64_t i = 0; i < 32; ++i)
      add(writes ? Op::kWrite : Op::kRead, i * (kSize / 32), 64 * unit());
    run_with([&] {
      auto reopened = node_->reopen(read_only);
      EXPECT_TRUE(reopened.ok()) << reopened.error().message();
    });
    ASSERT_NO_FATAL_FAILURE(apply_all());
    EXPECT_EQ(read_only, node_->info().read_only);
    ASSERT_NO_FATAL_FAILURE(expect_model());
  }
  EXPECT_EQ(0, run_one(Op::kWrite, 0, unit()));
  ASSERT_NO_FATAL_FAILURE(apply_all());
  expect_model();
}

TEST_P(NodeConformance, ResizingKeepsDataAndNewSpaceIsZero) {
  if (!GetParam().resizable) GTEST_SKIP() << "this node has a fixed size";
  EXPECT_EQ(0, run_one(Op::kWrite, 0, model_.size()));
  ASSERT_NO_FATAL_FAILURE(apply_all());
  for (uint64_t size : {kSize * 2, kSize / 2 + 3 * 4096, kSize}) {
    auto resized = node_->resize(Bytes{size});
    ASSERT_TRUE(resized.ok()) << resized.error().message();
    model_.resize(size);
    ASSERT_EQ(size, node_->info().size.v);
    ASSERT_NO_FATAL_FAILURE(expect_model());
    ASSERT_NO_FATAL_FAILURE(expect_status(0, size, 1000));
    EXPECT_EQ(0, run_one(Op::kWrite, size - unit(), unit()));
    ASSERT_NO_FATAL_FAILURE(apply_all());
  }
  auto refreshed = node_->refresh_size();
  EXPECT_TRUE(refreshed.ok());
  expect_model();
}

TEST_P(NodeConformance, AnErrorBeneathReachesItsRequestAndNoOther) {
  bool wrapped = false;
  bool failing = false;
  ASSERT_NO_FATAL_FAILURE(open_wrapped([&](NodePtr next) -> NodePtr {
    wrapped = true;
    return std::make_unique<FaultFilter>(std::move(next), [&](const Request& r) {
      return failing && r.op != Op::kFlush && r.offset >= kSize / 2 ? ENOSPC : 0;
    });
  }));
  if (!wrapped) GTEST_SKIP() << "a leaf has nothing beneath it";
  failing = true;
  for (uint64_t i = 0; i < 16; ++i) add(Op::kWrite, i * (kSize / 16), 8 * unit());
  run();
  size_t failed = 0;
  for (const TestIo& io : done_) {
    if (io.error == 0) continue;
    EXPECT_EQ(ENOSPC, io.error);
    ++failed;
  }
  EXPECT_GT(failed, 0u);
  failing = false;
  std::erase_if(done_, [](const TestIo& io) { return io.error != 0; });
  ASSERT_NO_FATAL_FAILURE(apply_all());
  // After the storage has recovered so has the node.
  EXPECT_EQ(0, run_one(Op::kWrite, 0, model_.size()));
  ASSERT_NO_FATAL_FAILURE(apply_all());
  expect_model();
}

TEST_P(NodeConformance, ItsSpecOpensAnEqualNode) {
  if (!GetParam().registered) GTEST_SKIP() << "not in the registry";
  EXPECT_EQ(0, run_one(Op::kWrite, 0, 64 * unit(), kFua));
  ASSERT_NO_FATAL_FAILURE(apply_all());
  const std::string spec = node_->spec();
  close();
  auto graph = parse_graph(spec);
  ASSERT_TRUE(graph.ok()) << graph.error().message();
  EXPECT_EQ(spec, graph->to_string());
  auto node = open_graph(*graph, {*reactor_, log_, {}});
  ASSERT_TRUE(node.ok()) << node.error().message();
  node_ = std::move(node).value();
  EXPECT_EQ(spec, node_->spec());
  if (GetParam().persistent) expect_model();
}

}  // namespace vbdkit::drivers
