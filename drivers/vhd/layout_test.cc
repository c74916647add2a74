// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/vhd/layout.h"

#include <gtest/gtest.h>

#include <random>

#include "drivers/vhd/locator.h"

namespace vbdkit::drivers::vhd {
namespace {

Footer footer_of(std::string_view creator, uint64_t size, Geometry geometry) {
  Footer footer;
  memcpy(footer.creator.data(), creator.data(), 4);
  footer.current_size = size;
  footer.original_size = size;
  footer.geometry = geometry;
  return footer;
}

TEST(VhdLayout, FooterComesBackAsItWas) {
  Footer footer = footer_of("vbdk", uint64_t{100} << 30, {1234, 16, 63});
  footer.uuid = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
  footer.hidden = true;
  footer.data_offset = 512;
  const auto parsed = parse_footer(encode_footer(footer));
  ASSERT_TRUE(parsed.ok()) << parsed.error().message();
  EXPECT_EQ(parsed->current_size, footer.current_size);
  EXPECT_EQ(parsed->geometry, footer.geometry);
  EXPECT_EQ(parsed->uuid, footer.uuid);
  EXPECT_TRUE(parsed->hidden);
  EXPECT_EQ(to_string(parsed->uuid), "01020304-0506-0708-090a-0b0c0d0e0f10");
}

TEST(VhdLayout, AnyChangedByteOfAFooterIsNoticed) {
  const auto good = encode_footer(footer_of("vbdk", 1 << 20, {1, 2, 3}));
  for (size_t i = 0; i < good.size(); ++i) {
    auto bad = good;
    bad[i] ^= std::byte{0x10};
    EXPECT_FALSE(parse_footer(bad).ok()) << i;
  }
}

TEST(VhdLayout, WhichFieldTellsTheSizeDependsOnTheCreator) {
  const Geometry geometry{100, 4, 17};
  const uint64_t size = geometry.bytes() + 4096;
  EXPECT_EQ(footer_of("vpc ", size, geometry).disk_size(), geometry.bytes());
  EXPECT_EQ(footer_of("qemu", size, geometry).disk_size(), geometry.bytes());
  for (const char* creator : {"qem2", "win ", "d2v ", "tap", "CTXS", "vbox", "vbdk"})
    EXPECT_EQ(footer_of(std::string(creator) + '\0', size, geometry).disk_size(), size) << creator;
  EXPECT_EQ(footer_of("vpc ", size, kLargestGeometry).disk_size(), size);
}

// Values of the specification's formula, worked out by hand at its corners.
TEST(VhdLayout, GeometryFollowsTheSpecification) {
  EXPECT_EQ(geometry_of(Bytes{uint64_t{40} << 20}), (Geometry{963, 5, 17}));
  EXPECT_EQ(geometry_of(Bytes{uint64_t{1} << 30}), (Geometry{2080, 16, 63}));
  EXPECT_EQ(geometry_of(Bytes{uint64_t{40} << 30}), (Geometry{20560, 16, 255}));
  EXPECT_EQ(geometry_of(Bytes{uint64_t{500} << 30}), kLargestGeometry);
}

TEST(VhdLayout, TapdisksOldHiddenImagesAreAccepted) {
  Footer footer = footer_of("tap", 1 << 30, {1, 2, 3});
  footer.creator[3] = '\0';
  footer.creator_version = 0x00010001;
  auto bytes = encode_footer(footer);
  bytes[85] = std::byte{1};
  EXPECT_TRUE(parse_footer(bytes).ok());
  footer.creator_version = 0x00010003;
  bytes = encode_footer(footer);
  bytes[85] = std::byte{1};
  EXPECT_FALSE(parse_footer(bytes).ok());
}

TEST(VhdLayout, HeaderComesBackAsItWas) {
  DynamicHeader header;
  header.table_offset = 1536;
  header.blocks = 51200;
  header.parent_uuid[3] = 9;
  header.locators[7] = {kW2ru, 512, 40, 4096};
  const auto parsed = parse_header(encode_header(header));
  ASSERT_TRUE(parsed.ok()) << parsed.error().message();
  EXPECT_EQ(parsed->blocks, 51200u);
  EXPECT_EQ(parsed->locators[7].offset, 4096u);
  EXPECT_EQ(parsed->locators[7].space_bytes(), 512u);
  EXPECT_EQ(parsed->parent_uuid, header.parent_uuid);
  EXPECT_EQ(parsed->bitmap_bytes(), 512u);
}

TEST(VhdLayout, HugeTablesAndOddBlocksAreRefused) {
  DynamicHeader header;
  header.blocks = kMaxBlocks + 1;
  EXPECT_FALSE(parse_header(encode_header(header)).ok());
  header.blocks = 10;
  for (const uint32_t size : {0u, 1u, 4096u, 3u << 20, 4u << 20, 1u << 31}) {
    header.block_size = size;
    EXPECT_FALSE(parse_header(encode_header(header)).ok()) << size;
  }
}

TEST(VhdLayout, BitFunctionsMatchSingleBits) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 2000; ++round) {
    std::array<std::byte, 512> map{};
    std::vector<bool> model(4096);
    uint32_t count = 0;
    for (int i = 0; i < 5; ++i) {
      const auto first = static_cast<uint32_t>(random() % 4096);
      const auto n = static_cast<uint32_t>(random() % std::min<uint32_t>(4096 - first, 300)) + 1;
      uint32_t fresh = 0;
      for (uint32_t b = first; b < first + n; ++b) {
        fresh += !model[b];
        model[b] = true;
      }
      ASSERT_EQ(set_bits(map.data(), first, n), fresh);
      count += fresh;
    }
    ASSERT_EQ(count_bits(map, 4096), count);
    const auto first = static_cast<uint32_t>(random() % 4096);
    const auto end = first + 1 + static_cast<uint32_t>(random() % (4096 - first));
    uint32_t stop = first;
    while (stop < end && model[stop] == model[first]) ++stop;
    ASSERT_EQ(run_end(map.data(), first, end), stop);
    ASSERT_EQ(test_bit(map.data(), first), model[first]);
  }
}

TEST(VhdLayout, BatmapChecksumsOfBothVersions) {
  std::array<std::byte, 512> map{};
  EXPECT_EQ(batmap_checksum(0x00010002, map), 0xffffffffu);
  map[5] = std::byte{0xff};
  EXPECT_EQ(batmap_checksum(0x00010002, map), ~0xffu);
  EXPECT_EQ(batmap_checksum(0x00010001, map), 0u);  // -1
}

std::vector<std::byte> bytes_of(std::string_view text) {
  std::vector<std::byte> bytes;
  for (const char c : text) bytes.push_back(static_cast<std::byte>(c));
  return bytes;
}

TEST(VhdLocator, TextsComeBackAsPaths) {
  for (const std::string path : {"base.vhd", "../other/base.vhd", "Übung 😀.vhd"}) {
    for (const uint32_t code : {kMacX, kW2ku, kW2ru})
      EXPECT_EQ(decode_locator(code, encode_locator(code, path)), "./" + path);
    EXPECT_EQ(decode_parent_name(encode_parent_name(path)), path);
  }
}

TEST(VhdLocator, WhatIsNoTextIsNoPath) {
  EXPECT_FALSE(decode_locator(kMacX, bytes_of("http://x/y")).has_value());
  EXPECT_FALSE(decode_locator(kMacX, {}).has_value());
  EXPECT_FALSE(decode_locator(0x57693272, bytes_of("x")).has_value());
  // A low surrogate without its high one, and the other way round.
  EXPECT_FALSE(decode_locator(kW2ru, bytes_of(std::string("\x00\xdc", 2))).has_value());
  EXPECT_FALSE(decode_locator(kW2ru, bytes_of(std::string("\x00\xd8", 2))).has_value());
}

TEST(VhdLocator, CandidatesInOrder) {
  using List = std::vector<std::string>;
  EXPECT_EQ(parent_candidates("/srv/a/leaf.vhd", {"./base.vhd", "base.vhd"}),
            List{"/srv/a/base.vhd"});
  EXPECT_EQ(parent_candidates("/srv/a/leaf.vhd", {"../b/base.vhd", "/c/base.vhd"}),
            (List{"/srv/a/../b/base.vhd", "/c/base.vhd"}));
  // Hyper-V's absolute path has no meaning here but for its last part.
  EXPECT_EQ(parent_candidates("leaf.vhd", {"C:/vm/base.vhd", "//host/share/x.vhd"}),
            (List{"./base.vhd", "./x.vhd"}));
  EXPECT_EQ(parent_candidates("/leaf.vhd", {"a%20b.vhd"}), (List{"/a%20b.vhd", "/a b.vhd"}));
  EXPECT_TRUE(parent_candidates("/srv/leaf.vhd", {"", "./", "C:/"}).empty());
  EXPECT_TRUE(parent_candidates("/srv/leaf.vhd", {"a%00b"}).size() == 1);
}

}  // namespace
}  // namespace vbdkit::drivers::vhd
