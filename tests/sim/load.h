// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A benchmark's load on a frontend: a fixed number of requests kept in flight on each queue, one
// thread per queue. Nothing is allocated and, but for notifies and waits, no system call made per
// request; times are taken per batch. What a process costs meanwhile is read from the kernel's
// scheduler statistics, in nanoseconds, over all its threads.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "base/result.h"
#include "tests/sim/frontend.h"
#include "tests/sim/latency.h"

namespace vbdkit::sim {

struct LoadOptions {
  uint8_t operation = BLKIF_OP_READ;
  bool random = true;
  uint32_t block_bytes = 4096;
  unsigned depth = 32;      // in flight per queue
  double seconds = 1;       // ends after this
  uint64_t ios = 0;         // or, where not 0, after so many per queue
  bool spin = false;        // look for responses without sleeping; a guest does not
  bool copy_data = false;   // touch every byte, as a guest with persistent grants must
  uint64_t area_bytes = 0;  // 0: the whole disk
};

struct LoadReport {
  uint64_t ios = 0;
  uint64_t errors = 0;
  double seconds = 0;
  Latency latency;
  uint64_t notifies_sent = 0;
  uint64_t events_received = 0;
  std::string violation;  // the first, if any
};

// Fails where a response stays out for ten seconds.
Result<LoadReport> run_load(Frontend& front, const LoadOptions& options);

// CPU time of all the process's threads so far, io_uring's workers included.
uint64_t cpu_nanoseconds(pid_t pid);
struct MemoryUse {
  uint64_t rss_kib = 0;
  uint64_t pss_kib = 0;
  uint64_t own_pss_kib = 0;  // without what the simulation adds
};
MemoryUse memory_use(pid_t pid);

}  // namespace vbdkit::sim
