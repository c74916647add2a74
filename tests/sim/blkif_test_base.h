// SPDX-License-Identifier: LGPL-2.1-or-later
//
// BlkifTest: a World with a real vbdkit-backend process serving one disk to guests.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "tests/sim/verified_disk.h"
#include "tests/sim/world_test_base.h"

namespace vbdkit::sim {

inline std::string vbdkit_backend() {
  const char* other = std::getenv("VBDKIT_BACKEND");
  return other != nullptr ? other : build_dir() + "/../../vbdkit-backend";
}

class BlkifTest : public WorldTest {
 protected:
  static constexpr uint64_t kImageSize = 16 << 20;
  static constexpr uint64_t kImageSectors = kImageSize / 512;

  std::string image() const { return "raw:" + image_path(); }
  std::string image_path() const { return dir() + "/disk.img"; }
  void make_image(uint64_t size = kImageSize) {
    const Fd fd = must(Fd::open(image_path(), O_RDWR | O_CREAT, 0600));
    ASSERT_EQ(::ftruncate(fd.get(), static_cast<off_t>(size)), 0);
  }
  const std::string& dir() const { return const_cast<BlkifTest*>(this)->world().dir(); }

  // A guest with one disk, and the backend that serves it.
  void start(const std::string& spec, const DiskConfig& config = {},
             const std::vector<std::string>& options = {}) {
    guest_ = must(world().create_guest());
    disk_ = must(world().toolstack().attach(guest_->domid(), config));
    backend_ = launch_backend("backend", spec, {disk_.backend_path}, options);
  }
  Process* launch_backend(const std::string& name, const std::string& spec,
                          const std::vector<std::string>& vbds,
                          const std::vector<std::string>& options = {}) {
    std::vector<std::string> argv{vbdkit_backend(),
                                  "--spec",
                                  spec,
                                  "--no-nbd",
                                  "--log-level",
                                  "debug",
                                  "--runtime-dir",
                                  dir() + "/run-" + name,
                                  "--xentop-dir",
                                  dir()};
    for (const std::string& vbd : vbds) argv.insert(argv.end(), {"--vbd", vbd});
    argv.insert(argv.end(), options.begin(), options.end());
    return must(world().launch(name, argv));
  }
  std::unique_ptr<Frontend> connect(const FrontendOptions& options = {}) {
    auto front = must(Frontend::create(guest(), disk_.devid, options));
    must(front->connect(soon()));
    return front;
  }

  // The backend holds nothing of any guest any more, but may still run.
  void expect_nothing_held() {
    const auto released = world().wait_no_grants(soon());
    EXPECT_TRUE(released.ok()) << released.error().message();
    const auto use = world().use_of(backend().pid());
    if (!use) return;
    EXPECT_EQ(use->grants, 0u);
    EXPECT_EQ(use->ports, 0u);
  }
  // Still alive and doing its work: writes and reads through a frontend.
  void expect_serves(Frontend& front) {
    const std::vector<std::byte> data(8192, std::byte{0x5a});
    EXPECT_EQ(must(front.write(64, data, soon())), BLKIF_RSP_OKAY);
    std::vector<std::byte> back(data.size());
    EXPECT_EQ(must(front.read(64, back, soon())), BLKIF_RSP_OKAY);
    EXPECT_EQ(back, data);
  }
  std::string backend_node(const std::string& name) {
    return world().store().read_or(disk_.backend_path + "/" + name);
  }

  Guest& guest() { return *guest_; }
  const Disk& disk() const { return disk_; }
  Process& backend() { return *backend_; }

 private:
  Guest* guest_ = nullptr;
  Disk disk_;
  Process* backend_ = nullptr;
};

// Keeps a queue's ring full of reads until it is told to stop; expects no answer for ever.
class BackgroundLoad {
 public:
  explicit BackgroundLoad(Frontend& front) : queue_(front.queue()) {
    const Pages pages = must(front.guest().alloc_pages(kPages));
    for (uint32_t i = 0; i < kPages; ++i)
      segments_.push_back({must(front.guest().grant_page(pages.first + i, true)), 0, 7});
    thread_ = std::thread([this] { run(); });
  }
  ~BackgroundLoad() {
    stop_ = true;
    thread_.join();
  }
  uint64_t completed() const { return completed_; }

 private:
  static constexpr uint32_t kPages = 32;

  void run() {
    for (uint64_t i = 0; !stop_; ++i) {
      while (queue_.free_slots() > 0)
        queue_.submit(BLKIF_OP_READ, i % 64 * 8, &segments_[i % kPages], 1, i);
      queue_.push();
      const size_t reaped = queue_.reap([](const Completion&) {});
      completed_ += reaped;
      if (reaped == 0) queue_.wait(in(std::chrono::milliseconds(20)));
    }
  }

  RingQueue& queue_;
  std::vector<Segment> segments_;
  std::atomic<bool> stop_ = false;
  std::atomic<uint64_t> completed_ = 0;
  std::thread thread_;
};

inline void expect_clean(const WorkloadReport& report) {
  for (const std::string& problem : report.problems) ADD_FAILURE() << problem;
}

}  // namespace vbdkit::sim
