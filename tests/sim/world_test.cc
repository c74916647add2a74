// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The World's parts together: xenstored's own rules for guests, the end of a domain, a toolstack's
// nodes.
#include <csignal>

#include "tests/sim/world_test_base.h"

namespace vbdkit::sim {
namespace {

using WorldsTest = WorldTest;

TEST_F(WorldsTest, GuestReachesTheStoreThroughItsRing) {
  Guest& guest = *must(world().create_guest());
  EXPECT_EQ(must(guest.store().read("domid")), std::to_string(guest.domid()));
  must(guest.store().write("data/note", "hello"));
  EXPECT_EQ(must(world().store().read(guest.path() + "/data/note")), "hello");
  EXPECT_EQ(must(guest.store().list("data")), std::vector<std::string>{"note"});
  must(guest.store().remove("data/note"));
  auto gone = guest.store().read("data/note");
  ASSERT_FALSE(gone.ok());
  EXPECT_EQ(gone.error().kind(), ErrorKind::kNotFound);
}

TEST_F(WorldsTest, ValuesLongerThanTheRingGoThrough) {
  Guest& guest = *must(world().create_guest());
  const std::string value(2000, 'x');
  must(guest.store().write("data/long", value));
  EXPECT_EQ(must(guest.store().read("data/long")), value);
}

TEST_F(WorldsTest, GuestMayNotWriteWhatIsNotItsOwn) {
  Guest& guest = *must(world().create_guest());
  Guest& other = *must(world().create_guest());
  for (const std::string& path : {std::string("/local/domain/0/backend/vbd/1/51712/state"),
                                  other.path() + "/data/x", guest.path() + "/name"}) {
    auto written = guest.store().write(path, "4");
    ASSERT_FALSE(written.ok()) << path;
    EXPECT_EQ(written.error().sys_errno(), EACCES) << path;
  }
}

TEST_F(WorldsTest, GuestSeesWatchesAndTransactions) {
  Guest& guest = *must(world().create_guest());
  must(guest.store().watch("data", "token"));
  EXPECT_EQ(must(guest.store().next_event(soon())).token, "token") << "a new watch fires once";
  must(world().store().write(guest.path() + "/data/a", "1"));
  EXPECT_EQ(must(guest.store().next_event(soon())).path, "data/a");
  const auto t = must(guest.store().begin());
  EXPECT_EQ(must(guest.store().read("data/a", t)), "1");
  must(world().store().write(guest.path() + "/data/a", "2"));
  must(guest.store().write("data/a", "3", t));
  EXPECT_FALSE(must(guest.store().commit(t))) << "somebody else's change went first";
}

TEST_F(WorldsTest, DomainsEndIsToldToTheStore) {
  Guest& guest = *must(world().create_guest());
  must(world().store().watch("@releaseDomain", "end"));
  EXPECT_EQ(must(world().store().next_event(soon())).token, "end");
  must(world().kill_guest(guest));
  EXPECT_EQ(must(world().store().next_event(soon())).path, "@releaseDomain");
  must(world().wait_no_zombies(soon()));
  EXPECT_EQ(must(world().ports_open(guest.domid())), 0u);
}

TEST_F(WorldsTest, ShutdownIsToldAndTheDomainStays) {
  Guest& guest = *must(world().create_guest());
  must(world().store().watch("@releaseDomain", "end"));
  EXPECT_EQ(must(world().store().next_event(soon())).token, "end");
  must(world().shut_down(guest, SHUTDOWN_poweroff));
  EXPECT_EQ(must(world().store().next_event(soon())).path, "@releaseDomain");
  EXPECT_EQ(must(guest.store().read("domid")), std::to_string(guest.domid()));
}

TEST_F(WorldsTest, ToolstackWritesWhatLibxlWrites) {
  Guest& guest = *must(world().create_guest());
  const Disk disk = must(
      world().toolstack().attach(guest.domid(), {.target = "raw:/srv/a.img", .writable = false}));
  EXPECT_EQ(disk.devid, 51712);
  EXPECT_EQ(disk.backend_path,
            "/local/domain/0/backend/vbd/" + std::to_string(guest.domid()) + "/51712");
  const auto backend = [&](const char* node) {
    return must(guest.store().read(disk.backend_path + "/" + node));
  };
  EXPECT_EQ(backend("params"), "raw:/srv/a.img");
  EXPECT_EQ(backend("mode"), "r");
  EXPECT_EQ(backend("state"), "1");
  EXPECT_EQ(backend("online"), "1");
  EXPECT_EQ(backend("frontend"), disk.frontend_path);
  EXPECT_EQ(must(guest.store().read("device/vbd/51712/backend")), disk.backend_path);
  const Disk tap = must(world().toolstack().attach(
      guest.domid(), {.backend = BackendType::kVbd3, .vdev = "xvdb", .target = "raw:/srv/b.img"}));
  EXPECT_EQ(must(guest.store().read(tap.backend_path + "/params")), "aio:raw:/srv/b.img");
  must(world().toolstack().remove_nodes(disk));
  must(world().toolstack().remove_nodes(tap));
  EXPECT_FALSE(world().store().list("/local/domain/0/backend").ok()) << "empty parents go, too";
}

TEST_F(WorldsTest, ForcedDetachSucceedsThoughNobodyAnswers) {
  Guest& guest = *must(world().create_guest());
  const Disk disk = must(world().toolstack().attach(guest.domid(), {.target = "raw:/srv/a.img"}));
  auto polite = world().toolstack().detach(disk, in(std::chrono::milliseconds(20)));
  ASSERT_FALSE(polite.ok());
  EXPECT_EQ(polite.error().kind(), ErrorKind::kTimedOut);
  EXPECT_EQ(must(world().store().read(disk.backend_path + "/state")), "5");
  must(world().toolstack().detach_force(disk, in(std::chrono::milliseconds(20))));
  EXPECT_FALSE(world().store().read(disk.backend_path + "/state").ok());
}

TEST_F(WorldsTest, ProgramsFindTheWorldByTheirEnvironment) {
  must(world().store().write("/tool/x", "seen"));
  Process& reader = *must(world().launch("reader", {"xenstore-read", "/tool/x"}));
  EXPECT_EQ(must(reader.wait(soon())), 0);
  EXPECT_EQ(reader.log(), "seen\n");
}

class SmallQuota : public WorldTest {
  World::Options options() const override { return {.xenstored_args = {"--entry-nb", "20"}}; }
};

TEST_F(SmallQuota, IsXenstoredsOwn) {
  Guest& guest = *must(world().create_guest());
  Result<void> written;
  for (int i = 0; i < 40 && written.ok(); ++i)
    written = guest.store().write("data/" + std::to_string(i), "");
  ASSERT_FALSE(written.ok());
  EXPECT_EQ(written.error().sys_errno(), ENOSPC);
}

TEST(Vdev, NumbersAsXenDoes) {
  EXPECT_EQ(devid_of("xvda"), 51712);
  EXPECT_EQ(devid_of("xvdb1"), 51729);
  EXPECT_EQ(devid_of("xvdq"), 268439552);
  EXPECT_EQ(devid_of("hda"), 768);
  EXPECT_EQ(devid_of("hdd"), 5696);
  EXPECT_EQ(devid_of("sda2"), 2050);
  EXPECT_EQ(devid_of("vda"), -1);
}

}  // namespace
}  // namespace vbdkit::sim
