// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A guest that verifies every byte writes to its disk while that is snapshotted and what lies
// beneath is merged, by the commands and with the files that an admin has.
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include "backend/control/qmp_client.h"
#include "tests/sim/verified_disk.h"
#include "tests/sim/world_test_base.h"

namespace vbdkit::sim {
namespace {

constexpr uint64_t kSectors = 32 * 2048;

class LiveChain : public WorldTest, public testing::WithParamInterface<const char*> {
 protected:
  std::string format() const { return GetParam(); }
  std::string path(const std::string& name) { return world().dir() + "/" + name + "." + format(); }
  std::string runtime_dir() { return world().dir() + "/run"; }
  std::string instance_dir() { return runtime_dir() + "/instances/disk"; }

  // vbdkit with these arguments; its exit status.
  int vbdkit(const std::vector<std::string>& arguments) {
    std::vector<std::string> argv = {build_dir() + "/../../vbdkit"};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    Process* const process = must(world().launch("vbdkit" + std::to_string(++commands_), argv));
    return must(process->wait(in(std::chrono::seconds(60))));
  }
  Process* start_backend(const Disk& disk) {
    std::filesystem::create_directories(runtime_dir() + "/instances");
    return must(world().launch(
        "backend",
        {build_dir() + "/../../vbdkit-backend", "--spec", format() + ":" + path("disk"), "--uuid",
         "disk", "--runtime-dir", instance_dir(), "--vbd", disk.backend_path}));
  }
  control::QmpClient qmp() {
    return must(control::QmpClient::connect(instance_dir() + "/qmp.sock"));
  }

  unsigned commands_ = 0;
};

TEST_P(LiveChain, AGuestWritesWhileItsChainGrowsAndShrinks) {
  ::setenv("VBDKIT_RUNTIME_DIR", runtime_dir().c_str(), 1);
  ASSERT_EQ(0, vbdkit({"create", "--size", std::to_string(kSectors * 512),
                       format() + ":" + path("disk")}));
  Guest& guest = *must(world().create_guest());
  const Disk disk = must(world().toolstack().attach(guest.domid(), {.target = path("disk")}));
  Process* const backend = start_backend(disk);
  auto front = must(Frontend::create(guest, disk.devid, {}));
  must(front->connect(soon()));
  VerifiedDisk model(front->features().sectors);

  std::atomic<bool> over{false};
  std::vector<std::string> failures;
  std::thread admin([&] {
    for (int i = 1; i <= 4; ++i) {
      const std::string name = path("snapshot" + std::to_string(i));
      if (vbdkit({"snapshot", format() + ":" + path("disk"), name}) != 0)
        failures.push_back("snapshot " + name);
      // The one before last now lies between two.
      if (i >= 2 &&
          vbdkit({"coalesce", format() + ":" + path("snapshot" + std::to_string(i))}) != 0)
        failures.push_back("coalesce " + std::to_string(i));
    }
    over = true;
  });
  unsigned rounds = 0;
  std::vector<std::string> problems;
  do {
    const auto report =
        must(model.run(*front, {.seed = ++rounds, .requests = 400, .discard_percent = 2},
                       in(std::chrono::minutes(1))));
    problems.insert(problems.end(), report.problems.begin(), report.problems.end());
  } while (!over && problems.empty());
  admin.join();
  EXPECT_EQ(std::vector<std::string>{}, problems);
  EXPECT_EQ(std::vector<std::string>{}, failures);
  EXPECT_TRUE(must(model.check(*front, in(std::chrono::minutes(1)))).problems.empty());
  must(front->close(soon()));
  must(qmp().execute("quit"));
  EXPECT_EQ(0, must(backend->wait(in(std::chrono::minutes(1)))));
  // Of the snapshots, the first is left: the others were merged into it.
  EXPECT_TRUE(std::filesystem::exists(path("snapshot1")));
  for (const char* gone : {"snapshot2", "snapshot3", "snapshot4"})
    EXPECT_FALSE(std::filesystem::exists(path(gone))) << gone;
  EXPECT_EQ(0, vbdkit({"check", format() + ":" + path("snapshot1")}));
  EXPECT_EQ(0, vbdkit({"check", format() + ":" + path("disk")}));
}

INSTANTIATE_TEST_SUITE_P(Formats, LiveChain, testing::Values("vhd", "qcow2"),
                         [](const auto& subject) { return std::string(subject.param); });

}  // namespace
}  // namespace vbdkit::sim
