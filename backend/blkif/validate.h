// SPDX-License-Identifier: LGPL-2.1-or-later
//
// From a decoded slot to a command that is safe to run, or the status to refuse it with. Pure, and
// the only judge of what a guest may ask: ranges, alignment, read-only, known operations.
#pragma once

#include <cstdint>
#include <span>

#include "backend/blkif/abi.h"
#include "drivers/node.h"

namespace vbdkit::blkif {

struct DiskLimits {
  uint64_t bytes = 0;
  uint32_t alignment = 512;  // bytes; a power of two
  bool read_only = false;
  bool discard = false;
  unsigned indirect_segments = 0;  // what was offered to the guest
};

struct Command {
  int16_t refusal = BLKIF_RSP_OKAY;  // other: answer with this, the rest is void
  drivers::Op op = drivers::Op::kRead;
  uint8_t flags = 0;    // drivers::kFua, kPreflush, kBarrier
  uint64_t offset = 0;  // bytes
  uint64_t length = 0;  // bytes; of an indirect request: set by check_segments()
  uint16_t segment_count = 0;
  bool indirect = false;  // its segments are still in the guest's pages

  bool ok() const { return refusal == BLKIF_RSP_OKAY; }
};

// Judges everything but the segments of an indirect request, which are not here yet.
Command check_request(const SlotRequest& request, const DiskLimits& disk);
// Judges the segments of `command` and completes it; check_request() does so for direct requests.
void check_segments(Command& command, std::span<const blkif_request_segment> segments,
                    const DiskLimits& disk);

}  // namespace vbdkit::blkif
