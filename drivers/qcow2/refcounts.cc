// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/qcow2/refcounts.h"

#include <algorithm>

namespace vbdkit::drivers::qcow2 {
namespace {

constexpr uint32_t kSector = 512;  // bytes; the unit in which the table is written
constexpr uint32_t kPerSector = kSector / 8;

}  // namespace

void Refcounts::mark_dirty(const SliceRef& slice) {
  if (std::exchange(slice->dirty, true)) return;
  dirty_.push_back(slice);
}

// A new table, larger, at a new place.
int Refcounts::grow_table(uint64_t least) {
  const Geometry& g = image_.g;
  // The table grows by half, so that this is done seldom.
  const uint64_t wanted =
      std::max(g.clusters_for(least * 8), table_.size() * 8 * 3 / 2 >> g.cluster_bits);
  const uint64_t clusters = std::min(wanted, g.max_refcount_table_clusters());
  if (clusters * g.cluster_size() / 8 < least) return EFBIG;
  const FreeSpace::Taken taken = space_.take_contiguous(clusters);
  if (taken.error != 0) return taken.error;
  // One that was never linked is free again once it has been counted.
  if (new_table_.count > 0) space_.give_back(new_table_.first, new_table_.count);
  new_table_ = taken.range;
  table_.resize(clusters * g.cluster_size() / 8);
  return 0;
}

Task<int> Refcounts::make_block(uint64_t index) {
  const Geometry& g = image_.g;
  if (index >= table_.size()) {
    const int error = grow_table(index + 1);
    if (error != 0) co_return error;
  }
  const FreeSpace::Taken taken = co_await space_.take_or_wait(1);
  if (taken.error != 0) co_return taken.error;
  const uint64_t block = taken.range.first << g.cluster_bits;
  cache_.drop(image_, block, g.cluster_size());
  const int error = taken.range.zeroed ? 0 : co_await image_.zero(block, g.cluster_size());
  if (error != 0) {
    space_.give_back(taken.range.first, 1);
    co_return error;
  }
  table_[index] = block;
  dirty_sectors_.insert(static_cast<uint32_t>(index / kPerSector));
  co_return 0;
}

Task<int> Refcounts::slice_of(uint64_t cluster, bool create, SliceRef& slice) {
  const Geometry& g = image_.g;
  const uint64_t index = cluster / g.refcounts_per_block();
  if (index >= table_.size() || table_[index] == 0) {
    if (!create)
      co_return image_.mark_corrupt("cluster " + std::to_string(cluster) + " was in use uncounted");
    const int error = co_await make_block(index);
    if (error != 0) co_return error;
  }
  const uint64_t in_block = cluster % g.refcounts_per_block();
  SliceCache::Loaded loaded = co_await cache_.load(
      image_, table_[index] + in_block / g.refcounts_per_slice() * g.slice_size());
  slice = std::move(loaded.slice);
  co_return loaded.error;
}

Task<int> Refcounts::add(std::vector<HostRange>& ranges) {
  const Geometry& g = image_.g;
  while (!ranges.empty()) {
    HostRange& range = ranges.back();
    SliceRef slice;
    const int error = co_await slice_of(range.first, true, slice);
    if (error != 0) co_return error;
    const uint64_t at = range.first % g.refcounts_per_slice();
    const uint64_t count = std::min(range.count, g.refcounts_per_slice() - at);
    for (uint64_t i = at; i < at + count; ++i) {
      const uint64_t cluster = range.first - at + i;
      if (g.get_refcount(slice.bytes(), i) != 0 && space_.was_in_file(cluster))
        co_return image_.mark_corrupt("a free cluster turned out to be in use");
      g.set_refcount(slice.bytes(), i, 1);
    }
    mark_dirty(slice);
    range.first += count;
    range.count -= count;
    if (range.count == 0) ranges.pop_back();
    // Blocks and tables that were made for these.
    const std::vector<HostRange> more = space_.take_allocated();
    ranges.insert(ranges.end(), more.begin(), more.end());
  }
  co_return 0;
}

// Clusters that are about to be free: their space goes back to the file system while nobody can
// take them yet.
Task<int> Refcounts::discard_last_uses(const SliceRef& slice, uint64_t first, uint64_t count) {
  const Geometry& g = image_.g;
  const uint64_t at = first % g.refcounts_per_slice();
  uint64_t run = 0;
  for (uint64_t i = 0; i <= count; ++i) {
    if (i < count && g.get_refcount(slice.bytes(), at + i) == 1) {
      ++run;
      continue;
    }
    if (run == 0) continue;
    const uint64_t offset = (first + i - run) << g.cluster_bits;
    cache_.drop(image_, offset, run << g.cluster_bits);
    // It is free whether or not the file system takes it.
    if (image_.file->info().can_discard && !space_.has_readers())
      co_await image_.discard(offset, run << g.cluster_bits);
    run = 0;
  }
  co_return 0;
}

Task<int> Refcounts::subtract(std::vector<HostRange>& ranges) {
  const Geometry& g = image_.g;
  while (!ranges.empty()) {
    HostRange& range = ranges.back();
    SliceRef slice;
    const int error = co_await slice_of(range.first, false, slice);
    if (error != 0) co_return error;
    const uint64_t at = range.first % g.refcounts_per_slice();
    const uint64_t count = std::min(range.count, g.refcounts_per_slice() - at);
    co_await discard_last_uses(slice, range.first, count);
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t refcount = g.get_refcount(slice.bytes(), at + i);
      if (refcount == 0)
        co_return image_.mark_corrupt("cluster " + std::to_string(range.first + i) +
                                      " was in use uncounted");
      g.set_refcount(slice.bytes(), at + i, refcount - 1);
      if (refcount == 1) space_.add_free(range.first + i, 1);
    }
    mark_dirty(slice);
    range.first += count;
    range.count -= count;
    if (range.count == 0) ranges.pop_back();
  }
  co_return 0;
}

Task<int> Refcounts::write_slice(SliceRef& slice) {
  co_return co_await image_.write(slice->offset, slice->data.span());
}

Task<int> Refcounts::write_slices() {
  Group group(image_.ready);
  for (SliceRef& slice : dirty_) group.start(write_slice(slice));
  const int error = co_await group.join();
  if (error != 0) co_return error;
  for (SliceRef& slice : dirty_) slice->dirty = false;
  dirty_.clear();
  co_return 0;
}

Task<int> Refcounts::write_table_sector(uint32_t sector) {
  const Buffer data(kSector);
  for (uint32_t i = 0; i < kPerSector; ++i)
    store_be(data.data() + i * 8, table_[uint64_t{sector} * kPerSector + i]);
  co_return co_await image_.write(image_.header.refcount_table_offset + uint64_t{sector} * kSector,
                                  data.span());
}

Task<int> Refcounts::write_new_table() {
  const Buffer data(table_.size() * 8);
  for (size_t i = 0; i < table_.size(); ++i) store_be(data.data() + i * 8, table_[i]);
  co_return co_await image_.write(new_table_.first << image_.g.cluster_bits, data.span());
}

// The blocks and the table are durable: the file may point at them.
Task<int> Refcounts::link_new() {
  if (new_table_.count > 0) {
    Header& h = image_.header;
    const HostRange old{h.refcount_table_offset >> image_.g.cluster_bits, h.refcount_table_clusters,
                        false};
    h.refcount_table_offset = new_table_.first << image_.g.cluster_bits;
    h.refcount_table_clusters = static_cast<uint32_t>(new_table_.count);
    new_table_ = {};
    dirty_sectors_.clear();
    space_.give_back(old.first, old.count);
    co_return co_await image_.write_header();
  }
  while (!dirty_sectors_.empty()) {
    const int error = co_await write_table_sector(*dirty_sectors_.begin());
    if (error != 0) co_return error;
    dirty_sectors_.erase(dirty_sectors_.begin());
  }
  co_return 0;
}

Task<int> Refcounts::write() {
  int error = co_await write_slices();
  if (error == 0 && new_table_.count > 0) error = co_await write_new_table();
  if (error != 0 || (new_table_.count == 0 && dirty_sectors_.empty())) co_return error;
  error = co_await image_.flush();
  if (error == 0) error = co_await link_new();
  co_return error;
}

}  // namespace vbdkit::drivers::qcow2
