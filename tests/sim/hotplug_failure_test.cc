// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What goes wrong around a disk under vbdkitd: images, instances, the daemon itself. In each case
// libxl gets its answers, the user a reason, and nothing is left.
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <thread>

#include "tests/sim/hotplug_fixture.h"

namespace vbdkit::sim {
namespace {

using namespace std::chrono_literals;
using testing::Test;

class HotplugFailure : public HotplugTest {
 protected:
  // A failed disk is removed as libxl does after a failed `xl create`.
  void expect_failure(const DiskConfig& config, const std::string& message) {
    Guest& guest = *must(world().create_guest());
    ScriptResult script;
    const Disk disk = add(guest, config, &script);
    EXPECT_EQ(script.status, 1);
    EXPECT_EQ(node(disk, "hotplug-error"), message);
    EXPECT_NE(script.output.find(message), std::string::npos) << script.output;
    EXPECT_EQ(node(disk, "vbdkit/error"), message);
    EXPECT_EQ(node(disk, "hotplug-status"), "error");
    remove(disk);
    EXPECT_TRUE(instance_dirs().empty());
  }
};

TEST_F(HotplugFailure, MissingImageIsNamed) {
  expect_failure({.target = "raw:/nonexistent/a.img"},
                 "raw: open /nonexistent/a.img: No such file or directory");
}

TEST_F(HotplugFailure, BareMissingPathIsNamed) {
  expect_failure({.target = "/nonexistent/a.img"},
                 "raw: open /nonexistent/a.img: No such file or directory");
}

TEST_F(HotplugFailure, EmptyTargetSaysWhatIsExpected) {
  expect_failure({.target = ""},
                 "the disk's target is empty (expected a node spec, e.g. target=raw:/srv/a.img)");
}

TEST_F(HotplugFailure, UnknownDriverListsTheKnown) {
  Guest& guest = *must(world().create_guest());
  ScriptResult script;
  const Disk disk = add(guest, {.target = "zfs:/srv/a"}, &script);
  EXPECT_EQ(script.status, 1);
  EXPECT_NE(node(disk, "hotplug-error").find("zfs"), std::string::npos);
  EXPECT_NE(node(disk, "hotplug-error").find("raw"), std::string::npos);
  remove(disk);
}

TEST_F(HotplugFailure, BrokenDiskIsAnsweredWithoutTheScript) {
  // A toolstack that gives up before it runs the script, then destroys the domain.
  Guest& guest = *must(world().create_guest());
  const Disk disk =
      must(world().toolstack().attach(guest.domid(), {.target = "raw:/nonexistent/a.img"}));
  must(world().toolstack().wait_backend(disk, XenbusStateInitWait, soon()));
  must(world().destroy_guest(guest, soon()));
  EXPECT_FALSE(world().store().read(disk.backend_path + "/state"));
}

// libxl gives up after 10 s: it gets its answer before, and the reason by way of the script.
TEST_F(HotplugFailure, AnImageThatTakesLongIsAnsweredBeforeItIsOpen) {
  // Who connects waits for a greeting.
  Fd server(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = world_dir() + "/mute.sock";
  ASSERT_LT(path.size(), sizeof address.sun_path);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  ASSERT_EQ(0, ::bind(server.get(), reinterpret_cast<sockaddr*>(&address), sizeof address));
  ASSERT_EQ(0, ::listen(server.get(), 1));
  Guest& guest = *must(world().create_guest());
  const Disk disk =
      must(world().toolstack().attach(guest.domid(), {.target = "nbd+unix:///?socket=" + path}));
  must(world().toolstack().wait_backend(disk, XenbusStateInitWait, soon()));
  EXPECT_EQ(node(disk, "vbdkit/error"), "");
  server.reset();
  const ScriptResult script = run_script(disk, "add");
  EXPECT_EQ(script.status, 1);
  EXPECT_NE(node(disk, "hotplug-error").find(path), std::string::npos)
      << node(disk, "hotplug-error");
  remove(disk);
  EXPECT_TRUE(instance_dirs().empty());
}

TEST_F(HotplugFailure, DiskOfAnotherScriptIsLeftAlone) {
  Guest& guest = *must(world().create_guest());
  const Disk other = must(world().toolstack().attach(
      guest.domid(), {.target = image("b.img"), .script = "/etc/xen/scripts/block"}));
  // By the time a later disk of ours is served, the daemon has seen the other.
  const Disk ours = add(guest, {.vdev = "xvdb", .target = "raw:" + image("a.img")});
  EXPECT_EQ(must(world().toolstack().backend_state(other)), XenbusStateInitialising);
  const auto answer = run_script(other, "add");
  EXPECT_EQ(answer.status, 1);
  EXPECT_NE(answer.output.find("no such device, or its script is not block-vbdkit"),
            std::string::npos);
  remove(ours);
}

TEST_F(HotplugFailure, ScriptSaysThatTheDaemonIsNotRunning) {
  Guest& guest = *must(world().create_guest());
  const Disk disk =
      must(world().toolstack().attach(guest.domid(), {.target = "raw:" + image("a.img")}));
  must(daemon().stop(soon()));
  const ScriptResult script = run_script(disk, "add");
  EXPECT_EQ(script.status, 1);
  EXPECT_NE(node(disk, "hotplug-error").find("vbdkitd is not running"), std::string::npos);
  EXPECT_NE(node(disk, "hotplug-error").find("systemctl start vbdkitd"), std::string::npos);
  // libxl ignores what remove says; it must not hang or fail for want of a daemon.
  EXPECT_EQ(run_script(disk, "remove").status, 0);
}

TEST_F(HotplugFailure, KilledInstanceLeavesAMessageAndTheDiskCanBeRemoved) {
  Guest& guest = *must(world().create_guest());
  const Disk disk = add(guest, {.target = "raw:" + image("a.img")});
  auto front = must(Frontend::create(guest, disk.devid));
  must(front->connect(soon()));
  const auto pids = instance_pids();
  ASSERT_EQ(pids.size(), 1u);
  ::kill(pids.front(), SIGKILL);
  wait_until("an error is recorded", [&] { return !node(disk, "vbdkit/error").empty(); });
  EXPECT_EQ(node(disk, "vbdkit/error"),
            "vbdkit-backend (pid " + std::to_string(pids.front()) + ") was killed by signal 9");
  // blkfront must never see Closing for it.
  EXPECT_EQ(must(world().toolstack().backend_state(disk)), XenbusStateConnected);
  EXPECT_TRUE(instance_dirs().empty());
  EXPECT_EQ(must(world().grants_mapped()), 0u);
  remove(disk);
  // The image is free for the next.
  const Disk again = add(guest, {.target = "raw:" + image("a.img")});
  remove(again);
}

TEST_F(HotplugFailure, DestroyedGuestLeavesNothing) {
  Guest& guest = *must(world().create_guest());
  const Disk disk = add(guest, {.target = "raw:" + image("a.img")});
  auto front = must(Frontend::create(guest, disk.devid, {.ring_order = 2, .persistent = true}));
  must(front->connect(soon()));
  VerifiedDisk content(front->features().sectors);
  EXPECT_TRUE(must(content.run(*front, {.requests = 300}, in(30s))).problems.empty());
  must(world().destroy_guest(guest, soon()));
  wait_until("the instance has ended", [&] { return instance_dirs().empty(); });
  EXPECT_EQ(must(world().grants_mapped()), 0u);
  must(world().wait_no_zombies(soon()));
}

TEST_F(HotplugFailure, DaemonRestartsWhileTheGuestWorks) {
  Guest& guest = *must(world().create_guest());
  const Disk disk = add(guest, {.target = "raw:" + image("a.img")});
  auto front = must(Frontend::create(guest, disk.devid));
  must(front->connect(soon()));
  VerifiedDisk content(front->features().sectors);
  const auto pids = instance_pids();

  // SIGKILL: the worst a daemon can do. The I/O goes on before, while and after it is away.
  EXPECT_TRUE(must(content.run(*front, {.seed = 1, .requests = 500}, in(30s))).problems.empty());
  daemon().signal(SIGKILL);
  must(daemon().wait(soon()));
  EXPECT_TRUE(must(content.run(*front, {.seed = 2, .requests = 500}, in(30s))).problems.empty());
  // What came while nobody watched is found by the next daemon.
  const Disk late = must(world().toolstack().attach(
      guest.domid(), {.vdev = "xvdb", .target = "raw:" + image("b.img")}));
  start_daemon();
  EXPECT_TRUE(must(content.run(*front, {.seed = 3, .requests = 500}, in(30s))).problems.empty());
  must(world().toolstack().wait_backend(late, XenbusStateInitWait, soon()));
  EXPECT_EQ(run_script(late, "add").status, 0);
  EXPECT_EQ(run_script(disk, "add").status, 0);  // it is known to be ready

  const auto after = instance_pids();
  ASSERT_EQ(after.size(), 2u);
  EXPECT_NE(std::find(after.begin(), after.end(), pids.front()), after.end());
  remove(late);
  must(world().toolstack().request_detach(disk, false));
  must(front->close(soon()));
  remove(disk);
  EXPECT_TRUE(instance_dirs().empty());
}

// Neither the disks of others nor its own, once it goes on.
TEST_F(HotplugFailure, AnInstanceThatHangsDoesNotStopANewDaemon) {
  Guest& guest = *must(world().create_guest());
  const Disk disk = add(guest, {.target = "raw:" + image("a.img")});
  const auto pids = instance_pids();
  ASSERT_EQ(pids.size(), 1u);
  ::kill(pids.front(), SIGSTOP);
  must(daemon().stop(soon()));
  start_daemon();
  const Disk other = add(guest, {.vdev = "xvdb", .target = "raw:" + image("b.img")});
  remove(other);
  ::kill(pids.front(), SIGCONT);
  EXPECT_EQ(run_script(disk, "add").status, 0);
  remove(disk);
  EXPECT_TRUE(instance_dirs().empty());
}

TEST_F(HotplugFailure, InstanceThatDiedWithoutADaemonIsCleanedUp) {
  Guest& guest = *must(world().create_guest());
  const Disk disk = add(guest, {.target = "raw:" + image("a.img")});
  auto front = must(Frontend::create(guest, disk.devid));
  must(front->connect(soon()));
  daemon().signal(SIGKILL);
  must(daemon().wait(soon()));
  const auto pids = instance_pids();
  ASSERT_EQ(pids.size(), 1u);
  ::kill(pids.front(), SIGKILL);
  wait_until("the instance is dead", [&] { return instance_pids().empty(); });
  EXPECT_EQ(instance_dirs().size(), 1u);
  start_daemon();
  EXPECT_TRUE(instance_dirs().empty());
  EXPECT_NE(node(disk, "vbdkit/error"), "");
  remove(disk);
}

TEST_F(HotplugFailure, DaemonEndsWhenAskedAndInstancesStay) {
  Guest& guest = *must(world().create_guest());
  const Disk disk = add(guest, {.target = "raw:" + image("a.img")});
  EXPECT_EQ(must(daemon().stop(soon())), 0);
  EXPECT_EQ(instance_pids().size(), 1u);
  start_daemon();
  remove(disk);
  EXPECT_TRUE(instance_dirs().empty());
}

TEST_F(HotplugFailure, RubbishOnTheDaemonsSocketHarmsNobody) {
  auto client = must(daemon_client());
  EXPECT_FALSE(client.execute("wait-ready", "{\"device\":\"vbd/1\"}"));
  EXPECT_FALSE(client.execute("wait-ready", "{\"device\":\"vbd/99999999/1\"}"));
  EXPECT_FALSE(client.execute("wait-ready", "{\"device\":\"../../x/1/2\"}"));
  EXPECT_FALSE(client.execute("quit"));
  Guest& guest = *must(world().create_guest());
  remove(add(guest, {.target = "raw:" + image("a.img")}));
}

}  // namespace
}  // namespace vbdkit::sim
