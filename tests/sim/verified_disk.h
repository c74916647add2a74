// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A model of a disk's content, and a random workload that checks every byte against it. Requests
// that would race (a write with anything that overlaps it) are not made, so every byte read has one
// right value. The model outlives connections: run on one frontend, check on the next. One thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "tests/sim/frontend.h"

namespace vbdkit::sim {

struct WorkloadOptions {
  uint64_t seed = 1;
  uint64_t requests = 1000;
  unsigned depth = 32;           // in flight over all queues
  unsigned write_percent = 50;   // the rest: reads
  unsigned flush_percent = 2;    // of all requests; a third of them with data
  unsigned barrier_percent = 0;  // of all
  unsigned discard_percent = 0;  // of all
  unsigned max_segments = 0;     // 0: as many as the frontend may send
};

struct WorkloadReport {
  uint64_t reads = 0, writes = 0, flushes = 0, barriers = 0, discards = 0;
  uint64_t sectors_checked = 0;
  std::vector<std::string> problems;  // wrong bytes, failed requests, protocol violations
};

class VerifiedDisk {
 public:
  enum class Start { kZero, kUnknown };
  // Sectors [0, sectors) of the disk; what they hold to begin with.
  explicit VerifiedDisk(uint64_t sectors, Start start = Start::kZero)
      : stamps_(sectors, start == Start::kZero ? 0 : kUnknown) {}

  // Uses every queue of the frontend. A disk in 4096-byte sectors gets aligned requests.
  Result<WorkloadReport> run(Frontend& front, const WorkloadOptions& options, Deadline deadline);
  // Reads it all.
  Result<WorkloadReport> check(Frontend& front, Deadline deadline);

  uint64_t sectors() const { return stamps_.size(); }
  // Whether 512 bytes are what this sector should hold.
  bool holds(uint64_t sector, const std::byte* data) const;

 private:
  friend class VerifiedRun;
  void fill(uint64_t sector, uint64_t stamp, std::byte* data) const;

  // What was last written to each sector; 0: never. kUnknown: discarded, so anything may be there.
  static constexpr uint64_t kUnknown = ~uint64_t{0};
  std::vector<uint64_t> stamps_;
  uint64_t next_stamp_ = 1;
};

}  // namespace vbdkit::sim
