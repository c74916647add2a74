// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Refcounts: the refcount table and blocks of a writable image. Between flushes they lag behind: a
// flush adds what was taken from FreeSpace and writes that before the L2 entries that use it, then
// subtracts what the durable L2 entries use no more. What a flush does not get to is space lost at
// worst. Thread: the reactor of the layer; one flush at a time.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "drivers/qcow2/free_space.h"
#include "drivers/qcow2/slice_cache.h"

namespace vbdkit::drivers::qcow2 {

class Refcounts {
 public:
  Refcounts(Image& image, SliceCache& cache, FreeSpace& space, std::vector<uint64_t> table)
      : image_(image), cache_(cache), space_(space), table_(std::move(table)) {}

  const std::vector<uint64_t>& table() const { return table_; }

  // One reference more for each cluster, in memory. Takes from `ranges` what it has done, and adds
  // the clusters that new blocks and a new table need. The error is an errno.
  Task<int> add(std::vector<HostRange>& ranges);
  // One less; those that are free then are given to FreeSpace.
  Task<int> subtract(std::vector<HostRange>& ranges);
  // Writes what changed. New blocks and a new table are made durable before the file points at
  // them; the rest is durable with the next flush of the file.
  Task<int> write();

 private:
  Task<int> slice_of(uint64_t cluster, bool create, SliceRef& slice);
  Task<int> make_block(uint64_t index);
  int grow_table(uint64_t least);
  Task<int> write_slice(SliceRef& slice);
  Task<int> write_slices();
  Task<int> write_table_sector(uint32_t sector);
  Task<int> write_new_table();
  Task<int> link_new();
  void mark_dirty(const SliceRef& slice);
  Task<int> discard_last_uses(const SliceRef& slice, uint64_t first, uint64_t count);

  Image& image_;
  SliceCache& cache_;
  FreeSpace& space_;
  std::vector<uint64_t> table_;
  std::set<uint32_t> dirty_sectors_;  // of the table: blocks that the file does not know yet
  HostRange new_table_;               // where there is a larger one that the header does not know
  std::vector<SliceRef> dirty_;
};

}  // namespace vbdkit::drivers::qcow2
