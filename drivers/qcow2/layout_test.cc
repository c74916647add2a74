// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Headers and entries, good and hostile. Hostile images get an error that says what is wrong, and
// nothing is allocated by what they claim.
#include "drivers/qcow2/layout.h"

#include <gtest/gtest.h>

#include <functional>

#include "drivers/qcow2/check.h"
#include "drivers/qcow2/create.h"
#include "drivers/qcow2/test_disk.h"

namespace vbdkit::drivers::qcow2 {
namespace {

constexpr uint64_t kFileSize = 1 << 20;

Header sample() {
  Header h;
  h.size = 64 << 20;
  h.l1_entries = 1;
  h.refcount_table_offset = 65536;
  h.refcount_table_clusters = 1;
  h.l1_offset = 131072;
  h.header_length = 112;
  return h;
}

std::vector<uint8_t> encoded(const Header& header) {
  auto bytes = encode_header(header);
  EXPECT_TRUE(bytes.ok()) << bytes.error().message();
  return std::move(bytes).value();
}

TEST(Qcow2Layout, AHeaderReadsAsItWasWritten) {
  Header h = sample();
  h.geometry.refcount_order = 3;
  h.geometry.extended = true;
  h.incompatible = kExtendedL2Bit | kCompressionTypeBit | kDirtyBit;
  h.compatible = kLazyRefcountsBit;
  h.compression = Compression::kZstd;
  h.backing_file = "../base image.qcow2";
  h.extensions = {{kExtensionBackingFormat, {'q', 'c', 'o', 'w', '2'}}, {0x12345678, {1, 2, 3}}};
  const auto parsed = parse_header(encoded(h), kFileSize);
  ASSERT_TRUE(parsed.ok()) << parsed.error().message();
  EXPECT_EQ(h.size, parsed->size);
  EXPECT_EQ(3u, parsed->geometry.refcount_order);
  EXPECT_TRUE(parsed->geometry.extended);
  EXPECT_TRUE(parsed->dirty());
  EXPECT_TRUE(parsed->lazy_refcounts());
  EXPECT_EQ(Compression::kZstd, parsed->compression);
  EXPECT_EQ("../base image.qcow2", parsed->backing_file);
  EXPECT_EQ("qcow2", parsed->backing_format);
  ASSERT_EQ(2u, parsed->extensions.size());
  EXPECT_EQ(0x12345678u, parsed->extensions[1].type);
  EXPECT_EQ((std::vector<uint8_t>{1, 2, 3}), parsed->extensions[1].data);
}

struct Hostile {
  const char* name;
  std::function<void(std::vector<uint8_t>& header)> harm;
  const char* expected;  // part of the message
};

void PrintTo(const Hostile& h, std::ostream* out) { *out << h.name; }

class Qcow2HostileHeader : public testing::TestWithParam<Hostile> {};

TEST_P(Qcow2HostileHeader, IsRefused) {
  Header h = sample();
  // A table of names, as a later version may write it.
  std::vector<uint8_t> names(48);
  names[1] = 17;
  memcpy(&names[2], "time travel", 11);
  h.extensions = {{kExtensionFeatureNames, names}};
  std::vector<uint8_t> bytes = encoded(h);
  ASSERT_TRUE(parse_header(bytes, kFileSize).ok());
  GetParam().harm(bytes);
  const auto parsed = parse_header(bytes, kFileSize);
  ASSERT_FALSE(parsed.ok());
  EXPECT_NE(std::string::npos, parsed.error().message().find(GetParam().expected))
      << parsed.error().message();
}

using Bytes8 = std::vector<uint8_t>;

std::vector<Hostile> hostile_headers() {
  const auto put32 = [](size_t at, uint32_t v) { return [=](Bytes8& b) { store_be(&b[at], v); }; };
  const auto put64 = [](size_t at, uint64_t v) { return [=](Bytes8& b) { store_be(&b[at], v); }; };
  return {
      {"Magic", put32(0, 0x51464900), "not a qcow2 image"},
      {"Version", put32(4, 4), "version 4"},
      {"ClusterBitsSmall", put32(20, 8), "2^8"},
      {"ClusterBitsLarge", put32(20, 22), "2^22"},
      {"ClusterBitsHuge", put32(20, 0xffffffff), "2^4294967295"},
      {"Encrypted", put32(32, 2), "LUKS"},
      {"L1TooSmall", put64(24, uint64_t{1} << 40), "L1 table has 1 entries"},
      {"SizeHuge", put64(24, ~uint64_t{0}), "2^63"},
      {"L1Huge", put32(36, 0x7fffffff), "too large"},
      {"L1Outside", put64(40, uint64_t{1} << 60), "beyond the end of the file"},
      {"L1Unaligned", put64(40, 131072 + 512), "beginning"},
      {"L1OnHeader", put64(40, 0), "overlap"},
      {"L1OnRefcounts", put64(40, 65536), "overlap"},
      {"RefcountsOutside", put64(48, uint64_t{1} << 62), "beyond the end of the file"},
      {"RefcountsNone", put32(56, 0), "no refcount table"},
      {"RefcountsHuge", put32(56, 0xffffffff), "too large"},
      {"SnapshotsMany", put32(60, 65537), "too many"},
      {"SnapshotsOutside",
       [](Bytes8& b) {
         store_be<uint32_t>(&b[60], 1);
         store_be<uint64_t>(&b[64], kFileSize * 2);
       },
       "beyond the end of the file"},
      {"ExternalData", put64(72, kDataFileBit), "external data file"},
      {"UnknownNamed", put64(72, uint64_t{1} << 17), "\"time travel\""},
      {"UnknownUnnamed", put64(72, uint64_t{1} << 40), "bit 40"},
      {"RefcountWidth", put32(96, 7), "at most 64"},
      {"HeaderShort", put32(100, 80), "less than 104"},
      {"HeaderOdd", put32(100, 105), "not a multiple of 8"},
      {"HeaderLong", put32(100, 1 << 20), "more than a cluster"},
      {"CompressionUnmarked", [](Bytes8& b) { b[104] = 1; }, "contradicts"},
      {"CompressionUnknown",
       [](Bytes8& b) {
         store_be<uint64_t>(&b[72], kCompressionTypeBit);
         b[104] = 9;
       },
       "compression type 9"},
      {"ExtensionTooLong", put32(116, 1 << 20), "goes beyond"},
      {"BackingNameLong",
       [](Bytes8& b) {
         store_be<uint64_t>(&b[8], 1024);
         store_be<uint32_t>(&b[16], 1024);
       },
       "1024 bytes"},
      {"BackingNameOutside",
       [](Bytes8& b) {
         store_be<uint64_t>(&b[8], 65530);
         store_be<uint32_t>(&b[16], 100);
       },
       "outside the header"},
      {"BackingNameWrapped",
       [](Bytes8& b) {
         store_be<uint64_t>(&b[8], ~uint64_t{0} - 10);
         store_be<uint32_t>(&b[16], 100);
       },
       "outside the header"},
      {"CutShort", [](Bytes8& b) { b.resize(60); }, "ends inside the header"},
  };
}

INSTANTIATE_TEST_SUITE_P(Qcow2, Qcow2HostileHeader, testing::ValuesIn(hostile_headers()),
                         [](const auto& named) { return std::string(named.param.name); });

TEST(Qcow2Geometry, RefcountsOfAnyWidthKeepTheirNeighbours) {
  for (uint32_t order = 0; order <= 6; ++order) {
    Geometry g;
    g.refcount_order = order;
    std::vector<uint8_t> block(64);
    const uint64_t count = block.size() * 8 >> order;
    for (uint64_t i = 0; i < count; ++i) g.set_refcount(block.data(), i, i & g.max_refcount());
    g.set_refcount(block.data(), 1, g.max_refcount());
    for (uint64_t i = 0; i < count; ++i)
      EXPECT_EQ(i == 1 ? g.max_refcount() : i & g.max_refcount(), g.get_refcount(block.data(), i))
          << "order " << order << " index " << i;
  }
}

TEST(Qcow2Geometry, EntriesReadAsTheyWereWritten) {
  for (const bool extended : {false, true}) {
    Geometry g;
    g.extended = extended;
    ClusterState state;
    state.host = 0x7f0000;
    state.copied = true;
    state.allocated = extended ? 0x0000ffff : 1;
    state.zero = extended ? 0xff000000 : 0;
    uint8_t entry[16] = {};
    g.encode_at(entry, state);
    const ClusterState read = g.decode_at(entry);
    EXPECT_EQ(ClusterState::Kind::kPlain, read.kind);
    EXPECT_EQ(state.host, read.host);
    EXPECT_TRUE(read.copied);
    EXPECT_EQ(state.allocated, read.allocated);
    EXPECT_EQ(state.zero, read.zero);
  }
}

TEST(Qcow2Geometry, EntriesThatContradictThemselvesAreInvalid) {
  Geometry g;
  using Kind = ClusterState::Kind;
  EXPECT_EQ(Kind::kInvalid, g.decode(0x10200, 0).kind);  // not at a cluster's beginning
  EXPECT_EQ(Kind::kInvalid, g.decode(kCopiedFlag, 0).kind);
  EXPECT_EQ(Kind::kPlain, g.decode(0, 0).kind);
  g.extended = true;
  EXPECT_EQ(Kind::kInvalid, g.decode(0x10000, 0x0000000100000001).kind);  // zero and allocated
  EXPECT_EQ(Kind::kInvalid, g.decode(0, 1).kind);                         // allocated nowhere
}

// An image whose metadata is damaged after creation, for what only shows when it is used.
class Qcow2HostileImage : public testing::Test {
 protected:
  void SetUp() override {
    disk_.make_image("a", {}, 64 << 20, "");
    ASSERT_NO_FATAL_FAILURE(disk_.open("qcow2:" + disk_.path("a")));
    disk_.write(0, std::vector<uint8_t>(65536, 1));
    disk_.close();
  }
  void poke(uint64_t offset, uint64_t value) {
    auto file = MetadataFile::open(disk_.path("a"), ImageFile::Mode::kWrite);
    ASSERT_TRUE(file.ok());
    const uint64_t entry[] = {value};
    ASSERT_TRUE(file->write_table(offset, entry).ok());
  }
  uint64_t peek(uint64_t offset) {
    auto file = MetadataFile::open(disk_.path("a"), ImageFile::Mode::kRead);
    return file->read_table(offset, 1)->front();
  }
  uint64_t l1_offset() { return peek(kL1OffsetField); }
  uint64_t l2_offset() { return peek(l1_offset()) & kOffsetMask; }
  int read_error() {
    disk_.open("qcow2:" + disk_.path("a"), {.read_only = true});
    std::vector<uint8_t> data(4096);
    return disk_.submit(Op::kRead, 0, 4096, &data);
  }
  int write_error() {
    disk_.open("qcow2:" + disk_.path("a"));
    std::vector<uint8_t> data(4096);
    return disk_.submit(Op::kWrite, 10 << 20, 4096, &data);
  }

  TestDisk disk_;
};

TEST_F(Qcow2HostileImage, AnL2TableOutsideTheFileIsAnError) {
  poke(l1_offset(), (uint64_t{1} << 50) | kCopiedFlag);
  EXPECT_EQ(EIO, read_error());
  EXPECT_EQ(EIO, write_error());
}

TEST_F(Qcow2HostileImage, DataOutsideTheFileIsAnError) {
  poke(l2_offset(), (uint64_t{1} << 50) | kCopiedFlag);
  EXPECT_EQ(EIO, read_error());
}

TEST_F(Qcow2HostileImage, CompressedDataOutsideTheFileIsAnError) {
  poke(l2_offset(), kCompressedFlag | (uint64_t{1} << 50));
  EXPECT_EQ(EIO, read_error());
}

TEST_F(Qcow2HostileImage, AnL1EntryThatPointsAtTheHeaderIsAnError) {
  poke(l1_offset(), 200);  // reserved bits only: no table
  EXPECT_EQ(0, read_error());
  poke(l1_offset(), 512 | kCopiedFlag);
  EXPECT_EQ(EIO, read_error());
}

// Refcounts that call metadata free would have it overwritten.
TEST_F(Qcow2HostileImage, MetadataThatCountsAsFreeStopsWritesAndMarksTheImage) {
  const uint64_t table = peek(kRefcountTableField);
  const uint64_t block = peek(table);
  for (int i = 0; i < 4; ++i) poke(block + static_cast<uint64_t>(i) * 8, 0);
  EXPECT_EQ(EIO, write_error());
  disk_.close();
  const auto reopened = parse_graph("qcow2:" + disk_.path("a"));
  const auto node = open_graph(*reopened, {disk_.reactor(), disk_.log(), {}});
  ASSERT_FALSE(node.ok());
  EXPECT_NE(std::string::npos, node.error().message().find("marked corrupt"));
  // Repair brings it back.
  const auto repaired = check_image(disk_.path("a"), Repair::kAll);
  ASSERT_TRUE(repaired.ok()) << repaired.error().message();
  EXPECT_EQ(0u, repaired->corruptions);
  EXPECT_EQ(0, write_error());
  EXPECT_EQ(std::vector<uint8_t>(4096, 1), disk_.read(0, 4096));
}

TEST_F(Qcow2HostileImage, LeaksAreRepaired) {
  const uint64_t block = peek(peek(kRefcountTableField));
  poke(block + 64, 0x0001000100010001);
  auto checked = check_image(disk_.path("a"), Repair::kNone);
  ASSERT_TRUE(checked.ok());
  EXPECT_EQ(4u, checked->leaks);
  EXPECT_EQ(0u, checked->corruptions);
  checked = check_image(disk_.path("a"), Repair::kLeaks);
  ASSERT_TRUE(checked.ok());
  EXPECT_EQ(4u, checked->leaks_fixed);
  checked = check_image(disk_.path("a"), Repair::kNone);
  ASSERT_TRUE(checked.ok());
  EXPECT_TRUE(checked->clean());
}

TEST_F(Qcow2HostileImage, AChainThatIsALoopNamesItsSteps) {
  disk_.make_image("b", {{"backing_file", "c"}, {"backing_fmt", "qcow2"}}, 1 << 20, "");
  disk_.make_image("c", {{"backing_file", "b"}, {"backing_fmt", "qcow2"}}, 1 << 20, "");
  const auto node =
      open_graph(*parse_graph("qcow2:" + disk_.path("b")), {disk_.reactor(), disk_.log(), {}});
  ASSERT_FALSE(node.ok());
  EXPECT_NE(std::string::npos, node.error().message().find(disk_.path("c")))
      << node.error().message();
  EXPECT_NE(std::string::npos, node.error().message().find("loop"));
}

TEST_F(Qcow2HostileImage, ABackingFileWithoutAFormatIsRefused) {
  disk_.make_image("d", {{"backing_file", "a"}, {"backing_fmt", "qcow2"}}, 1 << 20, "");
  auto file = MetadataFile::open(disk_.path("d"), ImageFile::Mode::kWrite);
  ASSERT_TRUE(file.ok());
  Header header = *file->read_header();
  header.extensions.clear();
  ASSERT_TRUE(file->write(0, encoded(header)).ok());
  const auto node =
      open_graph(*parse_graph("qcow2:" + disk_.path("d")), {disk_.reactor(), disk_.log(), {}});
  ASSERT_FALSE(node.ok());
  EXPECT_NE(std::string::npos, node.error().message().find("format")) << node.error().message();
}

}  // namespace
}  // namespace vbdkit::drivers::qcow2
