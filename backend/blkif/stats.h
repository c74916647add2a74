// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What a virtual disk has done, counted per queue and summed per VBD; the field order of one
// direction follows xentop's file (see xentop_stats.h).
#pragma once

#include <cstdint>

namespace vbdkit::blkif {

struct DirectionStats {
  uint64_t submitted = 0;  // requests
  uint64_t completed = 0;  // requests, failed ones too
  uint64_t sectors = 0;    // of 512 bytes
  uint64_t ticks_us = 0;   // summed time from ring to response

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
  uint64_t flushes = 0;  // with and without data, and barriers
  uint64_t discards = 0;
  uint64_t errors = 0;            // requests answered with other than BLKIF_RSP_OKAY
  uint64_t out_of_resources = 0;  // times the ring had to wait for a bounce buffer
  uint64_t events = 0;            // from the guest
  uint64_t notifies = 0;          // to the guest
  uint64_t grant_maps = 0;        // calls, not pages
  uint64_t grant_copies = 0;      // calls, not segments
  uint64_t persistent_hits = 0;

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
    persistent_hits += o.persistent_hits;
    return *this;
  }
};

}  // namespace vbdkit::blkif
