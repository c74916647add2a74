// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/nbd/block_status.h"

#include <algorithm>
#include <limits>

#include "base/units.h"

namespace vbdkit::nbd {

// A descriptor's length has 32 bits; what is known beyond that stays unsaid.
StatusChunk::StatusChunk(const RequestHeader& header, uint32_t granularity)
    : header_(header),
      one_(header.flags & kCmdReqOne),
      limit_(one_ ? header.length
                  : align_down(std::numeric_limits<uint32_t>::max(), std::max(granularity, 1u))) {}

bool StatusChunk::add(uint64_t length, uint32_t state) {
  length = std::min(length, limit_ - covered_);
  if (length == 0) return false;
  if (!descriptors_.empty() && descriptors_.back().state == state) {
    descriptors_.back().length += length;
  } else {
    if (!descriptors_.empty() && (one_ || covered_ >= header_.length)) return false;
    if (descriptors_.size() == kMaxExtents) return false;
    descriptors_.push_back({length, state});
  }
  covered_ += length;
  return true;
}

void StatusChunk::add_allocation(const std::vector<drivers::Extent>& extents) {
  for (const drivers::Extent& extent : extents) {
    const uint32_t state =
        (extent.allocated ? 0 : kStateHole) | (extent.zero ? kStateZero : uint32_t{0});
    if (!add(extent.length, state)) return;
  }
}

void StatusChunk::add_changes(const drivers::DirtyBitmap* bitmap) {
  const uint64_t end = header_.offset + header_.length;
  for (uint64_t at = header_.offset; at < end;) {
    const auto run =
        bitmap == nullptr ? drivers::DirtyBitmap::Run{end - at, true} : bitmap->run_at(at, end);
    if (!add(run.length, run.dirty ? kStateDirty : 0)) return;
    at += run.length;
  }
}

void StatusChunk::append_to(std::vector<uint8_t>& out, uint32_t context, bool last) const {
  const auto payload = static_cast<uint32_t>(4 + 8 * descriptors_.size());
  const size_t start = out.size();
  out.resize(start + kChunkHeaderSize + payload);
  uint8_t* p = out.data() + start;
  p += encode_chunk_header(p, last ? kReplyDone : uint16_t{0}, kChunkBlockStatus, header_.cookie,
                           payload);
  p = store_be(p, context);
  for (const Descriptor& d : descriptors_) {
    p = store_be(p, static_cast<uint32_t>(d.length));
    p = store_be(p, d.state);
  }
}

}  // namespace vbdkit::nbd
