// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The ring's slots as bytes, for each machine ABI a frontend may speak, and the one struct they are
// decoded into. Pure: no I/O, no xenstore. Layouts: xen/io/blkif.h, compiled for x86_64 (also what
// arm uses) and for i386, where 64-bit fields are aligned to 4 bytes only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>

#include "backend/xen/headers.h"

namespace vbdkit::blkif {

// The most we ever offer a frontend, and so the bounds of everything sized by it.
inline constexpr unsigned kMaxRingPageOrder = 4;
inline constexpr unsigned kMaxIndirectSegments = 256;
inline constexpr unsigned kMaxQueues = 64;

struct SlotLayout {
  size_t slot;             // bytes from one slot to the next
  size_t id;               // offsets in a request, in bytes
  size_t sector;           //
  size_t segments;         // read, write, flush, barrier
  size_t discard_sectors;  // discard
  size_t indirect_refs;    // indirect
  size_t response;         // bytes of a response; its id is at 0, operation at 8, status at 10
};

inline constexpr SlotLayout kLayout64{112, 8, 16, 24, 24, 28, 16};
inline constexpr SlotLayout kLayout32{108, 4, 12, 20, 20, 24, 12};
inline constexpr size_t kRingHeader = 64;
inline constexpr size_t kMaxSlot = 112;

#if defined(__x86_64__) || defined(__aarch64__)
static_assert(sizeof(union blkif_sring_entry) == kLayout64.slot);
static_assert(offsetof(blkif_request, id) == kLayout64.id);
static_assert(offsetof(blkif_request, sector_number) == kLayout64.sector);
static_assert(offsetof(blkif_request, seg) == kLayout64.segments);
static_assert(offsetof(blkif_request_discard, nr_sectors) == kLayout64.discard_sectors);
static_assert(offsetof(blkif_request_indirect, indirect_grefs) == kLayout64.indirect_refs);
static_assert(sizeof(blkif_response) == kLayout64.response);
#endif
static_assert(offsetof(blkif_sring, ring) == kRingHeader);
static_assert(sizeof(blkif_request_segment) == 8);
// The 32-bit layout is the 64-bit one without the hole after the first four bytes.
static_assert(kLayout64.segments - kLayout32.segments == 4 && kLayout64.slot - kLayout32.slot == 4);

// What the "protocol" node names. Without it every known backend on x86 assumes the 32-bit ABI, as
// frontends from before the node existed were such; elsewhere the native one.
inline const SlotLayout* layout_of(const std::optional<std::string>& protocol) {
#if defined(__x86_64__) || defined(__i386__)
  if (!protocol) return &kLayout32;
#else
  if (!protocol) return &kLayout64;
#endif
  if (*protocol == XEN_IO_PROTO_ABI_X86_64 || *protocol == XEN_IO_PROTO_ABI_ARM) return &kLayout64;
  if (*protocol == XEN_IO_PROTO_ABI_X86_32) return &kLayout32;
  return nullptr;
}

// A slot copied out of the ring, which the guest can no longer change.
struct SlotCopy {
  alignas(8) std::array<std::byte, kMaxSlot> bytes;
};

// One request in terms of this machine; nothing is checked yet.
struct SlotRequest {
  uint8_t operation = 0;
  uint8_t indirect_operation = 0;  // of BLKIF_OP_INDIRECT
  uint16_t segment_count = 0;
  uint64_t id = 0;
  uint64_t sector = 0;
  uint64_t discard_sectors = 0;
  // As many as segment_count says, and never more than fit a slot.
  std::array<blkif_request_segment, BLKIF_MAX_SEGMENTS_PER_REQUEST> segments;
  std::array<grant_ref_t, BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST> indirect_refs;

  // An indirect request is answered as the operation it stands for: frontends take a disk offline
  // whose responses don't fit their requests.
  uint8_t response_operation() const {
    return operation == BLKIF_OP_INDIRECT ? indirect_operation : operation;
  }
};

inline SlotRequest decode(const SlotCopy& copy, const SlotLayout& layout) {
  const std::byte* p = copy.bytes.data();
  auto load = [p](auto& field, size_t offset) { memcpy(&field, p + offset, sizeof field); };
  SlotRequest r;
  load(r.operation, 0);
  load(r.id, layout.id);
  load(r.sector, layout.sector);
  switch (r.operation) {
    case BLKIF_OP_INDIRECT:
      load(r.indirect_operation, 1);
      load(r.segment_count, 2);
      load(r.indirect_refs, layout.indirect_refs);
      break;
    case BLKIF_OP_DISCARD:
      load(r.discard_sectors, layout.discard_sectors);
      break;
    default: {
      uint8_t count;
      load(count, 1);
      r.segment_count = count;
      const size_t present = count < r.segments.size() ? count : r.segments.size();
      memcpy(r.segments.data(), p + layout.segments, present * sizeof(blkif_request_segment));
    }
  }
  return r;
}

}  // namespace vbdkit::blkif
