// SPDX-License-Identifier: LGPL-2.1-or-later
#include "hotplug/sharing.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "hotplug/identity.h"

namespace vbdkit::hotplug {
namespace {

constexpr const char* kSpec = "raw:/srv/a.img";

ImageUser reader() { return {"vbd/1/51712", false, false, ""}; }
ImageUser writer() { return {"vbd/2/51712", true, false, ""}; }

bool joins(const ImageUser& newcomer, std::vector<ImageUser> users, bool read_only = false) {
  return may_join({.spec = kSpec, .read_only = read_only}, users, kSpec, newcomer).ok();
}

TEST(Sharing, ReadersShare) {
  EXPECT_TRUE(joins(reader(), {reader(), reader()}));
  EXPECT_TRUE(joins(reader(), {reader()}, true));
}

TEST(Sharing, WritersAreAlone) {
  EXPECT_FALSE(joins(writer(), {writer()}));
  EXPECT_FALSE(joins(writer(), {reader()}));
  EXPECT_FALSE(joins(reader(), {writer()}));
  EXPECT_FALSE(joins(reader(), {reader(), writer()}));
}

TEST(Sharing, AgreementTakesEveryone) {
  ImageUser agreed = writer();
  agreed.shared = true;
  EXPECT_TRUE(joins(agreed, {agreed, agreed}));
  EXPECT_FALSE(joins(agreed, {agreed, writer()}));
  EXPECT_FALSE(joins(writer(), {agreed}));
}

TEST(Sharing, OneMachineMayTwice) {
  ImageUser user = writer();
  user.machine = "/vm/1";
  ImageUser other = writer();
  other.machine = "/vm/2";
  EXPECT_TRUE(joins(user, {user}));
  EXPECT_FALSE(joins(user, {user, other}));
  // Not to know a machine is not to have the same.
  EXPECT_FALSE(joins(writer(), {writer()}));
}

TEST(Sharing, WriterNeedsAWritableImage) {
  ImageUser user = writer();
  user.machine = "/vm/1";
  EXPECT_FALSE(joins(user, {user}, true));
}

TEST(Sharing, ErrorSaysWhoIsInTheWay) {
  const auto refused = may_join({kSpec, false}, std::vector{writer()}, kSpec, reader());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind(), ErrorKind::kBusy);
  EXPECT_NE(refused.error().message().find("read-write by vbd/2/51712"), std::string::npos);
}

TEST(Sharing, AnotherSpecOfTheImageIsRefused) {
  const auto refused =
      may_join({kSpec, false}, std::vector{reader()}, "throttle:iops=1|raw:/srv/a.img", reader());
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message().find(kSpec), std::string::npos);
}

TEST(Identity, FollowsTheFileNotItsName) {
  char name[] = "/tmp/vbdkit-identity-XXXXXX";
  const std::string dir = ::mkdtemp(name);
  std::ofstream(dir + "/a") << "a";
  std::ofstream(dir + "/b") << "b";
  std::filesystem::create_hard_link(dir + "/a", dir + "/hard");
  std::filesystem::create_symlink("a", dir + "/soft");
  const auto of = [&](const std::string& path) {
    return image_identity(*drivers::parse_graph("raw:" + path));
  };
  EXPECT_EQ(of(dir + "/a"), of(dir + "/hard"));
  EXPECT_EQ(of(dir + "/a"), of(dir + "/soft"));
  EXPECT_EQ(of(dir + "/a"), of(dir + "/./a"));
  EXPECT_NE(of(dir + "/a"), of(dir + "/b"));
  // A filter in front is still the same image.
  EXPECT_EQ(image_identity(*drivers::parse_graph("throttle:iops=1|raw:" + dir + "/a")),
            of(dir + "/a"));
  // Replaced: another image under the same name.
  const std::string before = of(dir + "/b");
  std::filesystem::rename(dir + "/a", dir + "/b");
  EXPECT_NE(of(dir + "/b"), before);
  EXPECT_EQ(of(dir + "/missing"), "name:raw:" + dir + "/missing");
  std::filesystem::remove_all(dir);
}

TEST(Identity, RamHasNone) { EXPECT_EQ(image_identity(*drivers::parse_graph("ram,size=1M")), ""); }

}  // namespace
}  // namespace vbdkit::hotplug
