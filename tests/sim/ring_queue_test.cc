// SPDX-License-Identifier: LGPL-2.1-or-later
//
// RingQueue against a backend played by the test, which writes responses into the ring itself: each
// way of answering wrongly must be noticed.
#include <vector>

#include "tests/sim/world_test_base.h"

namespace vbdkit::sim {
namespace {

class RingQueueTest : public WorldTest, public ::testing::WithParamInterface<Abi> {
 protected:
  void SetUp() override {
    WorldTest::SetUp();
    guest_ = must(world().create_guest());
    queue_ = must(RingQueue::create(*guest_, {.abi = GetParam(), .max_segments = 32}));
  }
  void TearDown() override {
    queue_.reset();
    WorldTest::TearDown();
  }

  // Submits one read and returns the id that its slot carries.
  uint64_t ask(uint64_t tag = 1) {
    const Segment segment{100, 0, 7};
    const uint32_t slot = queue_->raw().req_prod().load();
    queue_->submit(BLKIF_OP_READ, 64, &segment, 1, tag);
    queue_->push();
    return queue_->raw().get<uint64_t>(slot, queue_->raw().layout().id);
  }
  void answer(uint64_t id, uint8_t operation = BLKIF_OP_READ, int16_t status = BLKIF_RSP_OKAY) {
    RawRing& ring = queue_->raw();
    const uint32_t slot = ring.rsp_prod().load();
    const std::vector<std::byte> zero(ring.layout().rsp_size);
    __builtin_memcpy(ring.slot(slot), zero.data(), zero.size());
    ring.put(slot, ring.layout().rsp_id, id);
    ring.put(slot, ring.layout().rsp_operation, operation);
    ring.put(slot, ring.layout().rsp_status, status);
    ring.rsp_prod().store(slot + 1);
  }
  size_t reap() {
    return queue_->reap([](const Completion&) {});
  }

  Guest* guest_ = nullptr;
  std::unique_ptr<RingQueue> queue_;
};

TEST_P(RingQueueTest, RightAnswerCompletes) {
  answer(ask(42), BLKIF_OP_READ, BLKIF_RSP_ERROR);
  const auto completion = queue_->next_response();
  ASSERT_TRUE(completion);
  EXPECT_EQ(completion->tag, 42u);
  EXPECT_EQ(completion->status, BLKIF_RSP_ERROR);
  EXPECT_FALSE(queue_->next_response());
  EXPECT_TRUE(queue_->violations().empty());
  EXPECT_EQ(queue_->in_flight(), 0u);
}

TEST_P(RingQueueTest, SlotsAreWhereTheAbiHasThem) {
  ask();
  const std::byte* slot = queue_->raw().slot(0);
  const bool wide = GetParam() == Abi::kX86_64;
  blkif_sector_t sector;
  __builtin_memcpy(&sector, slot + (wide ? 16 : 12), sizeof sector);
  EXPECT_EQ(sector, 64u);
  blkif_request_segment segment;
  __builtin_memcpy(&segment, slot + (wide ? 24 : 20), sizeof segment);
  EXPECT_EQ(segment.gref, 100u);
  EXPECT_EQ(segment.last_sect, 7);
  EXPECT_EQ(queue_->raw().slots(), 32u);
}

TEST_P(RingQueueTest, SecondAnswerIsNoticed) {
  const uint64_t id = ask();
  ask();
  answer(id);
  answer(id);
  EXPECT_EQ(reap(), 1u);
  EXPECT_EQ(queue_->violations().size(), 1u);
}

TEST_P(RingQueueTest, AnswerToAnEarlierRequestOfTheSameEntryIsNoticed) {
  const uint64_t old = ask();
  answer(old);
  EXPECT_EQ(reap(), 1u);
  EXPECT_NE(ask(), old);
  answer(old);
  EXPECT_EQ(reap(), 0u);
  EXPECT_EQ(queue_->violations().size(), 1u);
}

TEST_P(RingQueueTest, WrongOperationIsNoticed) {
  answer(ask(), BLKIF_OP_WRITE);
  EXPECT_EQ(reap(), 1u);
  EXPECT_EQ(queue_->violations().size(), 1u);
}

TEST_P(RingQueueTest, IndirectRequestIsAnsweredAsWhatItStandsFor) {
  const std::vector<Segment> segments(12, Segment{100, 0, 7});
  queue_->submit(BLKIF_OP_WRITE, 0, segments.data(), segments.size(), 1);
  queue_->push();
  const auto& layout = queue_->raw().layout();
  EXPECT_EQ(queue_->raw().get<uint8_t>(0, layout.operation), BLKIF_OP_INDIRECT);
  EXPECT_EQ(queue_->raw().get<uint16_t>(0, layout.ind_nr_segments), 12);
  answer(queue_->raw().get<uint64_t>(0, layout.ind_id), BLKIF_OP_WRITE);
  EXPECT_EQ(reap(), 1u);
  EXPECT_TRUE(queue_->violations().empty());
}

TEST_P(RingQueueTest, DirtyPaddingIsNoticed) {
  const uint64_t id = ask();
  answer(id);
  queue_->raw().put<uint8_t>(0, queue_->raw().layout().rsp_operation + 1, 1);
  EXPECT_EQ(reap(), 1u);
  EXPECT_EQ(queue_->violations().size(), 1u);
}

TEST_P(RingQueueTest, UnknownStatusIsNoticed) {
  answer(ask(), BLKIF_OP_READ, 7);
  EXPECT_EQ(reap(), 1u);
  EXPECT_EQ(queue_->violations().size(), 1u);
}

TEST_P(RingQueueTest, MoreAnswersThanQuestionsAreNoticed) {
  ask();
  queue_->raw().rsp_prod().store(2);
  EXPECT_EQ(reap(), 0u);
  EXPECT_FALSE(queue_->violations().empty());
}

TEST_P(RingQueueTest, NotifiesOnlyWhereTheBackendAsked) {
  ask();
  EXPECT_EQ(queue_->notifies_sent(), 1u) << "a fresh ring asks for its first request";
  ask();
  EXPECT_EQ(queue_->notifies_sent(), 1u);
  queue_->raw().req_event().store(3);
  ask();
  EXPECT_EQ(queue_->notifies_sent(), 2u);
}

TEST_P(RingQueueTest, GrantsEndOnlyWhereNobodyMapsThem) {
  ASSERT_EQ(guest_->grants().pin(queue_->ring_refs()[0], 0, true).status, GNTST_okay);
  EXPECT_FALSE(queue_->end_grants());
  guest_->grants().unpin(queue_->ring_refs()[0], true);
  EXPECT_TRUE(guest_->grants().end_access(queue_->ring_refs()[0]));
}

INSTANTIATE_TEST_SUITE_P(Abis, RingQueueTest, ::testing::Values(Abi::kX86_64, Abi::kX86_32),
                         [](const auto& abi) {
                           return abi.param == Abi::kX86_64 ? "X86_64" : "X86_32";
                         });

}  // namespace
}  // namespace vbdkit::sim
