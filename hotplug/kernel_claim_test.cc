// SPDX-License-Identifier: LGPL-2.1-or-later
#include "hotplug/kernel_claim.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <optional>

namespace vbdkit::hotplug {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using Outcome = KernelClaim::Outcome;

// A directory laid out as sysfs does; the "kernel" is the test.
class KernelClaimTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/vbdkit-sysfs-XXXXXX";
    sysfs_ = ::mkdtemp(name);
    bus_ = sysfs_ + "/bus/xen-backend";
    reactor_ = std::move(*io::Reactor::create({}, log_));
  }
  void TearDown() override { fs::remove_all(sysfs_); }

  void load_driver() {
    fs::create_directories(bus_ + "/drivers/vbd");
    std::ofstream(bus_ + "/drivers/vbd/unbind");
  }
  void add_device(const std::string& id, const std::string& driver) {
    fs::create_directories(bus_ + "/devices/" + id);
    if (!driver.empty())
      fs::create_symlink("../../drivers/" + driver, bus_ + "/devices/" + id + "/driver");
  }
  std::string unbound() {
    std::string text;
    std::getline(std::ifstream(bus_ + "/drivers/vbd/unbind"), text);
    return text;
  }
  // Until the claim is decided; `meanwhile` runs in the loop before that.
  Result<Outcome> decide(const std::string& device, std::function<void()> meanwhile = {}) {
    std::optional<Result<Outcome>> outcome;
    const auto claim = KernelClaim::start(*reactor_, log_, *DeviceName::parse(device), sysfs_,
                                          [&](Result<Outcome> result) {
                                            outcome = std::move(result);
                                            reactor_->stop();
                                          });
    if (outcome) return *outcome;
    EXPECT_TRUE(meanwhile) << "was not decided at once";
    if (meanwhile) reactor_->post(meanwhile);
    EXPECT_TRUE(reactor_->run());
    return *outcome;
  }

  Logger log_{"test", LogLevel::kError};
  std::string sysfs_, bus_;
  std::unique_ptr<io::Reactor> reactor_;
};

TEST_F(KernelClaimTest, WithoutTheDriverTheDeviceIsFree) {
  const auto outcome = decide("vbd/1/51712");
  ASSERT_TRUE(outcome);
  EXPECT_EQ(*outcome, Outcome::kFree);
}

TEST_F(KernelClaimTest, OurDeviceAloneIsUnbound) {
  load_driver();
  add_device("vbd-1-51712", "vbd");
  add_device("vbd-1-51728", "vbd");
  const auto outcome = decide("vbd/1/51712");
  ASSERT_TRUE(outcome);
  EXPECT_EQ(*outcome, Outcome::kUnbound);
  EXPECT_EQ(unbound(), "vbd-1-51712");
}

TEST_F(KernelClaimTest, WaitsForALoadedDriverToTakeTheDevice) {
  load_driver();
  const auto outcome = decide("vbd/1/51712", [&] { add_device("vbd-1-51712", "vbd"); });
  ASSERT_TRUE(outcome);
  EXPECT_EQ(*outcome, Outcome::kUnbound);
  EXPECT_EQ(unbound(), "vbd-1-51712");
}

TEST_F(KernelClaimTest, AnotherDriversDeviceIsLeftAlone) {
  load_driver();
  add_device("vbd-1-51712", "other");
  const auto outcome = decide("vbd/1/51712");
  ASSERT_TRUE(outcome);
  EXPECT_EQ(*outcome, Outcome::kFree);
  EXPECT_EQ(unbound(), "");
}

TEST_F(KernelClaimTest, RefusedUnbindingIsAnError) {
  load_driver();
  fs::remove(bus_ + "/drivers/vbd/unbind");
  add_device("vbd-1-51712", "vbd");
  EXPECT_FALSE(decide("vbd/1/51712"));
}

TEST_F(KernelClaimTest, Vbd3WaitsForItsEntryOnly) {
  fs::create_directories(bus_ + "/devices");
  const auto outcome = decide("vbd3/1/51712", [&] { add_device("vbd3-1-51712", ""); });
  ASSERT_TRUE(outcome);
  EXPECT_EQ(*outcome, Outcome::kFree);
}

TEST_F(KernelClaimTest, Vbd3GoesOnWithoutIt) {
  fs::create_directories(bus_ + "/devices");
  const auto outcome = decide("vbd3/1/51712", [] {});
  ASSERT_TRUE(outcome);
  EXPECT_EQ(*outcome, Outcome::kFree);
}

}  // namespace
}  // namespace vbdkit::hotplug
