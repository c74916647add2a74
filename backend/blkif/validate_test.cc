// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/blkif/validate.h"

#include <gtest/gtest.h>

#include <vector>

#include "backend/request_sink.h"

namespace vbdkit::blkif {
namespace {

using drivers::Op;

constexpr uint64_t kSectors = 1000;

DiskLimits disk() {
  DiskLimits d;
  d.bytes = kSectors * 512;
  d.discard = true;
  d.indirect_segments = 32;
  return d;
}

SlotRequest request(uint8_t operation, uint64_t sector, std::vector<blkif_request_segment> s) {
  SlotRequest r;
  r.operation = operation;
  r.sector = sector;
  r.segment_count = static_cast<uint16_t>(s.size());
  std::copy(s.begin(), s.end(), r.segments.begin());
  return r;
}

SlotRequest discard(uint64_t sector, uint64_t sectors) {
  SlotRequest r;
  r.operation = BLKIF_OP_DISCARD;
  r.sector = sector;
  r.discard_sectors = sectors;
  return r;
}

SlotRequest indirect(uint8_t operation, uint64_t sector, uint16_t count) {
  SlotRequest r;
  r.operation = BLKIF_OP_INDIRECT;
  r.indirect_operation = operation;
  r.sector = sector;
  r.segment_count = count;
  return r;
}

const blkif_request_segment kPage{1, 0, 7};

TEST(ValidateTest, MeasuresATransferInSectorsOf512Bytes) {
  const Command c = check_request(request(BLKIF_OP_READ, 10, {kPage, {2, 3, 3}}), disk());
  ASSERT_TRUE(c.ok());
  EXPECT_EQ(c.op, Op::kRead);
  EXPECT_EQ(c.offset, 10u * 512);
  EXPECT_EQ(c.length, 9u * 512);
}

TEST(ValidateTest, AcceptsTheLastSectorAndNothingBehindIt) {
  EXPECT_TRUE(check_request(request(BLKIF_OP_WRITE, kSectors - 8, {kPage}), disk()).ok());
  for (uint64_t sector : {kSectors - 7, kSectors, UINT64_MAX, UINT64_MAX - 7, UINT64_MAX / 512})
    EXPECT_EQ(check_request(request(BLKIF_OP_WRITE, sector, {kPage}), disk()).refusal,
              BLKIF_RSP_ERROR)
        << sector;
}

TEST(ValidateTest, RefusesSegmentsThatLeaveTheirPage) {
  for (blkif_request_segment s : {blkif_request_segment{1, 0, 8}, {1, 7, 255}, {1, 255, 255}})
    EXPECT_FALSE(check_request(request(BLKIF_OP_READ, 0, {s}), disk()).ok());
}

TEST(ValidateTest, RefusesSegmentsThatRunBackwards) {
  EXPECT_FALSE(check_request(request(BLKIF_OP_READ, 0, {{1, 4, 3}}), disk()).ok());
}

TEST(ValidateTest, RefusesMoreSegmentsThanASlotHolds) {
  SlotRequest r = request(BLKIF_OP_READ, 0, {kPage});
  for (uint16_t count : {uint16_t{12}, uint16_t{255}}) {
    r.segment_count = count;
    EXPECT_EQ(check_request(r, disk()).refusal, BLKIF_RSP_ERROR);
  }
}

TEST(ValidateTest, AllowsNoSegmentsForFlushAndBarrierOnly) {
  EXPECT_FALSE(check_request(request(BLKIF_OP_READ, 0, {}), disk()).ok());
  EXPECT_FALSE(check_request(request(BLKIF_OP_WRITE, 0, {}), disk()).ok());
  EXPECT_FALSE(check_request(indirect(BLKIF_OP_READ, 0, 0), disk()).ok());
  const Command flush = check_request(request(BLKIF_OP_FLUSH_DISKCACHE, 0, {}), disk());
  EXPECT_EQ(flush.op, Op::kFlush);
  EXPECT_EQ(flush.flags, 0);
  const Command barrier = check_request(request(BLKIF_OP_WRITE_BARRIER, 0, {}), disk());
  EXPECT_EQ(barrier.op, Op::kFlush);
  EXPECT_EQ(barrier.flags, kBarrier);
}

// blkfront sends sector -1 with an empty flush.
TEST(ValidateTest, IgnoresTheSectorOfAnEmptyFlush) {
  EXPECT_TRUE(check_request(request(BLKIF_OP_FLUSH_DISKCACHE, UINT64_MAX, {}), disk()).ok());
}

TEST(ValidateTest, FlushWithDataFlushesFirstAndBarrierIsDurable) {
  const Command flush = check_request(request(BLKIF_OP_FLUSH_DISKCACHE, 0, {kPage}), disk());
  EXPECT_EQ(flush.op, Op::kWrite);
  EXPECT_EQ(flush.flags, kPreflush);
  const Command barrier = check_request(request(BLKIF_OP_WRITE_BARRIER, 0, {kPage}), disk());
  EXPECT_EQ(barrier.op, Op::kWrite);
  EXPECT_EQ(barrier.flags, kBarrier | kPreflush | drivers::kFua);
}

// CVE-2013-2140 was a discard of a read-only disk.
TEST(ValidateTest, Cve2013_2140ReadOnlyDisksAreNotChangedByAnything) {
  DiskLimits d = disk();
  d.read_only = true;
  EXPECT_TRUE(check_request(request(BLKIF_OP_READ, 0, {kPage}), d).ok());
  EXPECT_TRUE(check_request(request(BLKIF_OP_FLUSH_DISKCACHE, 0, {}), d).ok());
  EXPECT_FALSE(check_request(request(BLKIF_OP_WRITE, 0, {kPage}), d).ok());
  EXPECT_FALSE(check_request(request(BLKIF_OP_FLUSH_DISKCACHE, 0, {kPage}), d).ok());
  EXPECT_FALSE(check_request(request(BLKIF_OP_WRITE_BARRIER, 0, {kPage}), d).ok());
  EXPECT_FALSE(check_request(indirect(BLKIF_OP_WRITE, 0, 1), d).ok());
  EXPECT_FALSE(check_request(discard(0, 8), d).ok());
}

TEST(ValidateTest, DiscardStaysInsideTheDisk) {
  const Command c = check_request(discard(8, kSectors - 8), disk());
  ASSERT_TRUE(c.ok());
  EXPECT_EQ(c.op, Op::kDiscard);
  EXPECT_EQ(c.offset + c.length, kSectors * 512);
  EXPECT_FALSE(check_request(discard(8, kSectors), disk()).ok());
  EXPECT_FALSE(check_request(discard(8, UINT64_MAX - 7), disk()).ok());  // wraps to 0
  EXPECT_FALSE(check_request(discard(UINT64_MAX, 1), disk()).ok());
  EXPECT_FALSE(check_request(discard(0, 0), disk()).ok());
}

TEST(ValidateTest, SaysWhatItDoesNotSupport) {
  DiskLimits d = disk();
  d.discard = false;
  d.indirect_segments = 0;
  EXPECT_EQ(check_request(discard(0, 8), d).refusal, BLKIF_RSP_EOPNOTSUPP);
  EXPECT_EQ(check_request(indirect(BLKIF_OP_READ, 0, 1), d).refusal, BLKIF_RSP_EOPNOTSUPP);
  for (int operation : {4, 7, 255})
    EXPECT_EQ(check_request(request(static_cast<uint8_t>(operation), 0, {kPage}), d).refusal,
              BLKIF_RSP_EOPNOTSUPP);
}

TEST(ValidateTest, IndirectOnlyReadsAndWrites) {
  for (int operation :
       {BLKIF_OP_WRITE_BARRIER, BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_DISCARD, BLKIF_OP_INDIRECT, 255})
    EXPECT_EQ(check_request(indirect(static_cast<uint8_t>(operation), 0, 1), disk()).refusal,
              BLKIF_RSP_ERROR);
}

TEST(ValidateTest, IndirectNeverExceedsWhatWasOffered) {
  EXPECT_TRUE(check_request(indirect(BLKIF_OP_READ, 0, 32), disk()).ok());
  EXPECT_FALSE(check_request(indirect(BLKIF_OP_READ, 0, 33), disk()).ok());
  EXPECT_FALSE(check_request(indirect(BLKIF_OP_READ, 0, 65535), disk()).ok());
}

TEST(ValidateTest, JudgesFetchedSegmentsLikeThoseOfASlot) {
  const std::vector<blkif_request_segment> good(20, kPage);
  Command c = check_request(indirect(BLKIF_OP_WRITE, kSectors - 160, 20), disk());
  ASSERT_TRUE(c.ok());
  EXPECT_TRUE(c.indirect);
  check_segments(c, good, disk());
  EXPECT_TRUE(c.ok());
  EXPECT_EQ(c.length, 160u * 512);

  c = check_request(indirect(BLKIF_OP_WRITE, kSectors - 159, 20), disk());
  check_segments(c, good, disk());
  EXPECT_FALSE(c.ok());

  std::vector<blkif_request_segment> bad = good;
  bad[19].last_sect = 8;
  c = check_request(indirect(BLKIF_OP_WRITE, 0, 20), disk());
  check_segments(c, bad, disk());
  EXPECT_FALSE(c.ok());
}

TEST(ValidateTest, RefusesWhatIsNotAlignedToTheDisksSectors) {
  DiskLimits d = disk();
  d.alignment = 4096;
  EXPECT_TRUE(check_request(request(BLKIF_OP_READ, 8, {kPage}), d).ok());
  EXPECT_FALSE(check_request(request(BLKIF_OP_READ, 4, {kPage}), d).ok());
  EXPECT_FALSE(check_request(request(BLKIF_OP_READ, 8, {{1, 0, 3}}), d).ok());
  EXPECT_FALSE(check_request(discard(1, 8), d).ok());
}

}  // namespace
}  // namespace vbdkit::blkif
