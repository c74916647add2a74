// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The replacement libraries through their C interface, as a backend sees them (xenlibs_main.cc).
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <iostream>

extern "C" {
#include <xenevtchn.h>
#include <xengnttab.h>
}

#include "tests/sim/world_test_base.h"

namespace vbdkit::sim {
namespace {

struct CloseGrants {
  void operator()(xengnttab_handle* h) const { xengnttab_close(h); }
};
struct CloseEvents {
  void operator()(xenevtchn_handle* h) const { xenevtchn_close(h); }
};
using Grants = std::unique_ptr<xengnttab_handle, CloseGrants>;
using Events = std::unique_ptr<xenevtchn_handle, CloseEvents>;

bool readable(int fd) {
  pollfd p{fd, POLLIN, 0};
  return ::poll(&p, 1, 0) == 1;
}

// One World for all suites, since a process is on one host for all its life.
class XenLibs : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (world_ != nullptr) return;
    world_ = must(World::start());
    for (const auto& [name, value] : world_->environment())
      ::setenv(name.c_str(), value.c_str(), 1);
  }
  void SetUp() override {
    guest_ = must(world_->create_guest());
    grants_.reset(xengnttab_open(nullptr, 0));
    events_.reset(xenevtchn_open(nullptr, 0));
    ASSERT_NE(grants_, nullptr);
    ASSERT_NE(events_, nullptr);
  }

  World& world() { return *world_; }
  Guest& guest() { return *guest_; }
  GrantRef grant(const Pages& page, bool writable) {
    return must(guest().grant_page(page.first, writable));
  }
  void* map(GrantRef ref, int prot) {
    return xengnttab_map_grant_ref(grants_.get(), guest().domid(), ref, prot);
  }
  uint32_t mapped() { return must(world().grants_mapped(guest().domid())); }

  static std::unique_ptr<World> world_;
  Guest* guest_ = nullptr;
  Grants grants_;
  Events events_;
};
std::unique_ptr<World> XenLibs::world_;

constexpr int kReadWrite = PROT_READ | PROT_WRITE;

TEST_F(XenLibs, MappedPageIsTheGuestsOwn) {
  const Pages page = must(guest().alloc_pages(1));
  auto* here = static_cast<std::byte*>(map(grant(page, true), kReadWrite));
  ASSERT_NE(here, nullptr);
  page.data[17] = std::byte{0x5a};
  EXPECT_EQ(here[17], std::byte{0x5a});
  here[4095] = std::byte{0xa5};
  EXPECT_EQ(page.data[4095], std::byte{0xa5});
  EXPECT_EQ(mapped(), 1u);
  EXPECT_EQ(xengnttab_unmap(grants_.get(), here, 1), 0);
  EXPECT_EQ(mapped(), 0u);
}

TEST_F(XenLibs, ReadOnlyGrantMapsReadOnlyOnly) {
  const GrantRef ref = grant(must(guest().alloc_pages(1)), false);
  EXPECT_EQ(map(ref, kReadWrite), nullptr);
  EXPECT_EQ(errno, EINVAL);
  void* here = map(ref, PROT_READ);
  ASSERT_NE(here, nullptr);
  EXPECT_EQ(xengnttab_unmap(grants_.get(), here, 1), 0);
}

TEST_F(XenLibs, WhatWasNotGrantedToUsIsRefused) {
  const Pages page = must(guest().alloc_pages(1));
  const GrantRef ref = must(guest().alloc_ref());
  EXPECT_EQ(map(ref, PROT_READ), nullptr);
  guest().grants().grant(ref, 7, page.first, true);
  EXPECT_EQ(map(ref, PROT_READ), nullptr) << "granted to another domain";
  guest().grants().grant(ref, 0, 0x7fffffff, true);
  EXPECT_EQ(map(ref, PROT_READ), nullptr) << "a frame that the guest does not have";
  EXPECT_EQ(map(0xfffffff0, PROT_READ), nullptr) << "beyond the grant table";
  EXPECT_EQ(xengnttab_map_grant_ref(grants_.get(), 999, ref, PROT_READ), nullptr) << "no domain";
  EXPECT_EQ(mapped(), 0u);
}

TEST_F(XenLibs, OneBadGrantFailsTheWholeBatch) {
  const Pages pages = must(guest().alloc_pages(3));
  std::array<uint32_t, 3> refs{};
  for (uint32_t i = 0; i < 3; ++i) refs[i] = must(guest().grant_page(pages.first + i, true));
  const uint32_t good = refs[1];
  refs[1] = must(guest().alloc_ref());
  const auto domid = guest().domid();
  EXPECT_EQ(xengnttab_map_domain_grant_refs(grants_.get(), 3, domid, refs.data(), kReadWrite),
            nullptr);
  EXPECT_EQ(errno, EINVAL);
  EXPECT_EQ(mapped(), 0u);
  refs[1] = good;
  void* here = xengnttab_map_domain_grant_refs(grants_.get(), 3, domid, refs.data(), kReadWrite);
  ASSERT_NE(here, nullptr);
  pages.data[2 * kPageSize] = std::byte{9};
  EXPECT_EQ(static_cast<std::byte*>(here)[2 * kPageSize], std::byte{9});
  EXPECT_EQ(xengnttab_unmap(grants_.get(), here, 2), -1) << "the count must be the map's";
  EXPECT_EQ(xengnttab_unmap(grants_.get(), here, 3), 0);
}

TEST_F(XenLibs, GuestCannotEndAccessWhileMapped) {
  const GrantRef ref = grant(must(guest().alloc_pages(1)), true);
  void* first = map(ref, kReadWrite);
  void* second = map(ref, PROT_READ);
  EXPECT_EQ(guest().grants().entry(ref).flags, GTF_permit_access | GTF_reading | GTF_writing);
  EXPECT_FALSE(guest().grants().end_access(ref));
  EXPECT_EQ(xengnttab_unmap(grants_.get(), first, 1), 0);
  EXPECT_EQ(guest().grants().entry(ref).flags, GTF_permit_access | GTF_reading);
  EXPECT_FALSE(guest().grants().end_access(ref));
  EXPECT_EQ(xengnttab_unmap(grants_.get(), second, 1), 0);
  EXPECT_TRUE(guest().grants().end_access(ref));
  EXPECT_EQ(map(ref, PROT_READ), nullptr);
}

TEST_F(XenLibs, CopyReportsEachSegment) {
  const Pages pages = must(guest().alloc_pages(2));
  const GrantRef writable = must(guest().grant_page(pages.first, true));
  const GrantRef read_only = must(guest().grant_page(pages.first + 1, false));
  std::array<std::byte, 512> local{};
  local.fill(std::byte{0x77});
  const auto to_guest = [&](GrantRef ref) {
    xengnttab_grant_copy_segment_t s{};
    s.source.virt = local.data();
    s.dest.foreign = {ref, 1024, guest().domid()};
    s.len = 512;
    s.flags = GNTCOPY_dest_gref;
    return s;
  };
  std::array segments{to_guest(writable), to_guest(read_only), to_guest(0xfffffff0),
                      to_guest(writable)};
  segments[3].dest.foreign.domid = 999;
  EXPECT_EQ(xengnttab_grant_copy(grants_.get(), segments.size(), segments.data()), 0);
  EXPECT_EQ(segments[0].status, GNTST_okay);
  EXPECT_EQ(segments[1].status, GNTST_general_error);
  EXPECT_EQ(segments[2].status, GNTST_bad_gntref);
  EXPECT_EQ(segments[3].status, GNTST_bad_domain);
  EXPECT_EQ(pages.data[1024], std::byte{0x77});
  EXPECT_EQ(pages.data[1023], std::byte{0});
  EXPECT_EQ(pages.data[1536], std::byte{0});
  EXPECT_EQ(mapped(), 0u);
  EXPECT_TRUE(guest().grants().end_access(writable));
}

TEST_F(XenLibs, CopyRefusesWhatTheKernelRefuses) {
  const GrantRef ref = grant(must(guest().alloc_pages(1)), true);
  std::array<std::byte, 512> local{};
  xengnttab_grant_copy_segment_t s{};
  s.source.virt = local.data();
  s.dest.foreign = {ref, 4000, guest().domid()};
  s.len = 512;
  s.flags = GNTCOPY_dest_gref;
  EXPECT_EQ(xengnttab_grant_copy(grants_.get(), 1, &s), -1) << "crosses the page";
  EXPECT_EQ(errno, EINVAL);
  s.dest.virt = local.data();
  s.flags = 0;
  EXPECT_EQ(xengnttab_grant_copy(grants_.get(), 1, &s), -1) << "local to local";
}

TEST_F(XenLibs, UnmapNotifyClearsTheByteAndSends) {
  const Pages page = must(guest().alloc_pages(1));
  page.data[100] = std::byte{1};
  auto guest_events = must(guest().open_events());
  const EvtPort guest_port = must(guest_events->bind_unbound(0));
  const int port = xenevtchn_bind_interdomain(events_.get(), guest().domid(), guest_port);
  ASSERT_GT(port, 0);
  void* here = xengnttab_map_grant_ref_notify(grants_.get(), guest().domid(), grant(page, true),
                                              kReadWrite, 100, static_cast<evtchn_port_t>(port));
  ASSERT_NE(here, nullptr);
  EXPECT_FALSE(readable(guest_events->fd()));
  EXPECT_EQ(xengnttab_unmap(grants_.get(), here, 1), 0);
  EXPECT_EQ(page.data[100], std::byte{0});
  EXPECT_TRUE(readable(guest_events->fd()));
}

class Ports : public XenLibs {
 protected:
  void SetUp() override {
    XenLibs::SetUp();
    guest_events_ = must(guest().open_events());
    guest_port_ = must(guest_events_->bind_unbound(0));
    port_ = xenevtchn_bind_interdomain(events_.get(), guest().domid(), guest_port_);
    ASSERT_GT(port_, 0);
  }
  evtchn_port_t port() const { return static_cast<evtchn_port_t>(port_); }
  // Takes and unmasks the event that binding raised.
  void take_first() {
    EXPECT_EQ(xenevtchn_pending(events_.get()), port_);
    EXPECT_EQ(xenevtchn_unmask(events_.get(), port()), 0);
  }
  int fd() { return xenevtchn_fd(events_.get()); }

  std::unique_ptr<EventChannels> guest_events_;
  EvtPort guest_port_ = 0;
  int port_ = 0;
};

TEST_F(Ports, BindingRaisesOneEvent) {
  EXPECT_TRUE(readable(fd()));
  take_first();
  EXPECT_FALSE(readable(fd()));
}

TEST_F(Ports, DeliveryMasksUntilUnmasked) {
  take_first();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(guest_events_->notify(guest_port_), 0);
  EXPECT_EQ(xenevtchn_pending(events_.get()), port_);
  EXPECT_FALSE(readable(fd())) << "three notifies are one event";
  EXPECT_EQ(guest_events_->notify(guest_port_), 0);
  EXPECT_FALSE(readable(fd())) << "masked";
  EXPECT_EQ(xenevtchn_unmask(events_.get(), port()), 0);
  EXPECT_EQ(xenevtchn_pending(events_.get()), port_) << "what came while masked is delivered now";
  EXPECT_EQ(xenevtchn_unmask(events_.get(), port()), 0);
  EXPECT_FALSE(readable(fd()));
}

TEST_F(Ports, PendingOnAnEmptyNonBlockingHandleIsEagain) {
  take_first();
  ASSERT_EQ(::fcntl(fd(), F_SETFL, O_NONBLOCK), 0);
  EXPECT_EQ(xenevtchn_pending(events_.get()), -1);
  EXPECT_EQ(errno, EAGAIN);
}

TEST_F(Ports, OnlyTheRightDomainBindsOnce) {
  EXPECT_EQ(xenevtchn_bind_interdomain(events_.get(), guest().domid(), guest_port_), -1)
      << "bound already";
  const EvtPort others = must(guest_events_->bind_unbound(77));
  EXPECT_EQ(xenevtchn_bind_interdomain(events_.get(), guest().domid(), others), -1)
      << "meant for domain 77";
  EXPECT_EQ(xenevtchn_bind_interdomain(events_.get(), guest().domid(), 16000), -1);
  EXPECT_EQ(xenevtchn_notify(events_.get(), guest_port_), -1) << "the guest's port, not ours";
  EXPECT_EQ(errno, ENOTCONN);
}

TEST_F(Ports, EventQueuedBeforeUnbindStillComesOut) {
  EXPECT_EQ(xenevtchn_unbind(events_.get(), port()), 0);
  EXPECT_EQ(xenevtchn_pending(events_.get()), port_) << "as from the kernel's ring";
  EXPECT_EQ(xenevtchn_unmask(events_.get(), port()), 0) << "and is ignored here";
  EXPECT_FALSE(readable(fd()));
}

TEST_F(Ports, UnbindLeavesThePeerReadyForAnother) {
  EXPECT_EQ(xenevtchn_unbind(events_.get(), port()), 0);
  EXPECT_EQ(xenevtchn_notify(events_.get(), port()), -1);
  EXPECT_EQ(guest_events_->notify(guest_port_), 0) << "dropped, as Xen does";
  const int again = xenevtchn_bind_interdomain(events_.get(), guest().domid(), guest_port_);
  ASSERT_GT(again, 0);
  EXPECT_EQ(xenevtchn_notify(events_.get(), static_cast<evtchn_port_t>(again)), 0);
  EXPECT_EQ(guest_events_->pending().port, guest_port_);
}

TEST_F(Ports, KilledProcessGivesEverythingBack) {
  const Pages page = must(guest().alloc_pages(1));
  const GrantRef ref = grant(page, true);
  const EvtPort offered = must(guest_events_->bind_unbound(0));
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const Grants grants(xengnttab_open(nullptr, 0));
    const Events events(xenevtchn_open(nullptr, 0));
    void* here = xengnttab_map_grant_ref(grants.get(), guest().domid(), ref, kReadWrite);
    const int port = xenevtchn_bind_interdomain(events.get(), guest().domid(), offered);
    const char good = here != nullptr && port > 0 ? 'y' : 'n';
    (void)!::write(ready[1], &good, 1);
    ::pause();
  }
  char good = 'n';
  ASSERT_EQ(::read(ready[0], &good, 1), 1);
  EXPECT_EQ(good, 'y');
  EXPECT_EQ(mapped(), 1u);
  const uint32_t ports_before = must(world().ports_open(0));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  must(world().wait_no_grants(in(std::chrono::seconds(5))));
  EXPECT_EQ(must(world().ports_open(0)), ports_before - 1);
  EXPECT_TRUE(guest().grants().end_access(ref));
  EXPECT_GT(xenevtchn_bind_interdomain(events_.get(), guest().domid(), offered), 0);
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(XenLibs, DestroyedDomainIsAZombieWhileMapped) {
  const Pages page = must(guest().alloc_pages(1));
  page.data[0] = std::byte{42};
  const GrantRef ref = grant(page, true);
  auto* here = static_cast<std::byte*>(map(ref, kReadWrite));
  ASSERT_NE(here, nullptr);
  must(world().kill_guest(guest()));
  EXPECT_EQ(here[0], std::byte{42}) << "a mapping outlives its domain";
  EXPECT_EQ(map(ref, PROT_READ), nullptr);
  EXPECT_EQ(must(world().zombies()), std::vector<DomId>{guest().domid()});
  EXPECT_EQ(xengnttab_unmap(grants_.get(), here, 1), 0);
  must(world().wait_no_zombies(in(std::chrono::seconds(5))));
}

TEST_F(XenLibs, CountersCountWhatWasAsked) {
  const GrantRef ref = grant(must(guest().alloc_pages(1)), true);
  const ProcessUse before = world().use_of(::getpid()).value();
  void* here = map(ref, kReadWrite);
  EXPECT_EQ(map(0xfffffff0, PROT_READ), nullptr);
  const ProcessUse between = world().use_of(::getpid()).value();
  EXPECT_EQ(between.grants, before.grants + 1);
  EXPECT_EQ(between.map_calls, before.map_calls + 2);
  EXPECT_EQ(between.maps, before.maps + 1);
  EXPECT_EQ(between.map_failures, before.map_failures + 1);
  EXPECT_EQ(xengnttab_unmap(grants_.get(), here, 1), 0);
  EXPECT_EQ(world().use_of(::getpid()).value().grants, before.grants);
}

}  // namespace
}  // namespace vbdkit::sim
