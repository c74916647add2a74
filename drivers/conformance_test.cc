// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The subjects of the conformance suite that this folder has: each driver, and filters over them.
#include "drivers/conformance.h"

namespace vbdkit::drivers {
namespace {

Subject raw_with(std::string name, const std::string& options) {
  return {.name = std::move(name),
          .create = storage_by_spec([options](const std::string& path, uint64_t) {
            return "raw" + options + ":" + path;
          })};
}

Subject memory(std::string name, const std::string& driver) {
  return {.name = std::move(name),
          .create = storage_by_spec([driver](const std::string&, uint64_t size) {
            return driver + ",size=" + std::to_string(size);
          }),
          .keeps_data = driver != "null",
          .persistent = false};
}

// Limits so high that nothing waits long, and one low enough that requests stand in line.
Subject throttled(std::string name, const std::string& limits) {
  return {.name = std::move(name),
          .create = storage_by_spec([limits](const std::string& path, uint64_t) {
            return "throttle" + limits + "|raw:" + path;
          })};
}

std::vector<Subject> subjects() {
  return {
      raw_with("Raw", ""),
      raw_with("RawInPageCache", ",direct=off"),
      raw_with("RawWithoutDiscard", ",discard=off"),
      // Blocks larger than a sector: a part of one is read, changed and written.
      raw_with("RawOfLargeBlocks", ",align=4K"),
      raw_with("RawOfHugeBlocks", ",align=64K"),
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
