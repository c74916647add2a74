// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/blkif/abi.h"

#include <gtest/gtest.h>

namespace vbdkit::blkif {
namespace {

// Every byte differs, so that a field read from a wrong offset has a wrong value.
SlotCopy numbered(uint8_t operation) {
  SlotCopy copy;
  for (size_t i = 0; i < copy.bytes.size(); ++i) copy.bytes[i] = static_cast<std::byte>(i + 1);
  copy.bytes[0] = static_cast<std::byte>(operation);
  return copy;
}

uint64_t bytes_from(unsigned offset, unsigned count) {
  uint64_t v = 0;
  for (unsigned i = 0; i < count; ++i) v |= uint64_t{offset + i + 1} << (8 * i);
  return v;
}

struct Expected {
  const SlotLayout* layout;
  unsigned id, sector, segments, discard_sectors, indirect_refs;
};

// The offsets of the compiled header, as published for both ABIs.
class AbiTest : public ::testing::TestWithParam<Expected> {};

TEST_P(AbiTest, ReadsATransferAtTheAbisOffsets) {
  SlotCopy copy = numbered(BLKIF_OP_WRITE);
  copy.bytes[1] = std::byte{3};
  const SlotRequest r = decode(copy, *GetParam().layout);
  EXPECT_EQ(r.operation, BLKIF_OP_WRITE);
  EXPECT_EQ(r.segment_count, 3);
  EXPECT_EQ(r.id, bytes_from(GetParam().id, 8));
  EXPECT_EQ(r.sector, bytes_from(GetParam().sector, 8));
  for (unsigned i = 0; i < 3; ++i) {
    const unsigned at = GetParam().segments + 8 * i;
    EXPECT_EQ(r.segments[i].gref, bytes_from(at, 4));
    EXPECT_EQ(r.segments[i].first_sect, at + 5);
    EXPECT_EQ(r.segments[i].last_sect, at + 6);
  }
}

TEST_P(AbiTest, ReadsAnIndirectRequestAtTheAbisOffsets) {
  SlotCopy copy = numbered(BLKIF_OP_INDIRECT);
  copy.bytes[1] = std::byte{BLKIF_OP_WRITE};
  const SlotRequest r = decode(copy, *GetParam().layout);
  EXPECT_EQ(r.indirect_operation, BLKIF_OP_WRITE);
  EXPECT_EQ(r.segment_count, bytes_from(2, 2));
  EXPECT_EQ(r.id, bytes_from(GetParam().id, 8));
  EXPECT_EQ(r.sector, bytes_from(GetParam().sector, 8));
  for (unsigned i = 0; i < r.indirect_refs.size(); ++i)
    EXPECT_EQ(r.indirect_refs[i], bytes_from(GetParam().indirect_refs + 4 * i, 4));
}

TEST_P(AbiTest, ReadsADiscardAtTheAbisOffsets) {
  const SlotRequest r = decode(numbered(BLKIF_OP_DISCARD), *GetParam().layout);
  EXPECT_EQ(r.id, bytes_from(GetParam().id, 8));
  EXPECT_EQ(r.sector, bytes_from(GetParam().sector, 8));
  EXPECT_EQ(r.discard_sectors, bytes_from(GetParam().discard_sectors, 8));
  EXPECT_EQ(r.segment_count, 0);
}

TEST_P(AbiTest, CopiesNoMoreSegmentsThanASlotHolds) {
  SlotCopy copy = numbered(BLKIF_OP_READ);
  copy.bytes[1] = std::byte{255};
  EXPECT_EQ(decode(copy, *GetParam().layout).segment_count, 255);  // for the judge to refuse
}

INSTANTIATE_TEST_SUITE_P(Abis, AbiTest,
                         ::testing::Values(Expected{&kLayout64, 8, 16, 24, 24, 28},
                                           Expected{&kLayout32, 4, 12, 20, 20, 24}),
                         [](const auto& instance) {
                           return instance.param.layout == &kLayout64 ? "x86_64" : "x86_32";
                         });

// blkfront takes a disk offline that answers an indirect read with operation 6.
TEST(AbiTest, AnswersAnIndirectRequestAsWhatItDoes) {
  SlotRequest r;
  r.operation = BLKIF_OP_INDIRECT;
  r.indirect_operation = BLKIF_OP_WRITE;
  EXPECT_EQ(r.response_operation(), BLKIF_OP_WRITE);
  r.operation = BLKIF_OP_DISCARD;
  EXPECT_EQ(r.response_operation(), BLKIF_OP_DISCARD);
}

TEST(AbiTest, KnowsProtocolsByName) {
  EXPECT_EQ(layout_of("x86_64-abi"), &kLayout64);
  EXPECT_EQ(layout_of("x86_32-abi"), &kLayout32);
  EXPECT_EQ(layout_of("vax-abi"), nullptr);
#if defined(__x86_64__)
  EXPECT_EQ(layout_of(std::nullopt), &kLayout32);
#endif
}

}  // namespace
}  // namespace vbdkit::blkif
