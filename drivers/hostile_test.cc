// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Images that claim more than there is, lie over themselves or stand on each other in a circle.
// What an answer may cost is counted, not timed: bytes read, calls to read, growth of the process.
// The time is printed.
#include <gtest/gtest.h>
#include <malloc.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>

#include "drivers/chain/chain_node.h"
#include "drivers/chain/open_chain.h"
#include "drivers/qcow2/check.h"
#include "drivers/qcow2/create.h"
#include "drivers/vhd/check.h"
#include "drivers/vhd/create.h"
#include "drivers/vhd/metadata.h"
#include "io/reactor.h"

namespace vbdkit::drivers {
namespace {

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * kKiB;
constexpr uint64_t kTiB = kMiB * kMiB;

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kMemoryCounts = false;  // what is freed stays in quarantine
#else
constexpr bool kMemoryCounts = true;
#endif

uint64_t field_of(const char* file, const std::string& name) {
  std::ifstream in(file);
  for (std::string word; in >> word;)
    if (word == name + ":") {
      uint64_t value = 0;
      in >> value;
      return value;
    }
  ADD_FAILURE() << file << " has no " << name;
  return 0;
}

// What this process does between two points.
class Costs {
 public:
  Costs() {
    malloc_trim(0);
    std::ofstream("/proc/self/clear_refs") << 5;  // the peak is what it is now
    resident_ = field_of("/proc/self/status", "VmRSS");
    read_ = field_of("/proc/self/io", "rchar");
    calls_ = field_of("/proc/self/io", "syscr");
    start_ = std::chrono::steady_clock::now();
  }
  // At most so much. Prints the time.
  void expect(uint64_t read, uint64_t calls, uint64_t memory) const {
    const auto time = std::chrono::steady_clock::now() - start_;
    const uint64_t now_read = field_of("/proc/self/io", "rchar") - read_;
    const uint64_t now_calls = field_of("/proc/self/io", "syscr") - calls_;
    const uint64_t peak = field_of("/proc/self/status", "VmHWM");
    const uint64_t grown = peak > resident_ ? (peak - resident_) * kKiB : 0;
    std::printf("  %.1f ms, %.1f MiB read in %llu calls, %.1f MiB of memory\n",
                std::chrono::duration<double, std::milli>(time).count(),
                static_cast<double>(now_read) / kMiB, static_cast<unsigned long long>(now_calls),
                static_cast<double>(grown) / kMiB);
    EXPECT_LE(now_read, read);
    EXPECT_LE(now_calls, calls);
    if (kMemoryCounts) {
      EXPECT_LE(grown, memory);
    }
  }

 private:
  uint64_t resident_;
  uint64_t read_;
  uint64_t calls_;
  std::chrono::steady_clock::time_point start_;
};

class HostileImage : public testing::Test {
 protected:
  HostileImage()
      : log_("test", LogLevel::kError, -1),
        reactor_(std::move(io::Reactor::create({.engine = io::EngineKind::kSync}, log_)).value()) {
    const char* base = getenv("TMPDIR");
    directory_ = std::string(base != nullptr ? base : "/var/tmp") + "/vbdkit-hostile-XXXXXX";
    EXPECT_NE(nullptr, mkdtemp(directory_.data()));
  }
  ~HostileImage() override {
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }

  std::string path(const std::string& name) const { return directory_ + "/" + name; }

  Result<NodePtr> open(const std::string& spec, bool read_only) {
    VBDKIT_ASSIGN(const GraphSpec graph, parse_graph(spec));
    return open_graph(graph, {*reactor_, log_, {.read_only = read_only}});
  }
  // The message; a test fails where it opens.
  std::string refused(const std::string& spec, bool read_only) {
    const auto node = open(spec, read_only);
    EXPECT_FALSE(node.ok()) << spec;
    return node.ok() ? "" : node.error().message();
  }
  int read(Node& node, uint64_t offset) {
    struct Io {
      Request request;  // first
      io::Reactor* reactor;
      int error = -1;
    } io{{}, reactor_.get()};
    std::vector<std::byte> memory(4096);
    const iovec iov{memory.data(), memory.size()};
    io.request.offset = offset;
    io.request.length = memory.size();
    io.request.iov = &iov;
    io.request.iov_count = 1;
    io.request.done = [](Request& r, int error) {
      auto& self = reinterpret_cast<Io&>(r);
      self.error = error;
      self.reactor->stop();
    };
    node.submit(io.request);
    EXPECT_TRUE(reactor_->run().ok());
    return io.error;
  }
  template <typename T>
  void poke_be(const std::string& name, uint64_t offset, std::initializer_list<T> values) {
    auto file = ImageFile::open(path(name), ImageFile::Mode::kWrite);
    ASSERT_TRUE(file.ok());
    std::vector<T> bytes;
    for (const T value : values) bytes.push_back(qcow2::load_be<T>(&value));
    ASSERT_TRUE(file->write(offset, std::as_bytes(std::span(bytes))).ok());
  }
  void stretch(const std::string& name, uint64_t size) {
    auto file = ImageFile::open(path(name), ImageFile::Mode::kWrite);
    ASSERT_TRUE(file.ok() && file->resize(Bytes{size}).ok());
  }

  Logger log_;
  std::unique_ptr<io::Reactor> reactor_;
  std::string directory_;
};

class HostileQcow2 : public HostileImage {
 protected:
  void make(const std::string& name, uint64_t size, const std::string& parent = "") {
    std::map<std::string, std::string> options;
    if (!parent.empty()) options = {{"backing_file", parent}, {"backing_fmt", "qcow2"}};
    const auto parsed = qcow2::parse_create_options(Bytes{size}, options);
    ASSERT_TRUE(parsed.ok());
    const auto created = qcow2::create_image(path(name), *parsed);
    ASSERT_TRUE(created.ok()) << created.error().message();
  }
  // A disk of 2 PiB, whose L1 table has the greatest size that is allowed, in the file's hole.
  void make_huge(const std::string& name, const std::string& parent = "") {
    make(name, kMiB, parent);
    stretch(name, kTiB);
    poke_be<uint64_t>(name, qcow2::kSizeField, {2 * kKiB * kTiB});
    poke_be<uint32_t>(name, qcow2::kL1EntriesField, {static_cast<uint32_t>(32 * kMiB / 8)});
    poke_be<uint64_t>(name, qcow2::kL1OffsetField, {kL1});
  }
  static constexpr uint64_t kL1 = 64 * kMiB;
};

TEST_F(HostileQcow2, ALoopOfThreeIsFoundWhenItClosesNamingEachStep) {
  make("a", kMiB);
  make("b", kMiB, "a");
  make("c", kMiB, "b");
  std::filesystem::rename(path("c"), path("a"));
  const Costs costs;
  const std::string error = refused("qcow2:" + path("b"), false);
  costs.expect(4 * kMiB, 100, 4 * kMiB);
  for (const char* step : {"a", "b", "loop"})
    EXPECT_NE(error.find(step), std::string::npos) << error;
}

TEST_F(HostileQcow2, AChainTooLongIsRefusedAtTheLimit) {
  make("0", kMiB);
  for (unsigned i = 1; i <= kMaxChainDepth; ++i)
    make(std::to_string(i), kMiB, std::to_string(i - 1));
  const Costs costs;
  const std::string error = refused("qcow2:" + path(std::to_string(kMaxChainDepth)), true);
  costs.expect(64 * kMiB, 20 * kMaxChainDepth, 32 * kMiB);
  EXPECT_NE(error.find("longer than 256 images"), std::string::npos) << error;
}

TEST_F(HostileQcow2, ParentsWithHugeTablesCostLittleMemory) {
  make_huge("0");
  for (unsigned i = 1; i < 64; ++i) make_huge(std::to_string(i), std::to_string(i - 1));
  make("leaf", 64 * kMiB, "63");
  const Costs costs;
  const auto node = open("qcow2:" + path("leaf"), false);
  ASSERT_TRUE(node.ok()) << node.error().message();
  EXPECT_EQ(0, read(**node, 0));
  costs.expect(64 * kMiB, 64 * 20, 24 * kMiB);
}

TEST_F(HostileQcow2, TablesOverEachOtherAreNotWritten) {
  make("a", 2 * 512 * kMiB);  // two L2 tables
  const uint64_t end = std::filesystem::file_size(path("a"));
  stretch("a", 16 * kMiB);
  auto file = qcow2::MetadataFile::open(path("a"), ImageFile::Mode::kRead);
  const uint64_t l1 = file->read_header()->l1_offset;
  const uint64_t table = align_up(end, 64 * kKiB);
  for (const uint64_t second : {table, l1, uint64_t{65536}}) {
    poke_be<uint64_t>("a", l1, {table | qcow2::kCopiedFlag, second | qcow2::kCopiedFlag});
    const Costs costs;
    const std::string error = refused("qcow2:" + path("a"), false);
    costs.expect(kMiB, 30, 4 * kMiB);
    EXPECT_NE(error.find("overlap"), std::string::npos) << error;
    const auto checked = qcow2::check_image(path("a"), qcow2::Repair::kNone);
    ASSERT_TRUE(checked.ok());
    EXPECT_NE(0u, checked->corruptions);
  }
}

// An image that was not closed properly is checked while it is opened, which must not take hours
// because of what it claims.
TEST_F(HostileQcow2, AnUncleanImageWithTablesInAHoleIsRefusedAtOnce) {
  make_huge("a");
  poke_be<uint64_t>("a", qcow2::kIncompatibleField, {qcow2::kDirtyBit});
  {
    auto file = qcow2::MetadataFile::open(path("a"), ImageFile::Mode::kWrite);
    std::vector<uint64_t> l1(32 * kMiB / 8);
    for (size_t i = 0; i < l1.size(); ++i) l1[i] = 2 * kL1 + i % (kTiB / 2 / 65536) * 65536;
    ASSERT_TRUE(file->write_table(kL1, l1).ok());
  }
  const Costs costs;
  const std::string error = refused("qcow2:" + path("a"), false);
  costs.expect(64 * kMiB, 100, 100 * kMiB);
  EXPECT_NE(error.find("more metadata"), std::string::npos) << error;
}

TEST_F(HostileQcow2, SnapshotsThatShareOneHugeTableEndTheCheck) {
  make_huge("a");
  const uint64_t table = 32 * kMiB;
  std::vector<uint8_t> entries(65536 * 56);
  for (size_t i = 0; i < 65536; ++i) {
    uint8_t* const entry = &entries[i * 56];
    qcow2::store_be<uint64_t>(entry, kL1);
    qcow2::store_be<uint32_t>(entry + 8, 32 * kMiB / 8);
    qcow2::store_be<uint32_t>(entry + 36, 16);
  }
  auto file = qcow2::MetadataFile::open(path("a"), ImageFile::Mode::kWrite);
  ASSERT_TRUE(file->write(table, entries).ok());
  poke_be<uint32_t>("a", 60, {65536});
  poke_be<uint64_t>("a", 64, {table});
  poke_be<uint64_t>("a", qcow2::kIncompatibleField, {qcow2::kDirtyBit});
  const Costs costs;
  const std::string error = refused("qcow2:" + path("a"), false);
  costs.expect(256 * kMiB, 100, 160 * kMiB);
  EXPECT_NE(error.find("more metadata"), std::string::npos) << error;
}

class HostileVhd : public HostileImage {
 protected:
  void make(const std::string& name, uint64_t size, const std::string& parent = "") {
    vhd::CreateOptions options{.size = Bytes{size}, .block_size = vhd::kMinBlock};
    if (!parent.empty()) {
      options.type = vhd::DiskType::kDifferencing;
      options.parent = path(parent);
    }
    const auto created = vhd::create(path(name), options);
    ASSERT_TRUE(created.ok()) << created.error().message();
  }
  uint64_t table_of(const std::string& name) {
    auto file = ImageFile::open(path(name), ImageFile::Mode::kRead);
    return vhd::read_metadata(*file)->header.table_offset;
  }
};

TEST_F(HostileVhd, ALoopOfThreeIsFoundWhenItClosesNamingEachStep) {
  make("a", 8 * kMiB);
  make("b", 8 * kMiB, "a");
  make("c", 8 * kMiB, "b");
  std::filesystem::rename(path("c"), path("a"));
  const Costs costs;
  const std::string error = refused("vhd:" + path("b"), false);
  costs.expect(kMiB, 100, 4 * kMiB);
  EXPECT_NE(error.find(path("a")), std::string::npos) << error;
}

TEST_F(HostileVhd, BlocksOverEachOtherAreNotWritten) {
  make("a", 8 * kMiB);
  const uint64_t table = table_of("a");
  stretch("a", 32 * kMiB);
  const uint32_t length = (vhd::kMinBlock + 512) / 512;
  const uint32_t first = 4 * kMiB / 512;
  for (const uint32_t second :
       {first, first + 1, first - 1, first + length - 1, first - length + 1}) {
    poke_be<uint32_t>("a", table, {first, vhd::kUnused, second});
    const Costs costs;
    const std::string error = refused("vhd:" + path("a"), false);
    costs.expect(kMiB, 30, 4 * kMiB);
    EXPECT_NE(error.find("blocks 0 and 2 overlap"), std::string::npos) << error;
    EXPECT_FALSE(vhd::check(path("a"), false)->errors.empty());
  }
  poke_be<uint32_t>("a", table, {first, vhd::kUnused, first + length});
  EXPECT_TRUE(open("vhd:" + path("a"), false).ok());
}

TEST_F(HostileVhd, TheLargestTableCostsNoMoreThanItself) {
  make("a", vhd::kMaxSize);
  const uint64_t table = table_of("a");
  auto file = ImageFile::open(path("a"), ImageFile::Mode::kRead);
  ASSERT_EQ(vhd::read_metadata(*file)->header.blocks, vhd::kMaxBlocks);
  stretch("a", 3 * kTiB);
  // Blocks that take turns at both ends of what can be addressed.
  poke_be<uint32_t>("a", table, {0xffffff00u - 2048, 1 << 20});
  {
    const Costs costs;
    EXPECT_TRUE(open("vhd:" + path("a"), false).ok());
    costs.expect(20 * kMiB, 40, 80 * kMiB);
  }
  make("b", vhd::kMaxSize, "a");
  make("c", vhd::kMaxSize, "b");
  const Costs costs;
  const auto node = open("vhd:" + path("c"), true);
  ASSERT_TRUE(node.ok()) << node.error().message();
  EXPECT_EQ(0, read(**node, kTiB));
  costs.expect(2 * kMiB, 80, 4 * kMiB);
}

// A fully fragmented disk of 2 TiB, more of which is read than the map may hold.
TEST_F(HostileQcow2, TheMapOfAFragmentedDiskStaysWithinItsLimit) {
  constexpr uint64_t kSize = 2 * kTiB;
  constexpr uint64_t kClusters = 512;  // of one L2 slice: a window of the map
  make("a", kSize);
  stretch("a", kTiB);
  {
    // Every L1 entry has a table, and in each table no cluster follows its neighbour in the file.
    auto file = qcow2::MetadataFile::open(path("a"), ImageFile::Mode::kWrite);
    const auto header = file->read_header();
    std::vector<uint64_t> l1(header->l1_entries);
    std::vector<uint64_t> l2(8192);
    for (size_t i = 0; i < l2.size(); ++i)
      l2[i] = (64 * kMiB + (i ^ 1) * 2 * 64 * kKiB) | qcow2::kCopiedFlag;
    for (size_t i = 0; i < l1.size(); ++i) l1[i] = 32 * kMiB | qcow2::kCopiedFlag;
    ASSERT_TRUE(file->write_table(32 * kMiB, l2).ok());
    ASSERT_TRUE(file->write_table(header->l1_offset, l1).ok());
  }
  constexpr uint64_t kLimit = 4 * kMiB;
  const auto node = open("qcow2,map-memory=4M:" + path("a"), true);
  ASSERT_TRUE(node.ok()) << node.error().message();
  const auto& chain = static_cast<const ChainNode&>(**node);
  EXPECT_EQ(0, read(**node, 0));
  EXPECT_GT(chain.map().memory(), kClusters * 4);
  const Costs costs;
  for (uint64_t at = 0; at < kSize; at += 16 * chain.map().window()) {
    ASSERT_EQ(0, read(**node, at));
    ASSERT_LE(chain.map().memory(), kLimit);
  }
  EXPECT_GT(chain.map().memory(), kLimit - 64 * kKiB);
  // What window_map.h says that such a window takes.
  EXPECT_LE(chain.map().memory() / chain.map().windows(), 6500u);
  costs.expect(UINT64_MAX, UINT64_MAX, 2 * kLimit);
}

}  // namespace
}  // namespace vbdkit::drivers
