// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Storage first, domain later: instances that a storage manager has activated, and the disks that
// join them.
#include <filesystem>
#include <optional>

#include "tests/sim/hotplug_fixture.h"

namespace vbdkit::sim {
namespace {

using namespace std::chrono_literals;

class HotplugActivate : public HotplugTest {
 protected:
  ScriptResult vbdkit(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), program("vbdkit"));
    arguments.insert(arguments.end(), {"--runtime-dir", runtime_dir()});
    const std::string log = world_dir() + "/vbdkit-" + std::to_string(++commands_) + ".log";
    auto process =
        must(Process::start(arguments, {.environment = world().environment(), .log_path = log}));
    const int status = must(process->wait(in(40s)));
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), process->log()};
  }
  // The UUID.
  std::string activate(const std::string& spec) {
    const auto result = vbdkit({"activate", spec, "--backend", program("vbdkit-backend")});
    EXPECT_EQ(result.status, 0) << result.output;
    return result.output.substr(0, result.output.find('\n'));
  }
  void deactivate(const std::string& instance) {
    const auto result = vbdkit({"deactivate", instance});
    EXPECT_EQ(result.status, 0) << result.output;
  }

  void use(Guest& guest, const Disk& disk) {
    auto front = must(Frontend::create(guest, disk.devid));
    must(front->connect(soon()));
    if (!content_) content_.emplace(front->features().sectors);
    EXPECT_TRUE(must(content_->check(*front, in(30s))).problems.empty());
    EXPECT_TRUE(must(content_->run(*front, {.requests = 100}, in(30s))).problems.empty());
    must(world().toolstack().request_detach(disk, false));
    must(front->close(soon()));
  }

 private:
  int commands_ = 0;
  std::optional<VerifiedDisk> content_;  // of the test's one image
};

TEST_F(HotplugActivate, DiskJoinsAnInstanceThatIsYoungerThanTheDaemon) {
  Guest& guest = *must(world().create_guest());
  const std::string path = image("a.img");
  activate("raw:" + path);
  ASSERT_EQ(instance_pids().size(), 1u);
  const pid_t pid = instance_pids().front();

  std::filesystem::create_symlink(path, world_dir() + "/other-name");
  for (int i = 0; i < 2; ++i) {
    const Disk disk = add(guest, {.target = "raw:" + path});
    EXPECT_EQ(instance_pids(), std::vector{pid});
    const auto listed = vbdkit({"list", std::to_string(guest.domid()) + ":xvda"});
    EXPECT_EQ(listed.status, 0) << listed.output;
    use(guest, disk);
    remove(disk);
    // It stays when the disk goes.
    EXPECT_EQ(instance_pids(), std::vector{pid});
  }
  deactivate(world_dir() + "/other-name");
  EXPECT_TRUE(instance_dirs().empty());
}

// libxl reuses the name at once: what is told of the old device must not be taken for the new one.
TEST_F(HotplugActivate, DiskThatComesBackAtOnceIsServedEachTime) {
  Guest& guest = *must(world().create_guest());
  const std::string path = image("a.img");
  activate("raw:" + path);
  const auto pids = instance_pids();
  for (int i = 0; i < 60 && !HasFailure(); ++i) {
    const Disk disk = add(guest, {.target = "raw:" + path});
    must(world().toolstack().request_detach(disk, false));
    must(world().toolstack().wait_backend(disk, XenbusStateClosed, soon()));
    must(world().toolstack().remove_nodes(disk));
  }
  EXPECT_EQ(instance_pids(), pids);
  deactivate(path);
}

TEST_F(HotplugActivate, DeactivatedInstanceEndsWithItsLastDisk) {
  Guest& guest = *must(world().create_guest());
  const std::string path = image("a.img");
  activate("raw:" + path);
  const Disk disk = add(guest, {.target = "raw:" + path});
  deactivate(path);
  EXPECT_EQ(instance_pids().size(), 1u);
  use(guest, disk);
  remove(disk);
  wait_until("ended", [&] { return instance_dirs().empty(); });
  // And the image is free for the next.
  const Disk again = add(guest, {.target = "raw:" + path});
  use(guest, again);
  remove(again);
  EXPECT_TRUE(instance_dirs().empty());
}

TEST_F(HotplugActivate, DaemonsInstanceIsKeptWhileItIsActivated) {
  Guest& guest = *must(world().create_guest());
  const std::string path = image("a.img");
  const Disk disk = add(guest, {.target = "raw:" + path});
  const auto pids = instance_pids();
  activate("raw:" + path);
  EXPECT_EQ(instance_pids(), pids);
  use(guest, disk);
  remove(disk);
  EXPECT_EQ(instance_pids(), pids);
  deactivate(path);
  wait_until("ended", [&] { return instance_dirs().empty(); });
}

TEST_F(HotplugActivate, ReadOnlyInstanceTakesNoWriter) {
  Guest& guest = *must(world().create_guest());
  const std::string path = image("a.img");
  const auto result =
      vbdkit({"activate", "raw:" + path, "--read-only", "--backend", program("vbdkit-backend")});
  ASSERT_EQ(result.status, 0) << result.output;
  ScriptResult script;
  const Disk disk = add(guest, {.target = "raw:" + path}, &script);
  EXPECT_EQ(script.status, 1);
  EXPECT_NE(node(disk, "hotplug-error").find("is in use read-only"), std::string::npos)
      << node(disk, "hotplug-error");
  remove(disk);
  deactivate(path);
  EXPECT_TRUE(instance_dirs().empty());
}

}  // namespace
}  // namespace vbdkit::sim
