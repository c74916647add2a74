// SPDX-License-Identifier: LGPL-2.1-or-later
//
// ChainNode on layers whose maps are plain arrays and whose files are recording disks, so that
// every answer and every completion comes in random order.
#include "drivers/chain/chain_node.h"

#include <gtest/gtest.h>

#include <deque>

#include "drivers/crash_replay.h"

namespace vbdkit::drivers {
namespace {

constexpr uint64_t kSector = kSectorSize;
constexpr uint64_t kDisk = 1 << 20;  // bytes
constexpr size_t kSectors = kDisk / kSector;

// Sector i of a layer holds "i, layer": two words, repeated.
void fill(std::vector<std::byte>& to, uint64_t offset, uint64_t tag) {
  WriteOracle::fill(tag, offset, to);
}

struct Questions {
  std::deque<std::function<void()>> answers;  // of map(), not given yet
  unsigned asked = 0;
};

class FakeLayer final : public Layer {
 public:
  FakeLayer(Questions& questions, uint64_t size, uint64_t tag) : questions_(questions) {
    info_.size = Bytes{size};
    info_.map_window = kMinWindow;
    kinds_.assign(size / kSector, Segment::Kind::kAbsent);
    std::vector<std::byte> content(size);
    fill(content, 0, tag);
    SparseBytes bytes;
    bytes.write(0, content.data(), content.size());
    disk_ = std::make_unique<CrashRecorder>(std::move(bytes));
    file_ = disk_->node();
  }

  const LayerInfo& info() const override { return info_; }
  Node& file() override { return *file_; }
  const ParentReference* parent() const override { return nullptr; }
  void read_special(Request& request) override { file_->submit(request); }
  void flush(Request& request) override { file_->submit(request); }
  void discard(Request& request) override { request.done(request, EOPNOTSUPP); }
  void write_zeroes(Request& request) override { request.done(request, EOPNOTSUPP); }
  Result<void> resize(Bytes) override { return Error(ErrorKind::kUnsupported, "fixed"); }
  void set_chain(MapListener& listener, ParentReader& below) override {
    listener_ = &listener;
    below_ = &below;
  }

  void map(MapRequest& request) override {
    ++questions_.asked;
    questions_.answers.push_back([this, &request] {
      for (uint64_t at = request.offset; at < request.offset + request.length; at += kSector)
        request.segments.push_back({kSector, at, kinds_[at / kSector]});
      request.done(0);
    });
  }

  // The data go to their place; then they are told of.
  void write(Request& request) override {
    request.owner = this;
    struct Forward {
      Request request;
      FakeLayer* layer;
      Request* from;
    };
    auto* forward = new Forward{request, this, &request};
    forward->request.done = [](Request& r, int error) {
      const std::unique_ptr<Forward> f(reinterpret_cast<Forward*>(&r));
      for (uint64_t at = r.offset; at < r.offset + r.length; at += kSector)
        f->layer->kinds_[at / kSector] = Segment::Kind::kData;
      f->layer->listener_->remapped(r.offset, {r.length, r.offset, Segment::Kind::kData});
      f->from->done(*f->from, error);
    };
    file_->submit(forward->request);
  }

  CrashRecorder& disk() { return *disk_; }
  Segment::Kind& kind(size_t sector) { return kinds_[sector]; }
  ParentReader& below() { return *below_; }

 private:
  Questions& questions_;
  LayerInfo info_;
  std::vector<Segment::Kind> kinds_;
  std::unique_ptr<CrashRecorder> disk_;
  NodePtr file_;
  MapListener* listener_ = nullptr;
  ParentReader* below_ = nullptr;
};

struct Io {
  Request request;  // first
  std::vector<std::byte> memory;
  iovec iov[3];
  bool done = false;
};

class ChainTest : public testing::Test {
 protected:
  // `sizes`: of the layers, leaf first.
  void make(const std::vector<uint64_t>& sizes, size_t map_memory = 1 << 20) {
    Chain chain;
    layers_.clear();
    for (size_t i = 0; i < sizes.size(); ++i) {
      auto layer = std::make_unique<FakeLayer>(questions_, sizes[i], i + 1);
      layers_.push_back(layer.get());
      chain.layers.push_back(std::move(layer));
      chain.paths.push_back("layer " + std::to_string(i));
    }
    ChainOptions options;
    options.driver = "fake";
    options.map_memory = map_memory;
    node_ = std::make_unique<ChainNode>(std::move(chain), std::move(options));
  }

  Io& submit(Op op, uint64_t offset, uint64_t length, uint64_t tag = 0) {
    Io& io = prepare(op, offset, length, tag);
    node_->submit(io.request);
    return io;
  }
  Io& prepare(Op op, uint64_t offset, uint64_t length, uint64_t tag = 0) {
    Io& io = ios_.emplace_back();
    io.memory.resize(length);
    if (op == Op::kWrite) fill(io.memory, offset, tag);
    // Three pieces, the middle one of a byte.
    const size_t half = length / 2 + 1;
    io.iov[0] = {io.memory.data(), half};
    io.iov[1] = {io.memory.data() + half, 1};
    io.iov[2] = {io.memory.data() + half + 1, length - half - 1};
    io.request.op = op;
    io.request.offset = offset;
    io.request.length = length;
    io.request.iov = io.iov;
    io.request.iov_count = 3;
    io.request.done = [](Request& r, int error) {
      EXPECT_EQ(error, 0);
      reinterpret_cast<Io*>(&r)->done = true;
    };
    return io;
  }
  // One thing that is due happens.
  bool step() {
    const size_t first = random_() % (layers_.size() + 1);
    for (size_t i = 0; i <= layers_.size(); ++i) {
      const size_t which = (first + i) % (layers_.size() + 1);
      if (which == layers_.size()) {
        if (questions_.answers.empty()) continue;
        const size_t n = random_() % questions_.answers.size();
        auto answer = std::move(questions_.answers[n]);
        questions_.answers.erase(questions_.answers.begin() + static_cast<ptrdiff_t>(n));
        answer();
        return true;
      }
      if (layers_[which]->disk().idle()) continue;
      layers_[which]->disk().complete_one(random_);
      return true;
    }
    return false;
  }
  void finish() {
    while (step()) {
    }
    for (const Io& io : ios_) ASSERT_TRUE(io.done);
  }
  uint64_t file_requests() const {
    uint64_t n = 0;
    for (FakeLayer* layer : layers_) n += layer->disk().requests();
    return n;
  }
  // The tag that a sector of the disk shows.
  uint64_t expected_tag(size_t sector, size_t first = 0) const {
    for (size_t i = first; i < layers_.size(); ++i) {
      if (sector >= layers_[i]->info().size.v / kSector) return 0;
      const Segment::Kind kind = layers_[i]->kind(sector);
      if (kind == Segment::Kind::kZero) return 0;
      if (kind != Segment::Kind::kAbsent) return i + 1;
    }
    return 0;
  }
  void expect_sectors(const Io& io, const std::function<uint64_t(size_t)>& tag_of) {
    for (uint64_t at = 0; at < io.request.length; at += kSector) {
      const uint64_t offset = io.request.offset + at;
      std::vector<std::byte> sector(kSector);
      const uint64_t tag = tag_of(offset / kSector);
      if (tag != 0) fill(sector, offset, tag);
      ASSERT_EQ(0, memcmp(sector.data(), io.memory.data() + at, kSector))
          << "sector " << offset / kSector << ", layer " << tag;
    }
  }

  std::mt19937_64 random_{1};
  Questions questions_;
  std::vector<FakeLayer*> layers_;
  std::unique_ptr<ChainNode> node_;
  std::deque<Io> ios_;
};

TEST_F(ChainTest, ReadsAndWritesMatchTheLayersInAnyOrderOfCompletion) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE(seed);
    random_.seed(seed);
    // Every third run the map holds one window at most.
    make({kDisk, kDisk, kDisk / 2, kDisk, kDisk}, seed % 3 == 0 ? 0 : 1 << 20);
    for (FakeLayer* layer : layers_)
      for (size_t s = 0; s < layer->info().size.v / kSector; ++s) {
        if (random_() % 4 != 0) continue;
        layer->kind(s) = std::array{Segment::Kind::kData, Segment::Kind::kZero,
                                    Segment::Kind::kCompressed}[random_() % 3];
      }
    std::vector<uint64_t> model(kSectors);
    for (size_t s = 0; s < kSectors; ++s) model[s] = expected_tag(s);
    for (uint64_t tag = 100; tag < 300; ++tag) {
      const size_t start = random_() % kSectors;
      const size_t count = std::min<size_t>(kSectors - start, 1 + random_() % 300);
      const bool write = random_() % 2 == 0;
      bool overlaps = false;
      for (const Io& io : ios_)
        overlaps = overlaps || (!io.done && (write || io.request.op == Op::kWrite) &&
                                io.request.offset < (start + count) * kSector &&
                                start * kSector < io.request.offset + io.request.length);
      if (overlaps) continue;
      Io& io = submit(write ? Op::kWrite : Op::kRead, start * kSector, count * kSector, tag);
      if (write) std::fill_n(model.begin() + static_cast<ptrdiff_t>(start), count, tag);
      for (uint64_t n = random_() % 12; n > 0; --n) step();
      if (write || !io.done) continue;
      ASSERT_NO_FATAL_FAILURE(expect_sectors(io, [&](size_t s) { return model[s]; }));
    }
    ASSERT_NO_FATAL_FAILURE(finish());
    Io& all = submit(Op::kRead, 0, kDisk);
    ASSERT_NO_FATAL_FAILURE(finish());
    ASSERT_NO_FATAL_FAILURE(expect_sectors(all, [&](size_t s) { return model[s]; }));
    ios_.clear();
  }
}

TEST_F(ChainTest, BeyondAShorterParentThereAreZeroes) {
  make({kDisk, kDisk / 2, kDisk});
  for (size_t s = 0; s < kSectors; ++s) layers_[2]->kind(s) = Segment::Kind::kData;
  Io& io = submit(Op::kRead, 0, kDisk);
  finish();
  expect_sectors(io, [](size_t s) { return s < kSectors / 2 ? 3 : 0; });
}

TEST_F(ChainTest, MissesOfOneWindowShareItsBuilding) {
  make({kDisk, kDisk});
  for (size_t s = 0; s < kSectors; ++s) layers_[0]->kind(s) = Segment::Kind::kData;
  for (uint64_t i = 0; i < 16; ++i) submit(Op::kRead, i * 4096, 4096);
  EXPECT_EQ(questions_.asked, 1u);
  finish();
  EXPECT_EQ(questions_.asked, 1u);
}

TEST_F(ChainTest, LayersAreAskedInGrowingGroupsAndNoneTwice) {
  make(std::vector<uint64_t>(64, kDisk));
  layers_[63]->kind(0) = Segment::Kind::kData;
  submit(Op::kRead, 0, 4096);
  unsigned rounds = 0;
  while (!questions_.answers.empty()) {
    ++rounds;
    for (size_t n = questions_.answers.size(); n > 0; --n) {
      auto answer = std::move(questions_.answers.front());
      questions_.answers.pop_front();
      answer();
    }
  }
  EXPECT_EQ(questions_.asked, 64u);
  EXPECT_LE(rounds, 8u);
  finish();
}

// What depth costs once the map is known: nothing.
TEST_F(ChainTest, AtDepth64ReadsIssueAsManyFileRequestsAsAtDepth1) {
  uint64_t counts[2];
  for (const size_t depth : {1, 64}) {
    make(std::vector<uint64_t>(depth, kDisk));
    // Runs of 8 KiB, each in one layer.
    for (size_t s = 0; s < kSectors; ++s)
      layers_[depth == 1 ? 0 : s / 16 * 7 % 64]->kind(s) = Segment::Kind::kData;
    submit(Op::kRead, 0, kDisk);
    finish();
    const uint64_t before = file_requests();
    for (uint64_t at = 0; at < kDisk; at += 4096) submit(Op::kRead, at, 4096);
    finish();
    counts[depth == 64] = file_requests() - before;
    ios_.clear();
  }
  EXPECT_EQ(counts[0], kDisk / 4096);
  EXPECT_EQ(counts[0], counts[1]);
}

TEST_F(ChainTest, NeighboursInOneFileAreOneRequestAcrossWindows) {
  make({kDisk});
  for (size_t s = 0; s < kSectors; ++s) layers_[0]->kind(s) = Segment::Kind::kData;
  submit(Op::kRead, 0, kDisk);
  finish();
  const uint64_t before = file_requests();
  submit(Op::kRead, kMinWindow - 8192, 16384);
  finish();
  EXPECT_EQ(file_requests() - before, 1u);
}

TEST_F(ChainTest, ReadBelowLeavesOutTheLeaf) {
  make({kDisk, kDisk, kDisk});
  for (size_t s = 0; s < kSectors; ++s) {
    if (s % 3 == 0) layers_[0]->kind(s) = Segment::Kind::kData;
    if (s % 5 == 0) layers_[1]->kind(s) = Segment::Kind::kData;
    layers_[2]->kind(s) = Segment::Kind::kData;
  }
  Io& io = prepare(Op::kRead, 0, kDisk);
  layers_[0]->below().read_below(io.request);
  finish();
  expect_sectors(io, [&](size_t s) { return expected_tag(s, 1); });
  EXPECT_TRUE(layers_[0]->below().has_parent());
}

TEST_F(ChainTest, StatusTellsHolesZeroesAndData) {
  make({kDisk, kDisk});
  for (size_t s = 8; s < 16; ++s) layers_[1]->kind(s) = Segment::Kind::kData;
  for (size_t s = 16; s < 24; ++s) layers_[0]->kind(s) = Segment::Kind::kZero;
  StatusRequest status;
  status.length = 32 * kSector;
  status.max_extents = 100;
  bool done = false;
  status.done = [&](int error) {
    EXPECT_EQ(error, 0);
    done = true;
  };
  node_->block_status(status);
  finish();
  ASSERT_TRUE(done);
  ASSERT_EQ(status.extents.size(), 4u);
  EXPECT_TRUE(status.extents[0].zero && !status.extents[0].allocated);
  EXPECT_TRUE(!status.extents[1].zero && status.extents[1].allocated);
  EXPECT_TRUE(status.extents[2].zero && status.extents[2].allocated);
  EXPECT_EQ(status.extents[3].length, 8 * kSector);
}

TEST_F(ChainTest, ARequestOutsideTheDiskIsRefused) {
  make({kDisk});
  Io& io = prepare(Op::kRead, kDisk, 4096);
  int seen = 0;
  static int* error_seen;
  error_seen = &seen;
  io.request.done = [](Request&, int error) { *error_seen = error; };
  node_->submit(io.request);
  EXPECT_EQ(seen, EINVAL);
}

}  // namespace
}  // namespace vbdkit::drivers
