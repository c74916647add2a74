// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The backend's event channels (backend/xen) with the guest's end in our hands: what a hostile
// guest's events may cost, event by event.
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>

#include "backend/xen/event_channels.h"
#include "tests/sim/world_test_base.h"

namespace vbdkit::sim {
namespace {

// One World for all tests, since a process is on one host for all its life.
class BackendEvents : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    world_ = must(World::start());
    for (const auto& [name, value] : world_->environment())
      ::setenv(name.c_str(), value.c_str(), 1);
  }
  static void TearDownTestSuite() { world_.reset(); }
  void SetUp() override {
    reactor_ = must(io::Reactor::create({}, log_));
    events_ = must(xen::EventChannels::open(*reactor_, log_));
    guest_ = must(world_->create_guest());
    guest_events_ = must(guest_->open_events());
    guest_port_ = must(guest_events_->bind_unbound(0));
  }
  uint64_t deliveries() { return world_->use_of(::getpid())->deliveries; }
  void notify() { ASSERT_EQ(guest_events_->notify(guest_port_), 0); }

  static inline std::unique_ptr<World> world_;
  const Logger log_{"test", LogLevel::kError};
  std::unique_ptr<io::Reactor> reactor_;
  std::unique_ptr<xen::EventChannels> events_;
  Guest* guest_ = nullptr;
  std::unique_ptr<EventChannels> guest_events_;
  EvtPort guest_port_ = 0;
};

// XSA-332: who unmasks before the work is done is interrupted as often as the guest likes.
TEST_F(BackendEvents, Xsa332APortStaysMaskedWhileItsEventIsWorkedOn) {
  unsigned handled = 0;
  uint64_t before = 0;
  auto port = must(events_->bind_interdomain(guest_->domid(), guest_port_, [&] {
    ++handled;
    if (handled == 1) {
      before = deliveries();
      for (int i = 0; i < 1000; ++i) notify();
      EXPECT_EQ(deliveries(), before) << "an event came while the port had to be masked";
      return;
    }
    reactor_->stop();  // the thousand, melted into one
  }));
  must(reactor_->run());  // binding raises the first event
  EXPECT_EQ(handled, 2u);
  EXPECT_EQ(deliveries(), before + 1);
}

// XSA-331: an event of the port's former life comes to nobody, and does not unmask the new one.
TEST_F(BackendEvents, Xsa331AnEventOfAFormerLifeIsDropped) {
  unsigned former = 0;
  unsigned latter = 0;
  auto port = must(
      events_->bind_interdomain(guest_->domid(), guest_port_, [&] { ++former; }));  // raises one
  port.reset();  // while that one is queued
  const EvtPort other = must(guest_events_->bind_unbound(0));
  auto again = must(events_->bind_interdomain(guest_->domid(), other, [&] {
    ++latter;
    reactor_->stop();
  }));
  must(reactor_->run());
  EXPECT_EQ(former, 0u);
  EXPECT_GE(latter, 1u);
}

}  // namespace
}  // namespace vbdkit::sim
