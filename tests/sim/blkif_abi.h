// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The blkif ring as the two x86 ABIs lay it out. <xen/io/blkif.h> has the compiler's own layout,
// which on x86_64 is the 64-bit one; a 32-bit guest aligns uint64_t to 4, so its slots differ.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tests/sim/xen_abi.h"

extern "C" {
#include <xen/io/ring.h>
}

namespace vbdkit::sim {

enum class Abi { kX86_64, kX86_32 };

// As __CONST_RING_SIZE of ring.h: a power of two of slots behind the 64-byte header.
constexpr uint32_t ring_slots(Abi abi, unsigned order) {
  const size_t slot = abi == Abi::kX86_64 ? 112 : 108;
  const size_t fit = ((size_t{4096} << order) - 64) / slot;
  uint32_t slots = 1;
  while (slots * 2 <= fit) slots *= 2;
  return slots;
}

// Where each field of a slot lies, in bytes.
struct SlotLayout {
  size_t size;
  size_t operation, id, sector;          // every request but indirect ones
  size_t nr_segments, handle, segments;  // read, write, barrier, flush
  size_t discard_flag, discard_sectors;
  size_t ind_op, ind_nr_segments, ind_id, ind_sector, ind_handle, ind_refs;
  size_t rsp_id, rsp_operation, rsp_status, rsp_size;
};

constexpr SlotLayout slot_layout(Abi abi) {
  // clang-format off
  if (abi == Abi::kX86_64)
    return {.size = 112, .operation = 0, .id = 8, .sector = 16,
            .nr_segments = 1, .handle = 2, .segments = 24,
            .discard_flag = 1, .discard_sectors = 24,
            .ind_op = 1, .ind_nr_segments = 2, .ind_id = 8, .ind_sector = 16, .ind_handle = 24,
            .ind_refs = 28,
            .rsp_id = 0, .rsp_operation = 8, .rsp_status = 10, .rsp_size = 16};
  return {.size = 108, .operation = 0, .id = 4, .sector = 12,
          .nr_segments = 1, .handle = 2, .segments = 20,
          .discard_flag = 1, .discard_sectors = 20,
          .ind_op = 1, .ind_nr_segments = 2, .ind_id = 4, .ind_sector = 12, .ind_handle = 20,
          .ind_refs = 24,
          .rsp_id = 0, .rsp_operation = 8, .rsp_status = 10, .rsp_size = 12};
  // clang-format on
}

static_assert(sizeof(blkif_request_t) == 112 && offsetof(blkif_request_t, id) == 8 &&
              offsetof(blkif_request_t, sector_number) == 16 &&
              offsetof(blkif_request_t, seg) == 24);
static_assert(offsetof(blkif_request_indirect_t, sector_number) == 16 &&
              offsetof(blkif_request_indirect_t, handle) == 24 &&
              offsetof(blkif_request_indirect_t, indirect_grefs) == 28);
static_assert(offsetof(blkif_request_discard_t, nr_sectors) == 24);
static_assert(sizeof(blkif_response_t) == 16 && offsetof(blkif_response_t, status) == 10);

}  // namespace vbdkit::sim
