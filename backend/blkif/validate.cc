// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/blkif/validate.h"

#include "backend/request_sink.h"
#include "base/units.h"

namespace vbdkit::blkif {
namespace {

constexpr unsigned kSectorsPerPage = xen::kPageSize / kSectorSize;

Command refuse(int16_t status) {
  Command c;
  c.refusal = status;
  return c;
}

// Also false where the sum wraps around.
bool inside(uint64_t sector, uint64_t sectors, const DiskLimits& disk) {
  return range_inside(sector, sectors, disk.bytes / kSectorSize);
}

bool aligned(uint64_t offset, uint64_t length, const DiskLimits& disk) {
  return ((offset | length) & (disk.alignment - 1)) == 0;
}

Command check_discard(const SlotRequest& r, const DiskLimits& disk) {
  if (!disk.discard) return refuse(BLKIF_RSP_EOPNOTSUPP);
  // BLKIF_DISCARD_SECURE is ignored, as it must be where discard-secure was not offered.
  if (disk.read_only || r.discard_sectors == 0 || !inside(r.sector, r.discard_sectors, disk))
    return refuse(BLKIF_RSP_ERROR);
  Command c;
  c.op = drivers::Op::kDiscard;
  c.offset = r.sector * kSectorSize;
  c.length = r.discard_sectors * kSectorSize;
  return aligned(c.offset, c.length, disk) ? c : refuse(BLKIF_RSP_ERROR);
}

// Read, write, and the two kinds of flush, which may carry data to write.
Command check_transfer(const SlotRequest& r, uint8_t operation, unsigned most_segments,
                       const DiskLimits& disk) {
  Command c;
  c.segment_count = r.segment_count;
  if (r.segment_count > most_segments) return refuse(BLKIF_RSP_ERROR);
  switch (operation) {
    case BLKIF_OP_READ:
      break;
    case BLKIF_OP_WRITE:
      c.op = drivers::Op::kWrite;
      break;
    case BLKIF_OP_FLUSH_DISKCACHE:
      c.flags = kPreflush;
      break;
    case BLKIF_OP_WRITE_BARRIER:
      // Old frontends rely on a barrier's own data being on the disk when it is answered.
      c.flags = kPreflush | kBarrier | drivers::kFua;
      break;
  }
  if (c.flags != 0) {
    c.op = drivers::Op::kWrite;
    if (r.segment_count == 0) {
      c.op = drivers::Op::kFlush;
      c.flags &= kBarrier;
      return c;
    }
  }
  if (r.segment_count == 0) return refuse(BLKIF_RSP_ERROR);
  if (c.op == drivers::Op::kWrite && disk.read_only) return refuse(BLKIF_RSP_ERROR);
  // The multiplication below must not wrap; the range itself is checked with the segments.
  if (!inside(r.sector, 1, disk)) return refuse(BLKIF_RSP_ERROR);
  c.offset = r.sector * kSectorSize;
  return c;
}

}  // namespace

Command check_request(const SlotRequest& r, const DiskLimits& disk) {
  switch (r.operation) {
    case BLKIF_OP_READ:
    case BLKIF_OP_WRITE:
    case BLKIF_OP_FLUSH_DISKCACHE:
    case BLKIF_OP_WRITE_BARRIER: {
      Command c = check_transfer(r, r.operation, BLKIF_MAX_SEGMENTS_PER_REQUEST, disk);
      if (c.ok() && c.op != drivers::Op::kFlush)
        check_segments(c, {r.segments.data(), r.segment_count}, disk);
      return c;
    }
    case BLKIF_OP_INDIRECT: {
      if (disk.indirect_segments == 0) return refuse(BLKIF_RSP_EOPNOTSUPP);
      if (r.indirect_operation != BLKIF_OP_READ && r.indirect_operation != BLKIF_OP_WRITE)
        return refuse(BLKIF_RSP_ERROR);
      Command c = check_transfer(r, r.indirect_operation, disk.indirect_segments, disk);
      c.indirect = c.ok();
      return c;
    }
    case BLKIF_OP_DISCARD:
      return check_discard(r, disk);
    default:
      return refuse(BLKIF_RSP_EOPNOTSUPP);
  }
}

void check_segments(Command& c, std::span<const blkif_request_segment> segments,
                    const DiskLimits& disk) {
  uint64_t sectors = 0;
  for (const blkif_request_segment& s : segments) {
    if (s.last_sect >= kSectorsPerPage || s.first_sect > s.last_sect) {
      c = refuse(BLKIF_RSP_ERROR);
      return;
    }
    sectors += s.last_sect - s.first_sect + 1u;
  }
  c.length = sectors * kSectorSize;
  if (!inside(c.offset / kSectorSize, sectors, disk) || !aligned(c.offset, c.length, disk))
    c = refuse(BLKIF_RSP_ERROR);
}

}  // namespace vbdkit::blkif
