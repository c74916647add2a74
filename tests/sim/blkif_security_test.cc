// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A hostile guest against the real program: each test is one thing that some backend once got
// wrong, named after the advisory where there is one. What must hold every time: the backend lives,
// answers each request once, and its other work goes on.
#include <atomic>
#include <thread>

#include "tests/sim/blkif_test_base.h"
#include "tests/sim/io_buffers.h"
#include "tests/sim/load.h"

namespace vbdkit::sim {
namespace {

class SecurityTest : public BlkifTest {
 protected:
  // Three pages of buffers, granted for reading and writing.
  void buffers(bool writable = true) {
    pages_ = must(guest().alloc_pages(3));
    for (uint32_t i = 0; i < 3; ++i)
      refs_.push_back(must(guest().grant_page(pages_.first + i, writable)));
  }
  Segment whole(uint32_t page) const { return {refs_[page], 0, 7}; }
  // The answer to a request with these segments.
  int16_t ask(Frontend& front, uint8_t operation, uint64_t sector, std::vector<Segment> segments) {
    return must(front.queue().round_trip(operation, sector, segments, soon()));
  }
  // None of the buffers is held any more.
  void expect_released() {
    for (const GrantRef ref : refs_) EXPECT_TRUE(guest().grants().end_access(ref)) << ref;
  }
  // Closes, and comes back as a well-behaved guest would after a reboot.
  void expect_comes_back(std::unique_ptr<Frontend> front) {
    EXPECT_TRUE(front->close(soon()).ok());
    front.reset();
    EXPECT_TRUE(backend().running());
    for (const char* node : {"ring-page-order", "multi-queue-num-queues", "ring-ref", "protocol",
                             "event-channel", "feature-persistent"})
      (void)guest().store().remove(disk().frontend_path + "/" + node).ok();
    auto again = must(Frontend::create(guest(), disk().devid));
    must(again->set_state(XenbusStateInitialising));
    must(again->connect(soon()));
    expect_serves(*again);
    must(again->close(soon()));
    expect_nothing_held();
  }

  Pages pages_;
  std::vector<GrantRef> refs_;
};

// ---- what stands in the ring ----

// A slot is read once. A backend that looks again after it has judged the request runs over its own
// arrays here.
TEST_F(SecurityTest, Xsa155SlotsRewrittenWhileTheyAreRead) {
  make_image();
  start(image());
  auto front = connect();
  buffers();
  RawRing& ring = front->queue().raw();
  const SlotLayout& at = ring.layout();
  for (uint32_t slot = 0; slot < ring.slots(); ++slot) {
    ring.put<uint8_t>(slot, at.operation, BLKIF_OP_READ);
    ring.put<uint64_t>(slot, at.sector, 0);
    for (size_t i = 0; i < BLKIF_MAX_SEGMENTS_PER_REQUEST; ++i)
      ring.put(slot, at.segments + 8 * i, blkif_request_segment{refs_[0], 0, 7});
  }
  std::atomic<bool> stop = false;
  std::thread rewriter([&] {
    for (uint8_t i = 0; !stop; ++i)
      for (uint32_t slot = 0; slot < ring.slots(); ++slot) {
        ring.put<uint8_t>(slot, at.operation, BLKIF_OP_READ);
        ring.put<uint8_t>(slot, at.nr_segments, i % 2 == 0 ? 1 : 255);
        ring.put<uint8_t>(slot, at.segments + 5, i % 3 == 0 ? 7 : 255);
      }
  });
  // The responses are as spoilt as the requests, so they are only counted.
  bool all_answered = true;
  for (int round = 0; round < 1000 && all_answered; ++round) {
    const uint32_t pushed = ring.req_prod() += ring.slots();
    front->queue().notify();
    const Deadline deadline = soon();
    while (ring.rsp_prod() != pushed && std::chrono::steady_clock::now() < deadline)
      std::this_thread::yield();
    all_answered = ring.rsp_prod() == pushed;
  }
  stop = true;
  rewriter.join();
  EXPECT_TRUE(all_answered);
  expect_comes_back(std::move(front));
}

TEST_F(SecurityTest, MoreRequestsThanTheRingHoldsStopTheRing) {
  make_image();
  start(image());
  auto front = connect();
  RawRing& ring = front->queue().raw();
  ring.req_prod() = ring.slots() + 1;
  front->queue().notify();
  must(world().store().wait_for(
      disk().backend_path + "/error", [](const std::string& s) { return !s.empty(); }, soon()));
  EXPECT_EQ(backend_node("error").substr(0, 3), "22 ");
  EXPECT_EQ(ring.rsp_prod(), 0u);
  // Nothing of it is believed from now on, be it in range again.
  ring.req_prod() = 1;
  front->queue().notify();
  expect_comes_back(std::move(front));
}

TEST_F(SecurityTest, AProducerThatGoesBackStopsTheRing) {
  make_image();
  start(image());
  auto front = connect();
  expect_serves(*front);
  front->queue().raw().req_prod() = 0;
  front->queue().notify();
  must(world().store().wait_for(
      disk().backend_path + "/error", [](const std::string& s) { return !s.empty(); }, soon()));
  expect_comes_back(std::move(front));
}

TEST_F(SecurityTest, SegmentsOutsideOfAPageOrTheDiskAreRefused) {
  make_image();
  start(image());
  auto front = connect({.indirect_segments = 32});
  buffers();
  const GrantRef ref = refs_[0];
  for (const bool indirect : {false, true}) {
    front->queue().always_indirect(indirect);
    for (const uint8_t operation : {uint8_t{BLKIF_OP_READ}, uint8_t{BLKIF_OP_WRITE}}) {
      EXPECT_EQ(ask(*front, operation, 0, {{ref, 0, 8}}), BLKIF_RSP_ERROR);
      EXPECT_EQ(ask(*front, operation, 0, {{ref, 0, 255}}), BLKIF_RSP_ERROR);
      EXPECT_EQ(ask(*front, operation, 0, {{ref, 5, 4}}), BLKIF_RSP_ERROR);
      EXPECT_EQ(ask(*front, operation, 0, {whole(0), {ref, 7, 0}}), BLKIF_RSP_ERROR);
      EXPECT_EQ(ask(*front, operation, kImageSectors - 7, {whole(0)}), BLKIF_RSP_ERROR);
      EXPECT_EQ(ask(*front, operation, kImageSectors, {whole(0)}), BLKIF_RSP_ERROR);
      EXPECT_EQ(ask(*front, operation, UINT64_MAX - 3, {whole(0)}), BLKIF_RSP_ERROR);
      EXPECT_EQ(ask(*front, operation, (uint64_t{1} << 55) + 8, {whole(0)}), BLKIF_RSP_ERROR);
      EXPECT_EQ(ask(*front, operation, kImageSectors - 8, {whole(0)}), BLKIF_RSP_OKAY);
    }
  }
  EXPECT_EQ(must(front->discard(1, kImageSectors, soon())), BLKIF_RSP_ERROR);
  EXPECT_EQ(must(front->discard(8, UINT64_MAX - 4, soon())), BLKIF_RSP_ERROR);
  EXPECT_EQ(must(front->discard(UINT64_MAX, 2, soon())), BLKIF_RSP_ERROR);
  expect_released();
  expect_comes_back(std::move(front));
}

TEST_F(SecurityTest, CountsOfSegmentsAreBounded) {
  make_image();
  start(image());
  auto front = connect({.indirect_segments = 32});
  buffers();
  RingQueue& queue = front->queue();
  const SlotLayout& at = queue.raw().layout();
  uint32_t slot = 0;
  const auto spoiled = [&](size_t segments, auto&& spoil) {
    const std::vector<Segment> list(segments, whole(0));
    queue.submit(BLKIF_OP_READ, 0, list.data(), list.size(), 0);
    spoil(slot++);
    queue.push();
    int16_t status = 1;
    while (queue.reap([&](const Completion& c) { status = c.status; }) == 0)
      if (!queue.wait(soon())) break;
    return status;
  };
  const auto direct = [&](uint8_t count) {
    return spoiled(1, [&](uint32_t s) { queue.raw().put<uint8_t>(s, at.nr_segments, count); });
  };
  EXPECT_EQ(direct(0), BLKIF_RSP_ERROR);
  EXPECT_EQ(direct(12), BLKIF_RSP_ERROR);
  EXPECT_EQ(direct(255), BLKIF_RSP_ERROR);
  const auto indirect = [&](uint16_t count) {
    return spoiled(12, [&](uint32_t s) { queue.raw().put(s, at.ind_nr_segments, count); });
  };
  EXPECT_EQ(indirect(0), BLKIF_RSP_ERROR);
  EXPECT_EQ(indirect(257), BLKIF_RSP_ERROR);  // 256 were offered
  EXPECT_EQ(indirect(4096), BLKIF_RSP_ERROR);
  EXPECT_EQ(indirect(65535), BLKIF_RSP_ERROR);
  EXPECT_TRUE(queue.violations().empty());
  expect_released();
  expect_comes_back(std::move(front));
}

TEST_F(SecurityTest, UnknownOperationsAreAnsweredNotSupported) {
  make_image();
  start(image());
  auto front = connect();
  buffers();
  for (const int operation : {4, 7, 200, 255})
    EXPECT_EQ(ask(*front, static_cast<uint8_t>(operation), 0, {whole(0)}), BLKIF_RSP_EOPNOTSUPP);
  expect_comes_back(std::move(front));
}

// Indirect flushes and barriers don't exist; the answer still names what was asked.
TEST_F(SecurityTest, IndirectOperationsAreReadAndWriteOnly) {
  make_image();
  start(image());
  auto front = connect({.indirect_segments = 32});
  buffers();
  const std::vector<Segment> twelve(12, whole(0));
  for (const int operation :
       {BLKIF_OP_WRITE_BARRIER, BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_DISCARD, BLKIF_OP_INDIRECT, 255})
    EXPECT_EQ(ask(*front, static_cast<uint8_t>(operation), 0, twelve), BLKIF_RSP_ERROR);
  EXPECT_TRUE(front->queue().violations().empty());
  expect_comes_back(std::move(front));
}

// CVE-2013-2140 let a guest discard a read-only disk; XSA-142 was mode=r that was not honoured.
TEST_F(SecurityTest, Cve2013_2140_Xsa142ReadOnlyDisksStayAsTheyAre) {
  make_image();
  {
    const Fd fd = must(Fd::open(image_path(), O_WRONLY));
    const std::vector<char> mark(4096, 'x');
    ASSERT_EQ(::pwrite(fd.get(), mark.data(), mark.size(), 0), 4096);
  }
  start(image(), {.writable = false});
  auto front = connect({.indirect_segments = 32});
  const std::vector<std::byte> data(4096, std::byte{'y'});
  EXPECT_EQ(must(front->write(0, data, soon())), BLKIF_RSP_ERROR);
  EXPECT_EQ(must(front->flush(soon(), 0, data)), BLKIF_RSP_ERROR);
  EXPECT_EQ(must(front->write_barrier(0, data, soon())), BLKIF_RSP_ERROR);
  EXPECT_NE(must(front->discard(0, 8, soon())), BLKIF_RSP_OKAY);
  front->queue().always_indirect(true);
  EXPECT_EQ(must(front->write(0, data, soon())), BLKIF_RSP_ERROR);
  std::vector<std::byte> back(4096);
  EXPECT_EQ(must(front->read(0, back, soon())), BLKIF_RSP_OKAY);
  EXPECT_EQ(back, std::vector<std::byte>(4096, std::byte{'x'}));
}

// ---- grants ----

class GrantSecurityTest : public SecurityTest, public ::testing::WithParamInterface<const char*> {
 protected:
  std::unique_ptr<Frontend> connected() {
    make_image();
    start(image(), {}, {"--grants", GetParam()});
    return connect({.indirect_segments = 32, .persistent = true});
  }
};

// Each status counts: a backend that goes on with what it did not get reads or writes elsewhere,
// and one that gives up half-way keeps the other half mapped.
TEST_P(GrantSecurityTest, Xsa361_362_365BadGrantsFailTheirOwnRequestOnly) {
  auto front = connected();
  buffers();
  const Pages other = must(guest().alloc_pages(2));
  const GrantRef revoked = must(guest().grant_page(other.first, true));
  ASSERT_TRUE(guest().grants().end_access(revoked));
  const GrantRef for_somebody_else = must(guest().alloc_ref());
  guest().grants().grant(for_somebody_else, 7, other.first + 1, true);
  for (const GrantRef bad : {revoked, for_somebody_else, GrantRef{0xffffffff}, GrantRef{0}}) {
    for (const uint8_t operation : {uint8_t{BLKIF_OP_READ}, uint8_t{BLKIF_OP_WRITE}}) {
      EXPECT_EQ(ask(*front, operation, 0, {{bad, 0, 7}}), BLKIF_RSP_ERROR);
      EXPECT_EQ(ask(*front, operation, 0, {whole(0), {bad, 0, 7}, whole(1)}), BLKIF_RSP_ERROR);
      EXPECT_EQ(ask(*front, operation, 0, {whole(0), whole(1)}), BLKIF_RSP_OKAY);
    }
  }
  // One bad request amid good ones of the same turn.
  RingQueue& queue = front->queue();
  const Segment good = whole(0);
  const Segment bad{revoked, 0, 7};
  for (uint64_t i = 0; i < 32; ++i)
    queue.submit(BLKIF_OP_WRITE, i * 8, i == 13 ? &bad : &good, 1, i);
  queue.push();
  while (queue.in_flight() > 0) {
    queue.reap([](const Completion& c) {
      EXPECT_EQ(c.status, c.tag == 13 ? BLKIF_RSP_ERROR : BLKIF_RSP_OKAY) << c.tag;
    });
    if (queue.in_flight() > 0) {
      ASSERT_TRUE(queue.wait(soon()));
    }
  }
  expect_comes_back(std::move(front));
  expect_released();
}

TEST_P(GrantSecurityTest, Xsa155IndirectPagesRewrittenWhileTheyAreRead) {
  auto front = connected();
  buffers();
  const Pages descriptors = must(guest().alloc_pages(1));
  const GrantRef descriptor_ref = must(guest().grant_page(descriptors.first, true));
  auto* segments = reinterpret_cast<volatile blkif_request_segment*>(descriptors.data);
  for (int i = 0; i < 32; ++i) {
    segments[i].gref = refs_[0];
    segments[i].first_sect = 0;
    segments[i].last_sect = 7;
  }
  std::atomic<bool> stop = false;
  std::thread rewriter([&] {
    for (unsigned i = 0; !stop; ++i) {
      segments[i % 32].last_sect = i % 3 == 0 ? 255 : 7;
      segments[i % 32].gref = i % 5 == 0 ? 0xffffffff : refs_[0];
    }
  });
  RingQueue& queue = front->queue();
  const SlotLayout& at = queue.raw().layout();
  const std::vector<Segment> twelve(12, whole(0));
  uint64_t answered = 0;
  uint32_t slot = 0;
  for (int i = 0; i < 3000; ++i) {
    queue.submit(BLKIF_OP_READ, 0, twelve.data(), twelve.size(), 0);
    queue.raw().put<uint16_t>(slot, at.ind_nr_segments, 32);
    queue.raw().put<uint32_t>(slot, at.ind_refs, descriptor_ref);
    ++slot;
    queue.push();
    while (queue.reap([&](const Completion&) { ++answered; }) == 0)
      if (!queue.wait(soon())) break;
  }
  stop = true;
  rewriter.join();
  EXPECT_EQ(answered, 3000u);
  EXPECT_TRUE(queue.violations().empty());
  expect_comes_back(std::move(front));
  EXPECT_TRUE(guest().grants().end_access(descriptor_ref));
}

TEST_P(GrantSecurityTest, BadIndirectPagesFailTheirOwnRequestOnly) {
  auto front = connected();
  buffers();
  RingQueue& queue = front->queue();
  const std::vector<Segment> twelve(12, whole(0));
  const SlotLayout& at = queue.raw().layout();
  for (uint32_t slot = 0; slot < 4; ++slot) {
    queue.submit(BLKIF_OP_READ, 0, twelve.data(), twelve.size(), slot);
    if (slot % 2 == 0) queue.raw().put<uint32_t>(slot, at.ind_refs, 0xfffffff0);
  }
  queue.push();
  while (queue.in_flight() > 0) {
    queue.reap([](const Completion& c) {
      EXPECT_EQ(c.status, c.tag % 2 == 0 ? BLKIF_RSP_ERROR : BLKIF_RSP_OKAY);
    });
    if (queue.in_flight() > 0) {
      ASSERT_TRUE(queue.wait(soon()));
    }
  }
  expect_comes_back(std::move(front));
  expect_released();
}

// A guest may grant what we only read as read-only; we must not write into it either.
TEST_P(GrantSecurityTest, ReadOnlyGrantsServeWritesAndRefuseReads) {
  auto front = connected();
  buffers(false);
  EXPECT_EQ(ask(*front, BLKIF_OP_WRITE, 0, {whole(0)}), BLKIF_RSP_OKAY);
  EXPECT_EQ(ask(*front, BLKIF_OP_READ, 0, {whole(0)}), BLKIF_RSP_ERROR);
  EXPECT_EQ(ask(*front, BLKIF_OP_WRITE, 0, {whole(1)}), BLKIF_RSP_OKAY);
  expect_comes_back(std::move(front));
  expect_released();
}

TEST_P(GrantSecurityTest, Xsa371OneGrantSeveralTimesInARequest) {
  auto front = connected();
  buffers();
  const std::vector<Segment> many(11, whole(0));
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(ask(*front, BLKIF_OP_WRITE, 0, many), BLKIF_RSP_OKAY);
    EXPECT_EQ(ask(*front, BLKIF_OP_READ, 0, many), BLKIF_RSP_OKAY);
  }
  expect_comes_back(std::move(front));
  expect_released();
}

TEST_P(GrantSecurityTest, Xsa371NothingStaysMappedWhenTheDiskIsTakenAwayUnderLoad) {
  auto front = connected();
  auto load = std::make_unique<BackgroundLoad>(*front);
  must(world().toolstack().request_detach(disk(), true));
  must(world().toolstack().wait_backend(disk(), XenbusStateClosed, soon()));
  expect_nothing_held();
}

TEST_P(GrantSecurityTest, Xsa371NothingStaysMappedWhenTheDomainDies) {
  auto front = connected();
  expect_serves(*front);
  must(world().kill_guest(guest()));
  must(world().toolstack().request_detach(disk(), true));
  must(world().wait_no_grants(soon()));
  must(world().wait_no_zombies(soon()));
}

INSTANTIATE_TEST_SUITE_P(Grants, GrantSecurityTest, ::testing::Values("persistent", "map", "copy"),
                         [](const auto& instance) { return std::string(instance.param); });

TEST_F(SecurityTest, PersistentGrantsAreBounded) {
  make_image();
  start(image());
  auto front = connect({.persistent = true});
  // More pages than Linux' blkback would keep, each used by reads and writes.
  constexpr uint32_t kPages = 3000;
  const Pages many = must(guest().alloc_pages(kPages));
  std::vector<GrantRef> refs;
  for (uint32_t i = 0; i < kPages; ++i)
    refs.push_back(must(guest().grant_page(many.first + i, true)));
  for (int round = 0; round < 3; ++round)
    for (uint32_t i = 0; i < kPages; ++i)
      ASSERT_EQ(ask(*front, BLKIF_OP_WRITE, i % 1000, {{refs[i], 0, 7}}), BLKIF_RSP_OKAY);
  EXPECT_LE(world().use_of(backend().pid())->grants, 1056u + 1);  // and the ring
  EXPECT_GE(world().use_of(backend().pid())->grants, 1000u);
  must(front->close(soon()));
  expect_nothing_held();
  for (const GrantRef ref : refs) EXPECT_TRUE(guest().grants().end_access(ref));
}

// ---- events ----

// A flood of events melts into few deliveries, one at a time, and is not answered with another.
TEST_F(SecurityTest, Xsa332AFloodOfEventsIsTakenOneAtATime) {
  make_image();
  start(image());
  auto front = connect();
  const ProcessUse before = *world().use_of(backend().pid());
  constexpr uint64_t kEvents = 200000;
  for (uint64_t i = 0; i < kEvents; ++i) front->queue().notify();
  expect_serves(*front);
  const ProcessUse after = *world().use_of(backend().pid());
  EXPECT_LT(after.deliveries - before.deliveries, kEvents / 2);
  EXPECT_LE(after.deliveries - before.deliveries, after.unmasks - before.unmasks + 1);
  EXPECT_LT(after.notifies - before.notifies, 10u);
  expect_comes_back(std::move(front));
}

// A port number comes back while an event of its former life is still queued.
TEST_F(SecurityTest, Xsa331PortsThatComeBack) {
  make_image();
  start(image());
  for (int i = 0; i < 30; ++i) {
    auto front = must(Frontend::create(guest(), disk().devid, {.queues = 4}));
    must(front->set_state(XenbusStateInitialising));
    must(front->connect(soon()));
    for (int n = 0; n < 10; ++n)
      for (size_t q = 0; q < 4; ++q) front->queue(q).notify();
    if (i % 3 == 0) expect_serves(*front);
    must(front->close(soon()));
  }
  expect_nothing_held();
  EXPECT_TRUE(backend().running());
}

// XSA-391 and XSA-396: who did not ask for events gets none, and nobody is answered twice.
TEST_F(SecurityTest, Xsa391_396NoEventThatWasNotAskedForAndNoSecondAnswer) {
  make_image();
  start(image());
  auto front = connect();
  buffers();
  RingQueue& queue = front->queue();
  const ProcessUse before = *world().use_of(backend().pid());
  const Segment s = whole(0);
  uint32_t answered = queue.raw().rsp_prod();
  for (int round = 0; round < 20; ++round) {
    queue.raw().rsp_event() = answered + 1000;
    for (int i = 0; i < 32; ++i) queue.submit(BLKIF_OP_READ, 0, &s, 1, 0);
    queue.push();
    answered += 32;
    const Deadline deadline = soon();
    while (queue.raw().rsp_prod() != answered && std::chrono::steady_clock::now() < deadline)
      std::this_thread::yield();
    ASSERT_EQ(queue.raw().rsp_prod(), answered);
    EXPECT_EQ(queue.reap([](const Completion& c) { EXPECT_EQ(c.status, BLKIF_RSP_OKAY); }), 32u);
  }
  EXPECT_TRUE(queue.violations().empty());
  EXPECT_EQ(world().use_of(backend().pid())->notifies, before.notifies);
  expect_comes_back(std::move(front));
}

// ---- xenstore ----

// XSA-349: watch events pile up in whoever does not take them; only the state is watched at all.
TEST_F(SecurityTest, Xsa349AFloodOfStoreWritesDoesNotFillMemory) {
  make_image();
  start(image());
  auto front = connect();
  expect_serves(*front);
  const uint64_t before = memory_use(backend().pid()).rss_kib;
  const std::string dir = disk().frontend_path;
  for (int i = 0; i < 20000; ++i) {
    must(guest().store().write(dir + "/state", "4"));
    if (i % 4 == 0) must(guest().store().write(dir + "/state/x", "y"));
    if (i % 4 == 1) must(guest().store().write(dir + "/flood", std::string(2000, 'z')));
  }
  expect_serves(*front);
  EXPECT_LT(memory_use(backend().pid()).rss_kib, before + 2048);
  (void)guest().store().remove(dir + "/state/x").ok();
  expect_comes_back(std::move(front));
}

// XSA-350: blkback freed a disk twice when its state went to and fro quickly.
TEST_F(SecurityTest, Xsa350StatesToggledFasterThanTheyAreFollowed) {
  make_image();
  start(image());
  auto front = must(Frontend::create(guest(), disk().devid, {.queues = 2, .persistent = true}));
  must(front->wait_backend_ready(soon()));
  must(front->make_queues());
  must(front->publish());
  uint64_t random = 1;
  for (int i = 0; i < 2000; ++i) {
    random = random * 6364136223846793005 + 1442695040888963407;
    must(front->set_state(static_cast<XenbusState>((random >> 33) % 9)));
    if (i % 16 == 0) front->queue(i / 16 % 2).notify();
  }
  must(front->set_state(XenbusStateClosed));
  must(front->wait_backend(XenbusStateClosed, soon()));
  expect_nothing_held();
  must(front->set_state(XenbusStateInitialising));
  must(front->wait_backend(XenbusStateInitWait, soon()));
  must(front->publish());
  must(front->wait_connected(soon()));
  expect_comes_back(std::move(front));
}

struct BadNodes {
  const char* name;
  FrontendOptions options;
};

class BadNodesTest : public SecurityTest, public ::testing::WithParamInterface<BadNodes> {};

// XSA-175/178 and their like: what a guest writes about itself is neither believed nor followed.
TEST_P(BadNodesTest, Xsa175_178AreRefusedAndForgotten) {
  make_image();
  start(image());
  auto front = must(Frontend::create(guest(), disk().devid, GetParam().options));
  EXPECT_FALSE(front->connect(soon()).ok());
  EXPECT_EQ(backend_node("state"), "5");
  EXPECT_NE(backend_node("error"), "");
  EXPECT_EQ(must(world().ports_open(guest().domid())) > 0, true);  // its own
  expect_nothing_held();
  for (const auto& [node, value] : GetParam().options.overrides)
    (void)guest().store().remove(disk().frontend_path + "/" + node).ok();
  expect_comes_back(std::move(front));
}

INSTANTIATE_TEST_SUITE_P(
    Nodes, BadNodesTest,
    ::testing::Values(
        BadNodes{"OrderBeyondTheOffer", {.overrides = {{"ring-page-order", "5"}}}},
        BadNodes{"OrderThatShiftsOut", {.overrides = {{"ring-page-order", "32"}}}},
        BadNodes{"OrderHuge", {.overrides = {{"ring-page-order", "4294967295"}}}},
        BadNodes{"OrderNegative", {.overrides = {{"ring-page-order", "-1"}}}},
        BadNodes{"OrderGarbage", {.overrides = {{"ring-page-order", "4x"}}}},
        BadNodes{"NoQueues", {.overrides = {{"multi-queue-num-queues", "0"}}}},
        BadNodes{"QueuesBeyondTheOffer", {.overrides = {{"multi-queue-num-queues", "65536"}}}},
        BadNodes{"QueuesWithoutNodes", {.overrides = {{"multi-queue-num-queues", "4"}}}},
        BadNodes{"NoRing", {.overrides = {{"ring-ref", ""}}}},
        BadNodes{"RingNotGranted", {.overrides = {{"ring-ref", "30000"}}}},
        BadNodes{"RingHuge", {.overrides = {{"ring-ref", "99999999999999999999"}}}},
        BadNodes{"NoEventChannel", {.overrides = {{"event-channel", ""}}}},
        BadNodes{"EventChannelUnbound", {.overrides = {{"event-channel", "4000"}}}},
        BadNodes{"ProtocolUnknown", {.overrides = {{"protocol", "vax-abi"}}}},
        BadNodes{"ProtocolLong", {.overrides = {{"protocol", std::string(1500, 'a')}}}},
        BadNodes{"QueueTwiceOnOneChannel",
                 {.queues = 2, .overrides = {{"queue-1/event-channel", "4000"}}}}),
    [](const auto& instance) { return std::string(instance.param.name); });

// The guest cannot send us to another domain's ring by what it writes about the backend.
TEST_F(SecurityTest, Xsa175TheGuestsOwnViewOfIdsIsNotRead) {
  make_image();
  start(image());
  for (const auto& [node, value] : {std::pair{"backend-id", "7"},
                                    {"backend", "/local/domain/7"},
                                    {"frontend-id", "0"},
                                    {"virtual-device", "99"}})
    (void)guest().store().write(disk().frontend_path + "/" + node, value).ok();
  auto front = must(Frontend::create(guest(), disk().devid));
  // Its own idea of where the backend is was spoilt, so it is looked for where it really is.
  must(world().store().write(disk().frontend_path + "/backend", disk().backend_path));
  front = must(Frontend::create(guest(), disk().devid));
  must(front->connect(soon()));
  expect_serves(*front);
}

}  // namespace
}  // namespace vbdkit::sim
