// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/registry_config.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "backend/lease_page.h"

namespace vbdkit {
namespace {

namespace fs = std::filesystem;

class RegistryConfigTest : public testing::Test {
 protected:
  RegistryConfigTest() {
    std::string name = fs::temp_directory_path() / "vbdkit-registry-XXXXXX";
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
  }
  ~RegistryConfigTest() override { fs::remove_all(dir_); }

  std::string file(const std::string& name) const {
    std::ofstream(dir_ / name) << name;
    return dir_ / name;
  }

  fs::path dir_;
};

TEST_F(RegistryConfigTest, ReadsWhatItSays) {
  const auto config = RegistryConfig::parse(
      "# a comment\n\n endpoint = http://a:2379 # and one here\nendpoint=http://b:2379\n"
      "host = h1\r\nlease=7\nca = /etc/ca.pem\nshare = san1  /srv/san one\nprefix = /x/",
      "conf");
  ASSERT_TRUE(config) << config.error().message();
  EXPECT_EQ(config->endpoints, (std::vector<std::string>{"http://a:2379", "http://b:2379"}));
  EXPECT_EQ(config->host, "h1");
  EXPECT_EQ(config->lease.count(), 7);
  EXPECT_EQ(config->ca, "/etc/ca.pem");
  EXPECT_EQ(config->prefix, "/x/");
  ASSERT_EQ(config->shares.size(), 1u);
  EXPECT_EQ(config->shares[0].path, "/srv/san one");
}

TEST_F(RegistryConfigTest, SaysWhichLineIsWrong) {
  const std::pair<const char*, const char*> kBad[] = {
      {"host = h", "conf: no endpoint"},
      {"\nnonsense", "conf:2: a line is KEY = VALUE"},
      {"endpoint =", "conf:1: a line is KEY = VALUE"},
      {"speed = 7", "conf:1: 'speed' is none of"},
      {"lease = 1", "conf:1: lease is 2 to 3600"},
      {"lease = 7s", "conf:1: lease is 2 to 3600"},
      {"host = a/b", "conf:1: host is letters"},
      {"share = san1", "conf:1: share is NAME /PATH"},
      {"share = san1 relative", "conf:1: share is NAME /PATH"},
      {"share = a /x\nshare = a /y", "conf:2: share a is there twice"},
  };
  for (const auto& [text, expected] : kBad) {
    const auto config = RegistryConfig::parse(text, "conf");
    ASSERT_FALSE(config) << text;
    EXPECT_TRUE(config.error().message().starts_with(expected)) << config.error().message();
  }
}

TEST_F(RegistryConfigTest, NoFileIsNoRegistry) {
  const auto config = RegistryConfig::load(dir_ / "absent");
  ASSERT_TRUE(config);
  EXPECT_FALSE(config->has_value());
}

TEST_F(RegistryConfigTest, AnImageIsItsInodeOnAShareWhateverItIsCalled) {
  fs::create_directories(dir_ / "share/sub");
  fs::create_directories(dir_ / "share-not");
  RegistryConfig config;
  config.shares = {{"san", dir_ / "share"}};
  const std::string image = file("share/sub/a.img");
  fs::create_hard_link(image, dir_ / "share/b.img");
  fs::create_symlink(image, dir_ / "link");
  const auto name = config.image_at(image);
  ASSERT_TRUE(name && *name);
  EXPECT_TRUE((*name)->starts_with("san/i"));
  for (const fs::path& other : {dir_ / "share/b.img", dir_ / "link", dir_ / "share/sub/../b.img"}) {
    const auto same = config.image_at(other);
    ASSERT_TRUE(same) << other;
    EXPECT_EQ(*same, *name) << other;
  }
  const auto outside = config.image_at(file("share-not/c.img"));
  ASSERT_TRUE(outside);
  EXPECT_FALSE(outside->has_value());
  const auto absent = config.image_at(dir_ / "share/absent");
  ASSERT_FALSE(absent);
  EXPECT_EQ(absent.error().kind(), ErrorKind::kNotFound);
}

TEST_F(RegistryConfigTest, ALeasePageIsOfOneEpoch) {
  EXPECT_EQ(LeaseView::open(dir_).error().kind(), ErrorKind::kNotFound);
  auto page = LeasePage::create(dir_);
  ASSERT_TRUE(page) << page.error().message();
  const auto view = LeaseView::open(dir_);
  ASSERT_TRUE(view) << view.error().message();
  EXPECT_LT(view->hold_at(0), BootClock::now());
  const auto later = BootClock::now() + std::chrono::hours(1);
  page->publish(7, later);
  EXPECT_EQ(view->epoch(), 7u);
  EXPECT_EQ(view->hold_at(7), later);
  EXPECT_LT(view->hold_at(6), BootClock::now());
  page->publish(9, later);
  EXPECT_LT(view->hold_at(7), BootClock::now());
  // Whoever writes it next leaves it as it is.
  const auto again = LeasePage::create(dir_);
  ASSERT_TRUE(again);
  EXPECT_EQ(view->hold_at(9), later);
  page->close();
  EXPECT_LT(view->hold_at(9), BootClock::now());
}

TEST_F(RegistryConfigTest, FindsAnotherHostsFilesByTheirPlaceOnTheShare) {
  fs::create_directory(dir_ / "real");
  fs::create_directory_symlink(dir_ / "real", dir_ / "link");
  file("real/a.vhd");
  RegistryConfig config;
  config.shares = {{"san", dir_ / "link"}, {"vg0", "/dev/vg0"}};
  const std::vector<RegistryConfig::Share> there = {
      {"vg0", "/dev/vg0"}, {"san", "/srv/san/"}, {"san", "/mnt/7"}};
  const std::string here = dir_ / "link";
  EXPECT_EQ(config.path_here("/srv/san/x/../a.vhd", there), here + "/a.vhd");
  EXPECT_EQ(config.path_here("/mnt/7/a.vhd", there), here + "/a.vhd");
  EXPECT_EQ(config.path_here("/dev/vg0/lv3", there), "/dev/vg0/lv3");
  EXPECT_EQ(config.path_here("/srv/santa/a.vhd", there), std::nullopt);
  EXPECT_EQ(config.path_here("/srv/san", there), std::nullopt);
  EXPECT_EQ(config.path_there(here + "/a.vhd", there), "/srv/san/a.vhd");
  EXPECT_EQ(config.path_there(dir_ / "real/a.vhd", there), "/srv/san/a.vhd");
  EXPECT_EQ(config.path_there(dir_ / "a.vhd", there), std::nullopt);
  EXPECT_EQ(config.path_there(here + "/a.vhd", {{"other", "/srv"}}), std::nullopt);
}

}  // namespace
}  // namespace vbdkit
