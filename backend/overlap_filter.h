// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A cheap answer to "could this range overlap a request that is alive?": counters per hashed 32 KiB
// of the disk. No false negatives; on a hit the scheduler looks closely.
#pragma once

#include <array>
#include <cstdint>

namespace vbdkit {

class OverlapFilter {
 public:
  void add(uint64_t offset, uint64_t length, bool writes) { change(offset, length, writes, 1); }
  void remove(uint64_t offset, uint64_t length, bool writes) { change(offset, length, writes, -1); }

  // Could [offset, offset+length) conflict with what was added? Two reads never do.
  bool may_conflict(uint64_t offset, uint64_t length, bool writes) const {
    const uint64_t first = offset >> kShift;
    const uint64_t last = length == 0 ? first : (offset + length - 1) >> kShift;
    if (wide_writes_ > 0 || (writes && wide_reads_ > 0)) return true;
    if (last - first >= kMaxSpan) return true;
    for (uint64_t chunk = first; chunk <= last; ++chunk) {
      const Cell& cell = cells_[chunk % kCells];
      if (cell.writes > 0 || (writes && cell.reads > 0)) return true;
    }
    return false;
  }

 private:
  static constexpr unsigned kShift = 15;
  static constexpr size_t kCells = 512;
  // Ranges that would touch more cells than this are counted once, as conflicting with everything.
  static constexpr uint64_t kMaxSpan = 64;

  struct Cell {
    uint16_t reads = 0;
    uint16_t writes = 0;
  };

  void change(uint64_t offset, uint64_t length, bool writes, int delta) {
    const uint64_t first = offset >> kShift;
    const uint64_t last = length == 0 ? first : (offset + length - 1) >> kShift;
    if (last - first >= kMaxSpan) {
      (writes ? wide_writes_ : wide_reads_) += delta;
      return;
    }
    for (uint64_t chunk = first; chunk <= last; ++chunk) {
      Cell& cell = cells_[chunk % kCells];
      uint16_t& count = writes ? cell.writes : cell.reads;
      count = static_cast<uint16_t>(count + delta);
    }
  }

  std::array<Cell, kCells> cells_{};
  int wide_reads_ = 0;
  int wide_writes_ = 0;
};

}  // namespace vbdkit
