// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Tables: from a place on the disk to the L2 entries that say where it lies. The L1 table is in
// memory (but for one that is large and only read), L2 tables are read in slices. Changes stay in
// memory; a flush takes a copy of all that is dirty (begin_flush), writes it once what it points at
// is durable, and reports back. Thread: the reactor of the layer.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "drivers/qcow2/free_space.h"
#include "drivers/qcow2/slice_cache.h"

namespace vbdkit::drivers::qcow2 {

class Tables {
 public:
  // `l1`: empty where it is to be read in slices, too.
  Tables(Image& image, SliceCache& cache, FreeSpace& space, std::vector<uint64_t> l1);

  const std::vector<uint64_t>& l1() const { return l1_; }

  // The slice with the entry of the cluster at `offset` of the disk. No error and no slice: there
  // is no L2 table, all of its clusters are absent.
  Task<SliceCache::Loaded> slice(uint64_t offset);
  // Likewise, in an L2 table that belongs to this disk alone; made where there is none.
  Task<SliceCache::Loaded> writable_slice(uint64_t offset);
  // The entry in the slice that it is in.
  uint8_t* entry(const SliceRef& slice, uint64_t offset) const {
    const uint64_t index = (offset >> image_.g.cluster_bits) % image_.g.slice_entries();
    return slice.bytes() + index * image_.g.entry_size();
  }

  void mark_dirty(const SliceRef& slice);
  bool clean() const { return dirty_.empty() && dirty_l1_.empty() && !l1_moves_; }
  size_t dirty_slices() const { return dirty_.size(); }
  // Counts changes of entries.
  uint64_t changes() const { return changes_; }

  // What was dirty when a flush began.
  struct Copy {
    struct Piece {
      SliceRef slice;
      uint64_t version;
      Buffer data;
    };
    std::vector<Piece> slices;
    std::set<uint32_t> l1_sectors;
    std::vector<uint64_t> l1;  // all of it, where something of it is to be written
    bool l1_moves = false;     // and all of it goes to a new place: move_l1()
    bool empty() const { return slices.empty() && l1_sectors.empty() && !l1_moves; }
  };
  Copy begin_flush();
  // Writes it; does not make it durable.
  Task<int> write(Copy& copy);
  void end_flush(Copy copy, int error);

  // Makes room for a larger disk; in the file, the next flush does.
  void grow_l1(uint64_t entries);
  bool l1_must_move() const { return l1_moves_; }
  Task<int> move_l1(const Copy& copy, uint64_t to);

 private:
  static constexpr uint32_t kSector = 512;  // bytes; the unit in which L1 is written
  static constexpr uint32_t kPerSector = kSector / 8;

  uint64_t slice_offset(uint64_t table, uint64_t offset) const;
  struct L1Entry {
    int error = 0;
    uint64_t entry = 0;
  };
  Task<L1Entry> read_l1(uint64_t index);
  Task<int> own_table(uint64_t index);
  Task<int> make_table(uint64_t index);
  Task<int> copy_table(uint64_t from, uint64_t to);
  Task<int> write_piece(Copy::Piece& piece);
  Task<int> write_l1_sector(const std::vector<uint64_t>& l1, uint32_t sector);

  Image& image_;
  SliceCache& cache_;
  FreeSpace& space_;
  std::vector<uint64_t> l1_;
  std::set<uint32_t> dirty_l1_;  // sectors
  std::vector<SliceRef> dirty_;
  std::set<uint64_t> in_creation_;  // L1 indices whose tables are being made
  Waiters created_;
  uint64_t changes_ = 0;
  bool l1_moves_ = false;
};

}  // namespace vbdkit::drivers::qcow2
