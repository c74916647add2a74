// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The subjects of the conformance suite that this folder has: each driver, and filters over them.
#include <stdlib.h>
#include <unistd.h>

#include <optional>

#include "drivers/capricious_reactor.h"
#include "drivers/conformance.h"
#include "drivers/loop_device.h"

namespace vbdkit::drivers {
namespace {

Subject raw_with(std::string name, const std::string& options, std::string directory = {}) {
  return {.name = std::move(name),
          .create = storage_by_spec(
              [options](const std::string& path, uint64_t) { return "raw" + options + ":" + path; },
              std::move(directory))};
}

Subject memory(std::string name, const std::string& driver) {
  return {.name = std::move(name),
          .create = storage_by_spec([driver](const std::string&, uint64_t size) {
            return driver + ",size=" + std::to_string(size);
          }),
          .keeps_data = driver != "null",
          .persistent = false};
}

Subject on_capricious(Subject subject, CapriciousReactor::Mood mood) {
  subject.reactor = [mood](uint64_t seed) {
    return std::make_unique<CapriciousReactor>(seed, mood);
  };
  return subject;
}

Subject on_engine(Subject subject, io::EngineKind engine) {
  subject.engine = engine;
  return subject;
}

class LoopStorage final : public TestStorage {
 public:
  LoopStorage(uint64_t size, uint32_t sector_size) {
    char path[] = "/var/tmp/vbdkit-loop-XXXXXX";
    backing_ = Fd(mkostemp(path, O_CLOEXEC));
    EXPECT_TRUE(backing_.valid()) << path;
    unlink(path);
    EXPECT_EQ(0, ftruncate(backing_.get(), static_cast<off_t>(size)));
    auto device = LoopDevice::create(backing_.get(), sector_size);
    if (device)
      device_ = std::move(device).value();
    else
      missing_ = device.error().message();
  }

  std::string missing() const override { return missing_; }
  Result<NodePtr> open(const OpenContext& context, const Wrap&) override {
    return open_graph(GraphSpec{{{"raw", device_->path(), {}}}}, context);
  }

 private:
  Fd backing_;
  std::optional<LoopDevice> device_;
  std::string missing_;
};

Subject block_device(std::string name, uint32_t sector_size) {
  return {.name = std::move(name),
          .create = [sector_size](
                        uint64_t size) { return std::make_unique<LoopStorage>(size, sector_size); },
          .resizable = false};
}

// A filter over a raw image.
Subject filtered(std::string name, const std::string& filters) {
  return {.name = std::move(name),
          .create = storage_by_spec(
              [filters](const std::string& path, uint64_t) { return filters + "|raw:" + path; })};
}

// Limits so high that nothing waits long, and one low enough that requests stand in line.
Subject throttled(std::string name, const std::string& limits) {
  return filtered(std::move(name), "throttle" + limits);
}

std::vector<Subject> subjects() {
  return {
      raw_with("Raw", ""),
      raw_with("RawInPageCache", ",direct=off"),
      raw_with("RawWithoutDiscard", ",discard=off"),
      // Blocks larger than a sector: a part of one is read, changed and written.
      raw_with("RawOfLargeBlocks", ",align=4K"),
      raw_with("RawOfHugeBlocks", ",align=64K"),
      raw_with("RawOnTmpfs", "", "/dev/shm"),
      block_device("RawOnBlockDevice", 512),
      block_device("RawOnBlockDeviceOf4kSectors", 4096),
      on_engine(raw_with("RawOnLibaio", ""), io::EngineKind::kAio),
      on_engine(raw_with("RawOnPlainSystemCalls", ""), io::EngineKind::kSync),
      on_engine(throttled("ThrottleOnLibaio", ":iops=30000"), io::EngineKind::kAio),
      on_capricious(raw_with("RawWithShortTransfers", ""), {}),
      on_capricious(raw_with("RawWithShortTransfersOfLargeBlocks", ",align=4K"), {}),
      on_capricious(raw_with("RawWithDirectIoRefused", ""), {.refuses_direct = true}),
      on_capricious(raw_with("RawWithoutFallocate", ""),
                    {.refuses_punch = true, .refuses_zero_range = true}),
      on_capricious(raw_with("RawWithoutZeroRange", ",align=4K"), {.refuses_zero_range = true}),
      filtered("Delay", "delay:ms=1"),
      filtered("Log", "log:level=debug"),
      filtered("LogTwice", "log:level=debug,name=a|log:level=debug,ops=read,name=b"),
      memory("Ram", "ram"),
      memory("Null", "null"),
      throttled("ThrottleWithoutLimits", ""),
      throttled("ThrottleByBytes", ":bps=4G,bps-burst=1M"),
      throttled("ThrottleByRequests", ":iops=20000,iops-burst=4,iops-write=15000"),
      throttled("ThrottleTwice", ":iops=50000|throttle:bps-read=8G"),
  };
}

INSTANTIATE_TEST_SUITE_P(Drivers, NodeConformance, testing::ValuesIn(subjects()), subject_name);

}  // namespace
}  // namespace vbdkit::drivers
