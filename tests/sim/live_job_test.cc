// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A guest that verifies every byte goes on while its disk moves to another image, grows, and is
// held for a while.
#include <atomic>
#include <filesystem>
#include <functional>
#include <thread>

#include "backend/control/qmp_client.h"
#include "drivers/image_format.h"
#include "tests/sim/blkif_test_base.h"
#include "tests/sim/verified_disk.h"

namespace vbdkit::sim {
namespace {

using namespace std::chrono_literals;

class LiveJob : public BlkifTest {
 protected:
  control::QmpClient qmp() {
    return must(control::QmpClient::connect(dir() + "/run-backend/qmp.sock"));
  }
  static std::string event(control::QmpClient& client, const std::string& wanted) {
    for (;;) {
      const control::Json next = must(client.event(60s));
      const auto name = next.member("event").string();
      if (name == "BLOCK_JOB_ERROR") return next.dump();
      if (name == wanted) return next.member("data").member("error").string().value_or("");
    }
  }

  // The guest works while `admin` does, and for a while before and after.
  void work_while(Frontend& front, VerifiedDisk& model, const std::function<void()>& admin) {
    expect_clean(must(model.run(front, {.seed = 1, .requests = 500}, in(60s))));
    std::atomic<bool> over{false};
    std::thread thread([&] {
      admin();
      over = true;
    });
    uint64_t seed = 1;
    do
      expect_clean(
          must(model.run(front, {.seed = ++seed, .requests = 500, .discard_percent = 2}, in(60s))));
    while (!over);
    thread.join();
    expect_clean(must(model.run(front, {.seed = ++seed, .requests = 500}, in(60s))));
    expect_clean(must(model.check(front, in(60s))));
  }
};

TEST_F(LiveJob, AGuestWritesWhileItsDiskMovesThereAndBack) {
  make_image();
  for (const char* format : {"qcow2", "vhd"}) {
    const auto made = drivers::find_image_format(format)->create(
        {.path = dir() + "/disk." + format, .size = Bytes{kImageSize}});
    ASSERT_TRUE(made) << made.error().message();
  }
  start(image());
  auto front = connect();
  VerifiedDisk model(front->features().sectors);
  work_while(*front, model, [&] {
    auto client = qmp();
    for (const std::string format : {"qcow2", "vhd"}) {
      const auto started = client.execute(
          "x-vbdkit-migrate", R"({"target":")" + format + ":" + dir() + "/disk." + format + "\"}");
      if (!started) {
        ADD_FAILURE() << started.error().message();
        return;
      }
      EXPECT_EQ("", event(client, "BLOCK_JOB_COMPLETED"));
    }
  });
  must(front->close(soon()));
  must(qmp().execute("quit"));
  must(backend().wait(soon()));
  // What has been left is as it was left; what was moved to is sound.
  for (const char* format : {"qcow2", "vhd"}) {
    const auto outcome =
        drivers::find_image_format(format)->check(dir() + "/disk." + format, false);
    ASSERT_TRUE(outcome) << outcome.error().message();
    EXPECT_EQ(0u, outcome->errors) << format;
  }
}

TEST_F(LiveJob, AGuestSeesItsDiskGrow) {
  make_image();
  start(image());
  auto front = connect();
  EXPECT_EQ(kImageSectors, front->features().sectors);
  VerifiedDisk model(front->features().sectors);
  auto client = qmp();
  work_while(*front, model, [&] {
    const auto resized = client.execute(
        "block_resize", R"({"device":"disk","size":)" + std::to_string(2 * kImageSize) + "}");
    EXPECT_TRUE(resized) << resized.error().message();
  });
  // Frontends look at the node again, as Connected is written anew.
  EXPECT_EQ(std::to_string(2 * kImageSectors), backend_node("sectors"));
  EXPECT_EQ(std::to_string(XenbusStateConnected), backend_node("state"));
  const std::vector<std::byte> data(4096, std::byte{0x77});
  EXPECT_EQ(BLKIF_RSP_OKAY, must(front->write(2 * kImageSectors - 8, data, soon())));
  std::vector<std::byte> back(data.size());
  EXPECT_EQ(BLKIF_RSP_OKAY, must(front->read(2 * kImageSectors - 8, back, soon())));
  EXPECT_EQ(data, back);
  EXPECT_EQ(2 * kImageSize, std::filesystem::file_size(image_path()));
}

TEST_F(LiveJob, AGuestWaitsOutAPauseThatNobodyEnds) {
  make_image();
  start(image());
  auto front = connect();
  VerifiedDisk model(front->features().sectors);
  work_while(*front, model, [&] {
    auto client = qmp();
    EXPECT_TRUE(client.execute("x-vbdkit-pause", R"({"timeout-ms":100})"));
    EXPECT_EQ("", event(client, "X_VBDKIT_RESUMED"));
  });
}

}  // namespace
}  // namespace vbdkit::sim
