// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A disk's life under vbdkitd, from the nodes libxl writes to nothing left.
#include <pwd.h>
#include <sys/stat.h>

#include <chrono>
#include <cstdio>

#include "tests/sim/hotplug_fixture.h"

namespace vbdkit::sim {
namespace {

using namespace std::chrono_literals;

class HotplugAttach : public HotplugTest {};

TEST_F(HotplugAttach, DiskIsServedAndNothingIsLeftAfterwards) {
  Guest& guest = *must(world().create_guest());
  const Disk disk = add(guest, {.target = "raw:" + image("a.img")});
  ASSERT_EQ(instance_pids().size(), 1u);
  EXPECT_EQ(node(disk, "hotplug-status"), "connected");
  EXPECT_EQ(node(disk, "physical-device-path"),
            "nbd+unix:///?socket=" + instance_dirs().front() + "/nbd.sock");
  EXPECT_EQ(node(disk, "physical-device"), "");

  auto front = must(Frontend::create(guest, disk.devid, {.persistent = true}));
  must(front->connect(soon()));
  EXPECT_EQ(front->features().sectors, (16u << 20) / 512);
  VerifiedDisk content(front->features().sectors);
  const auto report = must(content.run(*front, {.requests = 2000}, in(30s)));
  EXPECT_EQ(report.problems, std::vector<std::string>{});
  EXPECT_GT(report.sectors_checked, 0u);

  must(world().toolstack().request_detach(disk, false));
  must(front->close(soon()));
  must(world().toolstack().wait_backend(disk, XenbusStateClosed, soon()));
  EXPECT_EQ(run_script(disk, "remove").status, 0);
  // The script has waited for it: no process, no directory, no mapping.
  EXPECT_TRUE(instance_dirs().empty());
  EXPECT_EQ(must(world().grants_mapped()), 0u);
  must(world().toolstack().remove_nodes(disk));
  EXPECT_FALSE(world().store().read(disk.backend_path + "/state"));
  EXPECT_TRUE(std::filesystem::is_empty(world_dir() + "/shm"));
}

TEST_F(HotplugAttach, XentopOfOldIsAnsweredInQemusPlace) {
  Guest& guest = *must(world().create_guest());
  const Disk disk = add(guest, {.target = "raw:" + image("a.img")});
  auto front = must(Frontend::create(guest, disk.devid));
  must(front->connect(soon()));
  std::vector<std::byte> data(8 * 512);
  for (int i = 0; i < 3; ++i) must(front->read(0, data, soon()));
  for (int i = 0; i < 2; ++i) must(front->write(8, data, soon()));

  // As libxenstat goes about it.
  const std::string domid = std::to_string(guest.domid());
  const std::string qdisk = "/local/domain/0/backend/qdisk/" + domid;
  EXPECT_TRUE(world().store().read(qdisk));
  const std::string params = must(world().store().read(qdisk + "/51712/params"));
  auto qmp = must(control::QmpClient::connect(world_dir() + "/qmp-libxenstat-" + domid));
  const auto block = must(qmp.execute("query-block"));
  ASSERT_EQ(block.size(), 1u);
  EXPECT_EQ(block.at(0).member("inserted").member("file").string(),
            params.substr(params.find('/')));
  control::Json stats;
  wait_until("xentop's numbers are up to date", [&] {  // they are published now and then
    const auto all = must(qmp.execute("query-blockstats"));
    stats = all.at(0).member("stats");
    return all.size() == 1 && stats.member("rd_operations").number() == 3u &&
           stats.member("wr_operations").number() == 2u;
  });
  EXPECT_EQ(stats.member("rd_bytes").number(), 3 * data.size());
  EXPECT_EQ(stats.member("wr_bytes").number(), 2 * data.size());

  must(world().toolstack().request_detach(disk, false));
  must(front->close(soon()));
  remove(disk);
  EXPECT_FALSE(world().store().read(qdisk));
  EXPECT_FALSE(control::QmpClient::connect(world_dir() + "/qmp-libxenstat-" + domid));
}

TEST_F(HotplugAttach, HvmGuestsPlaceIsLeftToItsQemu) {
  Guest& guest = *must(world().create_guest());
  const std::string domid = std::to_string(guest.domid());
  must(world().store().write("/libxl/" + domid + "/type", "hvm"));
  const Disk disk = add(guest, {.target = "raw:" + image("a.img")});
  EXPECT_FALSE(world().store().read("/local/domain/0/backend/qdisk/" + domid));
  EXPECT_FALSE(std::filesystem::exists(world_dir() + "/qmp-libxenstat-" + domid));
  remove(disk);
}

class HotplugThreads : public HotplugTest {
 protected:
  unsigned threads() const override { return 3; }
};

TEST_F(HotplugThreads, QueuesOnSeveralThreadsServeOneImage) {
  Guest& guest = *must(world().create_guest());
  const Disk disk = add(guest, {.target = "raw:" + image("a.img")});
  auto front = must(Frontend::create(guest, disk.devid, {.queues = 4, .persistent = true}));
  must(front->connect(soon()));
  ASSERT_EQ(front->queue_count(), 4u);
  auto qmp = must(control::QmpClient::connect(instance_dirs().front() + "/qmp.sock"));
  EXPECT_EQ(must(qmp.execute("x-vbdkit-query")).member("threads").number(), 3u);
  VerifiedDisk content(front->features().sectors);
  EXPECT_EQ(must(content.run(*front, {.requests = 2000}, in(60s))).problems,
            std::vector<std::string>{});
  must(world().toolstack().request_detach(disk, false));
  must(front->close(soon()));
  remove(disk);
  EXPECT_TRUE(instance_dirs().empty());
  EXPECT_EQ(must(world().grants_mapped()), 0u);
}

class HotplugUser : public HotplugTest {
 protected:
  std::string user() const override { return "nobody"; }
};

// Neither the image, which is root's alone, nor the guest needs the instance's rights afterwards.
TEST_F(HotplugUser, InstancesRunAsAnOrdinaryUser) {
  if (::getuid() != 0) GTEST_SKIP() << "only root can become somebody else";
  const std::string path = image("a.img");
  ASSERT_EQ(::chmod(path.c_str(), 0600), 0);
  // What /dev/shm is to everybody.
  ASSERT_EQ(::chmod(world_dir().c_str(), 0711), 0);
  ASSERT_EQ(::chmod((world_dir() + "/shm").c_str(), 01777), 0);
  Guest& guest = *must(world().create_guest());
  const Disk disk = add(guest, {.target = "raw:" + path});
  ASSERT_EQ(instance_pids().size(), 1u);
  const std::string status = "/proc/" + std::to_string(instance_pids().front());
  struct stat owner;
  ASSERT_EQ(::stat(status.c_str(), &owner), 0);
  EXPECT_EQ(owner.st_uid, ::getpwnam("nobody")->pw_uid);

  VerifiedDisk content((16 << 20) / 512);
  for (int boot = 0; boot < 2; ++boot) {
    auto front = must(Frontend::create(guest, disk.devid, {.persistent = true}));
    if (boot > 0) must(front->set_state(XenbusStateInitialising));
    must(front->connect(soon()));
    EXPECT_EQ(must(content.run(*front, {.requests = 1000}, in(30s))).problems,
              std::vector<std::string>{});
    must(front->close(soon()));
  }
  auto qmp = must(control::QmpClient::connect(instance_dirs().front() + "/qmp.sock"));
  EXPECT_TRUE(qmp.execute("x-vbdkit-query").ok());
  EXPECT_FALSE(std::filesystem::is_empty(world_dir() + "/shm"));
  remove(disk);
  EXPECT_TRUE(std::filesystem::is_empty(world_dir() + "/shm"));
  EXPECT_TRUE(instance_dirs().empty());
  EXPECT_EQ(must(world().grants_mapped()), 0u);
}

TEST_F(HotplugAttach, PrintsHowLongItTakesToConnect) {
  Guest& guest = *must(world().create_guest());
  std::vector<double> milliseconds;
  for (int i = 0; i < 9; ++i) {
    const std::string target = "raw:" + image("a.img");
    const auto begin = std::chrono::steady_clock::now();
    const Disk disk = must(world().toolstack().attach(guest.domid(), {.target = target}));
    auto front = must(Frontend::create(guest, disk.devid));
    must(front->connect(soon()));
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
    milliseconds.push_back(took.count());
    must(world().toolstack().request_detach(disk, false));
    must(front->close(soon()));
    remove(disk);
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  std::printf("device node written to Connected: median %.1f ms, worst %.1f ms\n",
              milliseconds[milliseconds.size() / 2], milliseconds.back());
  RecordProperty("attach_ms", std::to_string(milliseconds[milliseconds.size() / 2]));
}

}  // namespace
}  // namespace vbdkit::sim
