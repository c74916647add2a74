// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The merged map of a chain: for each byte of the disk the layer that holds it and the place in
// that layer's file. The disk is cut into windows of equal size; a window is known whole or not at
// all. A known one is a sorted array of segments (4 bytes each) over a table of sources (8 bytes
// each): a source is a layer and the distance between the disk's offsets and its file's, so runs
// that lie together in one file share it.
//
// Memory is bounded: beyond the limit (ChainOptions::map_memory, 32 MiB unless told) the windows
// that were not used lately go (clock). The limit counts all that a window takes, with the
// allocator's overhead and the hash table's slots. Fully fragmented, the window of a qcow2 disk
// with clusters of 64 KiB (32 MiB) takes less than 6.5 KB, so that the limit holds the map of 160
// GiB of such a disk at a time, however large all of it is; an unfragmented one takes about 100
// bytes. Pure bookkeeping, no I/O; one owner, one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/units.h"
#include "drivers/chain/layer.h"

namespace vbdkit::drivers {

inline constexpr uint64_t kMinWindow = 64 * 1024;         // bytes
inline constexpr uint64_t kMaxWindow = 32 * 1024 * 1024;  // bytes; 65536 sectors
inline constexpr uint16_t kNoLayer = 0xfff;               // what no layer holds

// Where a run of bytes is.
class Source {
 public:
  Source() = default;
  // The byte at `disk_offset` lies at `file_offset`; both are multiples of 512. Nothing where the
  // distance cannot be expressed (files of more than 16 EiB / 4096).
  static std::optional<Source> data(uint16_t layer, uint64_t disk_offset, uint64_t file_offset);
  static Source of_kind(Segment::Kind kind, uint16_t layer) { return Source(kind, layer, 0); }
  // Zeroes because no layer has it.
  static Source nowhere() { return Source(Segment::Kind::kZero, kNoLayer, 0); }

  Segment::Kind kind() const { return static_cast<Segment::Kind>(bits_ & 3); }
  uint16_t layer() const { return static_cast<uint16_t>((bits_ >> 2) & 0xfff); }
  uint64_t file_offset(uint64_t disk_offset) const {
    const int64_t sectors = static_cast<int64_t>(bits_) >> kDistanceShift;
    return disk_offset + static_cast<uint64_t>(sectors) * kSectorSize;
  }
  friend bool operator==(const Source&, const Source&) = default;

 private:
  static constexpr unsigned kDistanceShift = 14;  // sectors, signed, above kind and layer

  Source(Segment::Kind kind, uint16_t layer, int64_t distance)
      : bits_(static_cast<uint64_t>(distance) << kDistanceShift | uint64_t{layer} << 2 |
              static_cast<uint64_t>(kind)) {}

  uint64_t bits_ = 0;
};

inline constexpr size_t kMaxLayers = kNoLayer;

// One window's segments, in ascending order, without gaps. Offsets here are sectors in the window.
class Window {
 public:
  struct Run {
    uint32_t end = 0;
    Source source;
  };

  explicit Window(uint64_t index) : index_(index) {}

  uint64_t index() const { return index_; }
  // The source of the sector, and where the run it belongs to ends (at most `sectors`).
  Run find(uint32_t sector, uint32_t sectors) const;
  // Appends a segment that starts where the last one ended; the first starts at 0.
  void append(uint32_t start, Source source);
  // Replaces [start, end) of a window of `sectors`.
  void assign(uint32_t start, uint32_t end, uint32_t sectors, Source source);

  size_t segments() const { return segments_.size(); }
  size_t memory() const;  // bytes
  void shrink_to_fit();

 private:
  friend class WindowMap;
  struct Entry {
    uint16_t start;   // sector
    uint16_t source;  // index
  };

  size_t index_of(uint32_t sector) const;
  uint16_t intern(Source source);
  void drop_unused_sources();

  uint64_t index_;
  std::vector<Source> sources_;
  std::vector<Entry> segments_;
  bool used_ = true;  // since the clock's hand passed
};

class WindowMap {
 public:
  // `window` in bytes: a power of two from kMinWindow to kMaxWindow. `limit` in bytes; one window
  // is kept whatever the limit.
  WindowMap(uint64_t window, size_t limit);

  uint64_t window() const { return uint64_t{sectors_} * kSectorSize; }
  uint64_t index_of(uint64_t disk_offset) const { return disk_offset / window(); }
  uint32_t sectors() const { return sectors_; }  // of a window

  // The run that begins at that disk offset, cut at the window's end; nothing where the window is
  // not known.
  struct Run {
    uint64_t length = 0;  // bytes
    Source source;
  };
  std::optional<Run> find(uint64_t disk_offset);
  bool contains(uint64_t index) const { return slot_of(index) != kNone; }
  // Replaces a window of that index.
  void insert(Window window);
  void erase(uint64_t index);
  void clear();
  // A change of the mapping; windows that are not known stay unknown.
  void assign(uint64_t disk_offset, uint64_t length, Source source);

  size_t memory() const { return memory_; }
  size_t windows() const { return count_; }
  size_t limit() const { return limit_; }

 private:
  static constexpr size_t kNone = SIZE_MAX;

  size_t home_of(uint64_t index) const;
  size_t slot_of(uint64_t index) const;
  void remove_slot(size_t slot);
  void grow_table();
  void make_room(uint64_t keep);

  const uint32_t sectors_;
  const size_t limit_;
  size_t memory_ = 0;  // of windows and table
  size_t count_ = 0;
  size_t hand_ = 0;
  // Open addressing, linear probing, at most 3/4 full; the size is a power of two.
  std::vector<std::unique_ptr<Window>> table_;
};

}  // namespace vbdkit::drivers
