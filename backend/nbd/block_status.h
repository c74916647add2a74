// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Answers to BLOCK_STATUS: a chunk for each metadata context that the client has selected
// (proto.md, "Metadata querying"). base:allocation tells what is allocated and what reads as
// zeroes, qemu:dirty-bitmap:NAME what was changed (QEMU's docs/interop/nbd.txt). Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/nbd/protocol.h"
#include "drivers/dirty_bitmap.h"
#include "drivers/node.h"

namespace vbdkit::nbd {

inline constexpr const char* kAllocationContext = "base:allocation";
inline constexpr const char* kDirtyContextPrefix = "qemu:dirty-bitmap:";
inline constexpr size_t kMaxExtents = 4096;  // in one chunk

// A context as a client has selected it.
struct StatusContext {
  uint32_t id = 0;
  std::string bitmap;  // its name; empty: base:allocation
};

// Collects the descriptors of one chunk. Neighbours that are alike become one.
class StatusChunk {
 public:
  // Lengths are multiples of `granularity` where they are cut.
  StatusChunk(const RequestHeader& header, uint32_t granularity);

  // False where no more is wanted.
  bool add(uint64_t length, uint32_t state);
  void add_allocation(const std::vector<drivers::Extent>& extents);
  // Without a bitmap (the node that had it is gone) everything may have changed.
  void add_changes(const drivers::DirtyBitmap* bitmap);
  // `last`: of all chunks of the answer.
  void append_to(std::vector<uint8_t>& out, uint32_t context, bool last) const;

 private:
  struct Descriptor {
    uint64_t length;
    uint32_t state;
  };

  const RequestHeader& header_;
  const bool one_;
  const uint64_t limit_;  // bytes
  uint64_t covered_ = 0;  // bytes
  std::vector<Descriptor> descriptors_;
};

}  // namespace vbdkit::nbd
