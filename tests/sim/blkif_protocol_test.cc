// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Every variant of the protocol, with every byte checked: ABIs, ring sizes, queues, indirect
// segments, ways to reach the guest's pages.
#include <iostream>

#include "backend/control/qmp_client.h"
#include "tests/sim/blkif_test_base.h"

namespace vbdkit::sim {
namespace {

struct Variant {
  const char* name;
  FrontendOptions front;
  const char* grants = "auto";
};

class VariantTest : public BlkifTest, public ::testing::WithParamInterface<Variant> {};

TEST_P(VariantTest, EveryByteArrives) {
  make_image();
  start(image(), {}, {"--grants", GetParam().grants});
  VerifiedDisk model(kImageSectors);
  {
    auto front = connect(GetParam().front);
    EXPECT_EQ(front->queue_count(), GetParam().front.queues);
    expect_clean(
        must(model.run(*front, {.requests = 3000, .barrier_percent = 2, .discard_percent = 2},
                       in(std::chrono::seconds(60)))));
    must(front->close(soon()));
  }
  expect_nothing_held();
  // Once more, as after a reboot, from the same disk.
  auto front = must(Frontend::create(guest(), disk().devid, GetParam().front));
  must(front->set_state(XenbusStateInitialising));
  must(front->connect(soon()));
  expect_clean(must(model.check(*front, in(std::chrono::seconds(60)))));
  must(front->close(soon()));
  expect_nothing_held();
}

INSTANTIATE_TEST_SUITE_P(
    Protocol, VariantTest,
    ::testing::Values(
        Variant{"Plain64", {}}, Variant{"Plain32", {.abi = Abi::kX86_32}},
        // Without the node every backend on x86 assumes the 32-bit ABI.
        Variant{"NoProtocolNodeMeans32", {.abi = Abi::kX86_32, .write_protocol = false}},
        Variant{"SinglePageAsRingRef0", {.always_write_order = true}},
        Variant{"TwoPages", {.ring_order = 1}}, Variant{"SixteenPages", {.ring_order = 4}},
        Variant{"SixteenPages32", {.abi = Abi::kX86_32, .ring_order = 4}},
        Variant{"FourQueues", {.queues = 4}},
        Variant{"FourQueuesOfFourPages", {.ring_order = 2, .queues = 4}},
        Variant{"Indirect32", {.indirect_segments = 32}},
        Variant{"Indirect256", {.indirect_segments = 256}},
        Variant{"Indirect256In32", {.abi = Abi::kX86_32, .indirect_segments = 256}},
        Variant{"Persistent", {.persistent = true}},
        Variant{"Persistent32", {.abi = Abi::kX86_32, .persistent = true}},
        // More pages than are ever kept mapped: some are copied.
        Variant{"PersistentBeyondTheBound",
                {.ring_order = 2, .indirect_segments = 64, .persistent = true}},
        Variant{"PersistentIndirect", {.indirect_segments = 64, .persistent = true}},
        Variant{"Everything",
                {.ring_order = 4, .queues = 4, .indirect_segments = 256, .persistent = true}},
        Variant{"MappedPerRequest", {.indirect_segments = 32}, "map"},
        Variant{"MappedThoughPersistentWasAsked", {.persistent = true}, "map"},
        Variant{"MapWhereNotPersistent", {.indirect_segments = 32}, "persistent"},
        Variant{"CopiedThoughPersistentWasAsked", {.persistent = true}, "copy"}),
    [](const auto& instance) { return std::string(instance.param.name); });

class ProtocolTest : public BlkifTest {};

TEST_F(ProtocolTest, PublishesAllItsFeaturesBeforeInitWait) {
  make_image();
  // Nothing may appear between the state and what a frontend reads when it sees it: the guest's
  // watch on the state fires after everything else is there, as all of it is one transaction.
  start(image());
  auto front = must(Frontend::create(guest(), disk().devid));
  must(front->wait_backend_ready(soon()));
  const Features f = front->features();
  EXPECT_EQ(f.sectors, kImageSectors);
  EXPECT_EQ(f.sector_size, 512u);
  EXPECT_GE(f.physical_sector_size, 512u);
  EXPECT_EQ(f.info, 0u);
  EXPECT_TRUE(f.flush);
  EXPECT_TRUE(f.barrier);
  EXPECT_TRUE(f.discard);
  EXPECT_FALSE(f.discard_secure);
  EXPECT_GE(f.discard_granularity, 512u);
  EXPECT_TRUE(f.persistent);
  EXPECT_EQ(f.max_ring_page_order, 4u);
  EXPECT_GE(f.max_queues, 4u);
  EXPECT_EQ(f.max_indirect_segments, 256u);
}

TEST_F(ProtocolTest, TellsAReadOnlyRemovableCdrom) {
  make_image();
  start(image(), {.writable = false, .removable = true, .cdrom = true});
  auto front = connect();
  EXPECT_EQ(front->features().info, 7u);  // VDISK_CDROM | VDISK_REMOVABLE | VDISK_READONLY
  EXPECT_FALSE(front->features().discard);
}

TEST_F(ProtocolTest, HonoursDiscardEnable0) {
  make_image();
  start(image(), {.discard = false});
  auto front = connect();
  EXPECT_FALSE(front->features().discard);
  EXPECT_EQ(must(front->discard(0, 8, soon())), BLKIF_RSP_EOPNOTSUPP);
}

TEST_F(ProtocolTest, DiscardedSectorsReadAsZeroes) {
  make_image();
  start(image());
  auto front = connect();
  const std::vector<std::byte> data(64 << 10, std::byte{1});
  ASSERT_EQ(must(front->write(0, data, soon())), BLKIF_RSP_OKAY);
  EXPECT_EQ(must(front->discard(0, data.size() / 512, soon())), BLKIF_RSP_OKAY);
  // A secure discard was not offered; the flag is ignored (blkif.h).
  EXPECT_EQ(must(front->discard(0, data.size() / 512, soon(), true)), BLKIF_RSP_OKAY);
  std::vector<std::byte> back(data.size(), std::byte{2});
  EXPECT_EQ(must(front->read(0, back, soon())), BLKIF_RSP_OKAY);
  EXPECT_EQ(back, std::vector<std::byte>(data.size()));
}

class SystemCallTest : public BlkifTest {
 protected:
  static constexpr uint32_t kDepth = 32;

  // All that the backend has asked of the kernel so far: its loop's own count, and what its calls
  // of the Xen libraries would be on a real host.
  uint64_t system_calls() {
    auto qmp = must(control::QmpClient::connect(dir() + "/run-backend/qmp.sock"));
    const control::Json answer = must(qmp.execute("x-vbdkit-query"));
    return *answer.member("reactor").member("kernel-entries").number() +
           world().use_of(backend().pid())->xen_syscalls();
  }

  // Adds 32 requests at once and waits for all of them, so that the count does not depend on which
  // of the two sides a busy machine lets run.
  void round(RingQueue& queue, uint8_t operation) {
    for (uint32_t i = 0; i < kDepth; ++i)
      queue.submit(operation, i * 37 % 64 * 16, &segments_[i], 1, i);
    queue.push();
    for (size_t answered = 0; answered < kDepth;) {
      answered += queue.reap([](const Completion& c) { EXPECT_EQ(c.status, BLKIF_RSP_OKAY); });
      if (answered < kDepth) {
        ASSERT_TRUE(queue.wait(soon()));
      }
    }
  }

  double calls_per_request(uint8_t operation) {
    make_image();
    start("raw,direct=off:" + image_path());
    auto front = connect({.persistent = true});
    const Pages pages = must(guest().alloc_pages(kDepth));
    for (uint32_t i = 0; i < kDepth; ++i)
      segments_.push_back({must(guest().grant_page(pages.first + i, true)), 0, 7});
    constexpr unsigned kRounds = 200;
    for (unsigned i = 0; i < 10; ++i) round(front->queue(), operation);
    const uint64_t before = system_calls();
    for (unsigned i = 0; i < kRounds; ++i) round(front->queue(), operation);
    const double each = static_cast<double>(system_calls() - before) / (kRounds * kDepth);
    RecordProperty("system_calls_per_request", std::to_string(each));
    std::cout << each << " system calls per request\n";
    return each;
  }

 private:
  std::vector<Segment> segments_;
};

// A batch of 32 is answered in four parts. Each costs at most five calls: two that hand it over,
// the notify, and what the guest's next event takes to read and to unmask.
constexpr double kMostCalls = 4 * 5 / 32.0;

TEST_F(SystemCallTest, FarLessThanOnePerReadAtDepth32) {
  EXPECT_LT(calls_per_request(BLKIF_OP_READ), kMostCalls);
}

TEST_F(SystemCallTest, FarLessThanOnePerWriteAtDepth32) {
  EXPECT_LT(calls_per_request(BLKIF_OP_WRITE), kMostCalls);
}

}  // namespace
}  // namespace vbdkit::sim
