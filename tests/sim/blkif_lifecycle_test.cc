// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A disk's life as xenbus knows it: reboot, kexec, detach in all its forms, a domain that goes.
#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/sim/blkif_test_base.h"

namespace vbdkit::sim {
namespace {

class LifecycleTest : public BlkifTest {
 protected:
  void SetUp() override {
    BlkifTest::SetUp();
    if (HasFatalFailure()) return;
    make_image();
    start(image());
  }
};

TEST_F(LifecycleTest, AGuestReboots) {
  VerifiedDisk model(kImageSectors);
  for (int boot = 0; boot < 3; ++boot) {
    auto front = must(Frontend::create(guest(), disk().devid, {.persistent = boot % 2 == 0}));
    must(front->set_state(XenbusStateInitialising));
    must(front->connect(soon()));
    expect_clean(must(
        model.run(*front, {.seed = static_cast<uint64_t>(boot) + 1, .requests = 500}, soon())));
    must(front->close(soon()));
    expect_nothing_held();
  }
}

// xenbus_reset_frontend() of a kexec'd kernel writes 5, 6, 1 and expects 5, 6, 2.
TEST_F(LifecycleTest, AGuestStartsAnotherKernel) {
  auto front = connect({.persistent = true});
  expect_serves(*front);
  must(front->reset(soon()));
  EXPECT_EQ(front->backend_state(), XenbusStateInitWait);
  expect_nothing_held();
  must(front->connect(soon()));
  expect_serves(*front);
}

// The new kernel did not close, and published other rings while we did not look.
TEST_F(LifecycleTest, AFrontendThatComesBackWithOtherRingsIsConnectedToThose) {
  auto front = connect();
  expect_serves(*front);
  auto second = must(Frontend::create(guest(), disk().devid));
  second->refresh_features();
  must(second->make_queues());
  must(second->publish());
  must(world().store().wait_for(
      disk().backend_path + "/state", [](const std::string& s) { return s == "4"; }, soon()));
  must(second->wait_connected(soon()));
  expect_serves(*second);
  must(second->close(soon()));
  expect_nothing_held();
}

TEST_F(LifecycleTest, DetachedAtItsEase) {
  auto front = connect();
  expect_serves(*front);
  std::thread guest_kernel([&] {
    EXPECT_TRUE(front->wait_backend(XenbusStateClosing, soon()).ok());
    EXPECT_TRUE(front->close(soon()).ok());
  });
  must(world().toolstack().detach(disk(), soon()));
  guest_kernel.join();
  expect_nothing_held();
  EXPECT_FALSE(world().store().read(disk().backend_path + "/state").ok());
}

// Nobody in the guest has looked at it yet, so nobody can answer.
TEST_F(LifecycleTest, DetachedBeforeItWasUsed) {
  auto front = must(Frontend::create(guest(), disk().devid));
  must(front->wait_backend_ready(soon()));
  must(world().toolstack().detach(disk(), soon()));
  EXPECT_FALSE(world().store().read(disk().backend_path + "/state").ok());
}

TEST_F(LifecycleTest, DetachedByForceUnderLoad) {
  auto front = connect({.persistent = true});
  auto load = std::make_unique<BackgroundLoad>(*front);
  must(world().toolstack().request_detach(disk(), true));
  must(world().toolstack().wait_backend(disk(), XenbusStateClosed, soon()));
  expect_nothing_held();
}

TEST_F(LifecycleTest, DestroyedUnderLoadLeavesNoZombieAndNoNode) {
  auto front = connect({.persistent = true});
  auto load = std::make_unique<BackgroundLoad>(*front);
  const std::string path = disk().backend_path;
  must(world().destroy_guest(guest(), soon()));
  must(world().wait_no_zombies(soon()));
  EXPECT_FALSE(world().store().read(path).ok());
  must(world().wait_no_grants(soon()));
}

// The successor of this process must find the guest as it was: states stay, nothing is said.
TEST_F(LifecycleTest, EndsWithoutTheGuestSeeingAClose) {
  auto front = connect({.persistent = true});
  expect_serves(*front);
  must(backend().stop(soon()));
  EXPECT_EQ(backend_node("state"), "4");
  must(world().wait_no_grants(soon()));
}

TEST_F(LifecycleTest, NeverMakesAnewADirectoryThatWasRemoved) {
  auto front = connect();
  must(world().store().remove(disk().backend_path));
  must(front->set_state(XenbusStateClosing));
  must(front->set_state(XenbusStateClosed));
  must(world().wait_no_grants(soon()));
  EXPECT_FALSE(world().store().read(disk().backend_path + "/state").ok());
}

TEST_F(LifecycleTest, XentopSeesTheNumbers) {
  auto front = connect();
  const std::vector<std::byte> data(8192, std::byte{1});
  ASSERT_EQ(must(front->write(0, data, soon())), BLKIF_RSP_OKAY);
  std::vector<std::byte> back(4096);
  for (int i = 0; i < 3; ++i) ASSERT_EQ(must(front->read(0, back, soon())), BLKIF_RSP_OKAY);
  EXPECT_EQ(must(front->read(kImageSectors, back, soon())), BLKIF_RSP_ERROR);
  const std::string file = dir() + "/td3-" + backend_node("kthread-pid") + "/vbd-" +
                           std::to_string(guest().domid()) + "-" + std::to_string(disk().devid);
  struct {
    uint32_t version, pad;
    uint64_t oo;
    struct {
      uint64_t submitted, completed, sectors, ticks;
    } reads, writes;
    uint64_t errors, flags;
  } seen{};
  std::ifstream(file, std::ios::binary).read(reinterpret_cast<char*>(&seen), sizeof seen);
  EXPECT_EQ(seen.version, 1u);
  EXPECT_EQ(seen.reads.submitted, 3u);
  EXPECT_EQ(seen.reads.completed, 3u);
  EXPECT_EQ(seen.reads.sectors, 24u);
  EXPECT_EQ(seen.writes.completed, 1u);
  EXPECT_EQ(seen.writes.sectors, 16u);
  EXPECT_EQ(seen.errors, 1u);
  must(backend().stop(soon()));
  EXPECT_FALSE(std::filesystem::exists(file));
}

class AdoptTest : public BlkifTest {};

// Somebody else answered first, and the frontend acts on what it read then.
TEST_F(AdoptTest, KeepsToLimitsThatWerePublishedBefore) {
  make_image();
  Guest& guest = *must(world().create_guest());
  const Disk disk = must(world().toolstack().attach(guest.domid(), {}));
  must(world().store().write(disk.backend_path + "/max-ring-page-order", "1"));
  must(world().store().write(disk.backend_path + "/multi-queue-max-queues", "2"));
  must(world().store().write(disk.backend_path + "/state", "2"));
  launch_backend("backend", image(), {disk.backend_path});
  must(world().store().wait_for(
      disk.backend_path + "/sectors", [](const std::string& s) { return !s.empty(); }, soon()));
  EXPECT_EQ(world().store().read_or(disk.backend_path + "/max-ring-page-order"), "1");
  EXPECT_EQ(world().store().read_or(disk.backend_path + "/multi-queue-max-queues"), "2");
  auto front = must(Frontend::create(guest, disk.devid, {.ring_order = 1, .queues = 2}));
  must(front->connect(soon()));
  expect_serves(*front);
  must(front->close(soon()));
  auto greedy = must(Frontend::create(guest, disk.devid, {.ring_order = 2}));
  EXPECT_TRUE(greedy->set_state(XenbusStateInitialising).ok());
}

TEST_F(AdoptTest, LeavesADiskAloneThatAnotherBackendServes) {
  make_image();
  Guest& guest = *must(world().create_guest());
  const Disk disk = must(world().toolstack().attach(guest.domid(), {}));
  must(world().store().write(disk.backend_path + "/state", "4"));
  Process& backend = *launch_backend("backend", image(), {disk.backend_path});
  const int status = must(backend.wait(soon()));
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) != 0);
  EXPECT_NE(backend.log().find("another backend has it"), std::string::npos);
  EXPECT_EQ(world().store().read_or(disk.backend_path + "/state"), "4");
}

class ThrottledTest : public BlkifTest {
 protected:
  // With half a minute of requests that wait for their turn.
  std::unique_ptr<BackgroundLoad> load(Frontend& front) {
    auto load = std::make_unique<BackgroundLoad>(front);
    for (const auto last = soon(); load->completed() == 0;) {
      EXPECT_LT(std::chrono::steady_clock::now(), last);
      std::this_thread::yield();
    }
    return load;
  }
  void start_slow(const std::vector<std::string>& options = {}) {
    make_image();
    start("throttle:iops=1,iops-burst=1|" + image(), {}, options);
  }
};

TEST_F(ThrottledTest, IsDetachedByForceWithoutWaitingForItsLimit) {
  start_slow();
  auto front = connect();
  const auto requests = load(*front);
  must(world().toolstack().request_detach(disk(), true));
  must(world().toolstack().wait_backend(disk(), XenbusStateClosed, soon()));
  expect_nothing_held();
}

TEST_F(ThrottledTest, GoesWithItsDomainWithoutWaitingForItsLimit) {
  start_slow({"--threads", "2"});
  auto front = connect();
  const auto requests = load(*front);
  must(world().destroy_guest(guest(), soon()));
  must(world().wait_no_zombies(soon()));
  must(world().wait_no_grants(soon()));
}

// Else its guest would get around the limit by closing.
TEST_F(ThrottledTest, IsNotHurriedByItsGuest) {
  start_slow();
  auto front = connect();
  {
    const auto requests = load(*front);
    must(front->set_state(XenbusStateClosing));
    must(front->wait_backend(XenbusStateClosing, soon()));
    must(front->set_state(XenbusStateClosed));
    // For half a minute, but here until the toolstack comes.
    EXPECT_FALSE(world()
                     .store()
                     .wait_for(
                         disk().backend_path + "/state",
                         [](const std::string& s) { return s == "6"; }, in(std::chrono::seconds(1)))
                     .ok());
  }
  must(world().toolstack().request_detach(disk(), true));
  must(world().toolstack().wait_backend(disk(), XenbusStateClosed, soon()));
}

// Two guests on one image, one instance.
TEST_F(AdoptTest, ServesSeveralGuests) {
  make_image();
  std::vector<Guest*> guests;
  std::vector<Disk> disks;
  for (int i = 0; i < 2; ++i) {
    guests.push_back(must(world().create_guest()));
    disks.push_back(must(world().toolstack().attach(guests.back()->domid(), {.writable = false})));
  }
  launch_backend("backend", image(), {disks[0].backend_path, disks[1].backend_path});
  VerifiedDisk model(kImageSectors);
  std::vector<std::unique_ptr<Frontend>> fronts;
  for (int i = 0; i < 2; ++i) {
    fronts.push_back(must(Frontend::create(*guests[i], disks[i].devid)));
    must(fronts.back()->connect(soon()));
  }
  for (auto& front : fronts) expect_clean(must(model.check(*front, in(std::chrono::seconds(60)))));
  must(world().destroy_guest(*guests[0], soon()));
  expect_clean(must(model.check(*fronts[1], in(std::chrono::seconds(60)))));
}

}  // namespace
}  // namespace vbdkit::sim
