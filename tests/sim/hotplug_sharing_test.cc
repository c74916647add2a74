// SPDX-License-Identifier: LGPL-2.1-or-later
//
// One instance per image: who may join it, who may not, and what it is told apart by.
#include "tests/sim/hotplug_fixture.h"

namespace vbdkit::sim {
namespace {

using namespace std::chrono_literals;

class HotplugSharing : public HotplugTest {
 protected:
  void expect_refused(Guest& guest, const DiskConfig& config, const std::string& part) {
    ScriptResult script;
    const Disk disk = add(guest, config, &script);
    EXPECT_EQ(script.status, 1);
    EXPECT_NE(node(disk, "hotplug-error").find(part), std::string::npos)
        << node(disk, "hotplug-error");
    remove(disk);
  }
};

TEST_F(HotplugSharing, TwoReadersShareOneInstance) {
  Guest& first = *must(world().create_guest());
  Guest& second = *must(world().create_guest());
  const std::string target = "raw:" + image("a.img");
  const Disk a = add(first, {.target = target, .writable = false});
  const Disk b = add(second, {.target = target, .writable = false});
  EXPECT_EQ(instance_pids().size(), 1u);
  auto front_a = must(Frontend::create(first, a.devid));
  auto front_b = must(Frontend::create(second, b.devid));
  must(front_a->connect(soon()));
  must(front_b->connect(soon()));
  VerifiedDisk content(front_a->features().sectors);
  EXPECT_TRUE(must(content.check(*front_a, in(30s))).problems.empty());
  EXPECT_TRUE(must(content.check(*front_b, in(30s))).problems.empty());

  must(world().toolstack().request_detach(a, false));
  must(front_a->close(soon()));
  remove(a);
  EXPECT_EQ(instance_pids().size(), 1u);
  EXPECT_TRUE(must(content.check(*front_b, in(30s))).problems.empty());
  must(world().toolstack().request_detach(b, false));
  must(front_b->close(soon()));
  remove(b);
  EXPECT_TRUE(instance_dirs().empty());
}

TEST_F(HotplugSharing, SecondWriterIsRefusedByName) {
  Guest& first = *must(world().create_guest());
  Guest& second = *must(world().create_guest());
  const std::string target = "raw:" + image("a.img");
  const Disk disk = add(first, {.target = target});
  expect_refused(second, {.target = target},
                 "is in use read-write by vbd/" + std::to_string(first.domid()) + "/51712");
  expect_refused(second, {.target = target, .writable = false}, "is in use read-write");
  EXPECT_EQ(instance_pids().size(), 1u);
  remove(disk);
}

TEST_F(HotplugSharing, WriterDoesNotJoinReaders) {
  Guest& first = *must(world().create_guest());
  Guest& second = *must(world().create_guest());
  const std::string target = "raw:" + image("a.img");
  const Disk disk = add(first, {.target = target, .writable = false});
  expect_refused(second, {.target = target}, "is in use read-only");
  remove(disk);
}

TEST_F(HotplugSharing, WritersShareWhereAllSaySo) {
  Guest& first = *must(world().create_guest());
  Guest& second = *must(world().create_guest());
  const std::string spec = "raw:" + image("a.img");
  const Disk a = add(first, {.target = "shared|" + spec});
  expect_refused(second, {.target = spec}, "must begin with shared|");
  const Disk b = add(second, {.target = "shared|" + spec});
  EXPECT_EQ(instance_pids().size(), 1u);

  auto front_a = must(Frontend::create(first, a.devid));
  auto front_b = must(Frontend::create(second, b.devid));
  must(front_a->connect(soon()));
  must(front_b->connect(soon()));
  // What one writes the other reads.
  VerifiedDisk content(front_a->features().sectors);
  EXPECT_TRUE(must(content.run(*front_a, {.requests = 200}, in(30s))).problems.empty());
  EXPECT_TRUE(must(content.check(*front_b, in(30s))).problems.empty());
  for (auto [disk, front] : {std::pair{&a, front_a.get()}, std::pair{&b, front_b.get()}}) {
    must(world().toolstack().request_detach(*disk, false));
    must(front->close(soon()));
    remove(*disk);
  }
  EXPECT_TRUE(instance_dirs().empty());
}

TEST_F(HotplugSharing, OneMachineMayHaveTheImageTwice) {
  // A guest and its stub domain; a guest and its incoming copy.
  Guest& guest = *must(world().create_guest());
  Guest& stub = *must(world().create_guest());
  must(world().store().write(guest.path() + "/vm", "/vm/4711"));
  must(world().store().write(stub.path() + "/target", std::to_string(guest.domid())));
  const std::string target = "raw:" + image("a.img");
  const Disk a = add(guest, {.target = target});
  const Disk b = add(stub, {.target = target});
  EXPECT_EQ(instance_pids().size(), 1u);
  remove(a);
  remove(b);
  EXPECT_TRUE(instance_dirs().empty());
}

TEST_F(HotplugSharing, ImageIsKnownUnderItsOtherNames) {
  Guest& first = *must(world().create_guest());
  Guest& second = *must(world().create_guest());
  const std::string path = image("a.img");
  std::filesystem::create_hard_link(path, world_dir() + "/hard.img");
  std::filesystem::create_symlink(path, world_dir() + "/soft.img");
  const Disk disk = add(first, {.target = "raw:" + path});
  expect_refused(second, {.target = "raw:" + world_dir() + "/hard.img"}, "is in use as");
  expect_refused(second, {.target = "raw:" + world_dir() + "/soft.img"}, "is in use as");
  remove(disk);
}

TEST_F(HotplugSharing, RamDisksAreNobodyElses) {
  Guest& guest = *must(world().create_guest());
  const Disk a = add(guest, {.vdev = "xvda", .target = "ram,size=1M"});
  const Disk b = add(guest, {.vdev = "xvdb", .target = "ram,size=1M"});
  EXPECT_EQ(instance_pids().size(), 2u);
  remove(a);
  remove(b);
}

TEST_F(HotplugSharing, ImageIsFreeForTheNextAsSoonAsItIsDetached) {
  // Without waiting for the script, as a quick toolstack might: the new disk waits for the old
  // instance, whose last flush it must see.
  Guest& guest = *must(world().create_guest());
  const std::string target = "raw:" + image("a.img");
  const Disk a = add(guest, {.target = target});
  must(world().toolstack().request_detach(a, false));
  must(world().toolstack().wait_backend(a, XenbusStateClosed, soon()));
  const Disk b =
      must(world().toolstack().attach(guest.domid(), {.vdev = "xvdb", .target = target}));
  must(world().toolstack().wait_backend(b, XenbusStateInitWait, soon()));
  EXPECT_EQ(run_script(b, "add").status, 0);
  must(world().toolstack().remove_nodes(a));
  remove(b);
  EXPECT_TRUE(instance_dirs().empty());
}

TEST_F(HotplugSharing, Vbd3DropsWhatLibxlPutsInFrontOfTargetAndSocket) {
  Guest& guest = *must(world().create_guest());
  const Disk disk = add(guest, {.backend = BackendType::kVbd3, .target = "raw:" + image("a.img")});
  EXPECT_EQ(node(disk, "params").substr(0, 8), "aio:raw:");
  EXPECT_EQ(node(disk, "physical-device-path"), instance_dirs().front() + "/nbd.sock");
  auto front = must(Frontend::create(guest, disk.devid));
  must(front->connect(soon()));
  VerifiedDisk content(front->features().sectors);
  EXPECT_TRUE(must(content.run(*front, {.requests = 100}, in(30s))).problems.empty());
  must(world().toolstack().request_detach(disk, false));
  must(front->close(soon()));
  remove(disk);
}

}  // namespace
}  // namespace vbdkit::sim
