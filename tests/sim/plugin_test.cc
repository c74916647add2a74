// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Disks with backendtype=vbdkit under vbdkitd: libxl's part of adding and removing them, with the
// real plugin in the real program in which libxl runs it.
#include <chrono>

#include "tests/sim/hotplug_fixture.h"

namespace vbdkit::sim {
namespace {

using namespace std::chrono_literals;

class PluginDisk : public HotplugTest {
 protected:
  // What the plugin has answered to a call.
  std::string call(const std::vector<std::string>& arguments) {
    Process::Environment environment = world().environment();
    environment["VBDKIT_RUNTIME_DIR"] = runtime_dir();
    std::vector<std::string> argv = {program("libxl-plugin/libxl-disk-plugin"),
                                     program("libxl-plugin/.libs/vbdkit.so")};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    const std::string log = world_dir() + "/plugin-" + std::to_string(++calls_) + ".log";
    auto process = must(Process::start(argv, {.environment = environment, .log_path = log}));
    EXPECT_EQ(must(process->wait(in(40s))), 0);
    return process->log();
  }
  std::string call(const std::string& what, const Disk& disk) {
    return call({what, "domid=" + std::to_string(disk.domid), "backend_path=" + disk.backend_path,
                 "vdev=xvda", "writable=1"});
  }
  void run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), program("vbdkit"));
    const std::string log = world_dir() + "/vbdkit-" + std::to_string(++calls_) + ".log";
    auto process =
        must(Process::start(arguments, {.environment = world().environment(), .log_path = log}));
    EXPECT_EQ(must(process->wait(in(40s))), 0) << process->log();
  }
  // As libxl does, with the guest's help.
  void take_away(const Disk& disk, Frontend& front) {
    must(world().toolstack().request_detach(disk, false));
    must(front.close(soon()));
    must(world().toolstack().wait_backend(disk, XenbusStateClosed, soon()));
    EXPECT_EQ(call("stop", disk), "ok \n");
    EXPECT_TRUE(instance_dirs().empty());
    must(world().toolstack().remove_nodes(disk));
  }

 private:
  int calls_ = 0;
};

TEST_F(PluginDisk, IsValidatedStartedAndStopped) {
  Guest& guest = *must(world().create_guest());
  const std::string path = image("a.img");
  EXPECT_EQ(call({"validate", "format=raw", "writable=1", "target=" + path}), "ok \n");

  const Disk disk = must(
      world().toolstack().attach(guest.domid(), {.backend = BackendType::kPlugin, .target = path}));
  must(world().toolstack().wait_backend(disk, XenbusStateInitWait, soon()));
  EXPECT_EQ(call("start", disk),
            "ok nbd+unix:///?socket=" + instance_dirs().front() + "/nbd.sock\n");

  auto front = must(Frontend::create(guest, disk.devid, {.persistent = true}));
  must(front->connect(soon()));
  VerifiedDisk content(front->features().sectors);
  const auto report = must(content.run(*front, {.requests = 500}, in(30s)));
  EXPECT_EQ(report.problems, std::vector<std::string>{});
  EXPECT_GT(report.sectors_checked, 0u);

  take_away(disk, *front);
}

// What its user asks of a disk just before libxl takes it away: space is given back, it grows, its
// new end is written and flushed.
TEST_F(PluginDisk, IsStoppedAfterItWasDiscardedAndGrew) {
  for (const std::string format : {"raw", "qcow2"}) {
    const std::string path = world_dir() + "/grown." + format;
    run({"create", "--size", "16M", format + ":" + path});
    Guest& guest = *must(world().create_guest());
    const Disk disk = must(world().toolstack().attach(
        guest.domid(), {.backend = BackendType::kPlugin, .target = path, .format = format}));
    EXPECT_TRUE(call("start", disk).starts_with("ok "));
    auto front = must(Frontend::create(guest, disk.devid, {.queues = 2, .persistent = true}));
    must(front->connect(soon()));
    const std::vector<std::byte> data(4096, std::byte{0x77});
    EXPECT_EQ(BLKIF_RSP_OKAY, must(front->write(0, data, soon())));
    EXPECT_EQ(BLKIF_RSP_OKAY, must(front->discard(0, front->features().sectors, soon())));
    run({"grow", std::to_string(guest.domid()) + ":xvda", "20M", "--runtime-dir", runtime_dir()});
    front->refresh_features();
    ASSERT_EQ(front->features().sectors, 20u << 11);
    EXPECT_EQ(BLKIF_RSP_OKAY, must(front->flush(soon(), (20u << 11) - 8, data)));

    take_away(disk, *front);
  }
}

TEST_F(PluginDisk, FormatMakesTheSpec) {
  Guest& guest = *must(world().create_guest());
  // An image of another format than it is said to be: the daemon has tried to open it as that.
  const Disk disk = must(world().toolstack().attach(
      guest.domid(),
      {.backend = BackendType::kPlugin, .target = image("a.img"), .format = "qcow2"}));
  must(world().toolstack().wait_backend(disk, XenbusStateInitWait, soon()));
  const std::string told = call("start", disk);
  EXPECT_TRUE(told.starts_with("error qcow2: ")) << told;
  must(world().toolstack().request_detach(disk, false));
  must(world().toolstack().wait_backend(disk, XenbusStateClosed, soon()));
  must(world().toolstack().remove_nodes(disk));
}

TEST_F(PluginDisk, OfAnotherPluginIsLeftAlone) {
  Guest& guest = *must(world().create_guest());
  const Disk disk = must(world().toolstack().attach(
      guest.domid(),
      {.backend = BackendType::kPlugin, .target = image("a.img"), .plugin = "other"}));
  // One of ours beside it: when that is served, the daemon has seen the other.
  const Disk ours = must(world().toolstack().attach(
      guest.domid(), {.backend = BackendType::kPlugin, .vdev = "xvdb", .target = image("b.img")}));
  must(world().toolstack().wait_backend(ours, XenbusStateInitWait, soon()));
  EXPECT_EQ(node(disk, "state"), "1");
  EXPECT_EQ(call("start", ours).substr(0, 3), "ok ");
  must(world().toolstack().remove_nodes(disk));
  must(world().toolstack().request_detach(ours, false));
  must(world().toolstack().wait_backend(ours, XenbusStateClosed, soon()));
  must(world().toolstack().remove_nodes(ours));
}

}  // namespace
}  // namespace vbdkit::sim
