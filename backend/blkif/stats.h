// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What a virtual disk has done, counted per queue and summed per VBD.
//
// Thread: one thread counts (the queue's), any may read.
#pragma once

#include <atomic>
#include <cstdint>

namespace vbdkit::blkif {

// A number with one writer: adding costs no locked instruction, and a reader elsewhere sees some
// value that was right a moment ago.
class Counter {
 public:
  Counter() = default;
  Counter(const Counter& o) : v_(o.value()) {}
  Counter& operator=(const Counter& o) {
    v_.store(o.value(), std::memory_order_relaxed);
    return *this;
  }
  uint64_t value() const { return v_.load(std::memory_order_relaxed); }
  Counter& operator+=(uint64_t n) {
    v_.store(value() + n, std::memory_order_relaxed);
    return *this;
  }
  Counter& operator+=(const Counter& o) { return *this += o.value(); }
  Counter& operator++() { return *this += 1; }

 private:
  std::atomic<uint64_t> v_{0};
};

struct DirectionStats {
  Counter submitted;  // requests
  Counter completed;  // requests, failed ones too
  Counter sectors;    // of 512 bytes
  Counter ticks_us;   // summed time from ring to response

  DirectionStats& operator+=(const DirectionStats& o) {
    submitted += o.submitted;
    completed += o.completed;
    sectors += o.sectors;
    ticks_us += o.ticks_us;
    return *this;
  }
};

struct Stats {
  DirectionStats reads;
  DirectionStats writes;
  Counter flushes;  // with and without data, and barriers
  Counter discards;
  Counter errors;            // requests answered with other than BLKIF_RSP_OKAY
  Counter out_of_resources;  // requests that had to wait for a bounce buffer
  Counter events;            // from the guest
  Counter notifies;          // to the guest
  Counter grant_maps;        // calls
  Counter grant_copies;      // calls

  Stats& operator+=(const Stats& o) {
    reads += o.reads;
    writes += o.writes;
    flushes += o.flushes;
    discards += o.discards;
    errors += o.errors;
    out_of_resources += o.out_of_resources;
    events += o.events;
    notifies += o.notifies;
    grant_maps += o.grant_maps;
    grant_copies += o.grant_copies;
    return *this;
  }
};

}  // namespace vbdkit::blkif
