// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/blkif/ring.h"

#include <gtest/gtest.h>

#include <vector>

namespace vbdkit::blkif {
namespace {

class RingTest : public ::testing::TestWithParam<const SlotLayout*> {
 protected:
  RingTest() : page_(xen::kPageSize) {}

  blkif_sring& shared() { return *reinterpret_cast<blkif_sring*>(page_.data()); }
  char* slot(uint32_t i) { return page_.data() + kRingHeader + i * GetParam()->slot; }
  BackRing ring() { return BackRing(page_.data(), page_.size(), *GetParam()); }

  alignas(64) std::vector<char> page_;
};

TEST_P(RingTest, HoldsThirtyTwoRequestsInAPage) { EXPECT_EQ(ring().size(), 32u); }

TEST_P(RingTest, TakesWhatTheGuestPublishedAndNoMore) {
  BackRing r = ring();
  shared().req_prod = 2;
  ASSERT_TRUE(r.look());
  slot(0)[0] = BLKIF_OP_WRITE;
  slot(1)[0] = BLKIF_OP_DISCARD;
  SlotCopy copy;
  r.take(copy);
  EXPECT_EQ(static_cast<int>(copy.bytes[0]), BLKIF_OP_WRITE);
  r.take(copy);
  EXPECT_EQ(static_cast<int>(copy.bytes[0]), BLKIF_OP_DISCARD);
  EXPECT_FALSE(r.has_request());
  EXPECT_EQ(r.unanswered(), 2u);
}

// XSA-155: what was taken is ours, whatever the guest writes into the slot afterwards.
TEST_P(RingTest, Xsa155CopyDoesNotFollowTheSlot) {
  BackRing r = ring();
  shared().req_prod = 1;
  ASSERT_TRUE(r.look());
  slot(0)[0] = BLKIF_OP_READ;
  slot(0)[1] = 1;
  SlotCopy copy;
  r.take(copy);
  slot(0)[1] = 11;
  EXPECT_EQ(decode(copy, *GetParam()).segment_count, 1);
}

TEST_P(RingTest, RefusesMoreRequestsThanTheRingHolds) {
  BackRing r = ring();
  shared().req_prod = 32;
  EXPECT_TRUE(r.look());
  shared().req_prod = 33;
  EXPECT_FALSE(r.look());
  shared().req_prod = UINT32_MAX;
  EXPECT_FALSE(r.look());
}

TEST_P(RingTest, RefusesAProducerThatGoesBack) {
  BackRing r = ring();
  shared().req_prod = 3;
  ASSERT_TRUE(r.look());
  SlotCopy copy;
  for (int i = 0; i < 3; ++i) r.take(copy);
  shared().req_prod = 2;
  EXPECT_FALSE(r.look());
}

TEST_P(RingTest, CountsOnAcrossTheWrapOfItsIndices) {
  shared().rsp_prod = shared().req_prod = UINT32_MAX - 1;
  shared().rsp_event = UINT32_MAX;
  BackRing r = ring();
  shared().req_prod += 4;
  ASSERT_TRUE(r.look());
  SlotCopy copy;
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(r.has_request());
    r.take(copy);
    r.respond(7, BLKIF_OP_READ, BLKIF_RSP_OKAY);
  }
  EXPECT_FALSE(r.has_request());
  EXPECT_TRUE(r.push());
  EXPECT_EQ(shared().rsp_prod, 2u);
}

// XSA-216: padding must not carry bytes of our stack, nor stay what the request was.
TEST_P(RingTest, Xsa216ResponsePaddingIsZero) {
  BackRing r = ring();
  memset(slot(0), 0xee, GetParam()->slot);
  shared().req_prod = 1;
  ASSERT_TRUE(r.look());
  SlotCopy copy;
  r.take(copy);
  r.respond(0x1122334455667788, BLKIF_OP_WRITE, BLKIF_RSP_ERROR);
  char expected[16] = {};
  const uint64_t id = 0x1122334455667788;
  const int16_t status = BLKIF_RSP_ERROR;
  memcpy(expected, &id, sizeof id);
  expected[8] = BLKIF_OP_WRITE;
  memcpy(expected + 10, &status, sizeof status);
  EXPECT_EQ(memcmp(slot(0), expected, GetParam()->response), 0);
}

TEST_P(RingTest, NotifiesOnlyAGuestThatAsked) {
  BackRing r = ring();
  shared().req_prod = 3;
  ASSERT_TRUE(r.look());
  SlotCopy copy;
  for (int i = 0; i < 3; ++i) r.take(copy);
  shared().rsp_event = 2;
  r.respond(1, 0, 0);
  EXPECT_FALSE(r.push());
  r.respond(2, 0, 0);
  r.respond(3, 0, 0);
  EXPECT_TRUE(r.push());
  EXPECT_EQ(shared().rsp_prod, 3u);
}

TEST_P(RingTest, SeesARequestThatCameWhileItAskedForAnEvent) {
  BackRing r = ring();
  EXPECT_FALSE(r.ask_for_event());
  EXPECT_EQ(shared().req_event, 1u);
  shared().req_prod = 1;
  EXPECT_TRUE(r.ask_for_event());
}

INSTANTIATE_TEST_SUITE_P(Abis, RingTest, ::testing::Values(&kLayout64, &kLayout32),
                         [](const auto& instance) {
                           return instance.param == &kLayout64 ? "x86_64" : "x86_32";
                         });

}  // namespace
}  // namespace vbdkit::blkif
