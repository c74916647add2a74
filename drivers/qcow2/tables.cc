// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/qcow2/tables.h"

#include <algorithm>

namespace vbdkit::drivers::qcow2 {

Tables::Tables(Image& image, SliceCache& cache, FreeSpace& space, std::vector<uint64_t> l1)
    : image_(image), cache_(cache), space_(space), l1_(std::move(l1)), created_(image.ready) {}

uint64_t Tables::slice_offset(uint64_t table, uint64_t offset) const {
  const Geometry& g = image_.g;
  const uint64_t index = (offset >> g.cluster_bits) % g.l2_entries();
  return table + index / g.slice_entries() * g.slice_size();
}

Task<SliceCache::Loaded> Tables::slice(uint64_t offset) {
  const Geometry& g = image_.g;
  const uint64_t index = offset / g.l2_span();
  uint64_t table = 0;
  if (!l1_.empty()) {
    table = l1_[index] & kOffsetMask;
  } else {
    const L1Entry read = co_await read_l1(index);
    if (read.error != 0) co_return SliceCache::Loaded{read.error, {}};
    table = read.entry & kOffsetMask;
  }
  if (table == 0) co_return SliceCache::Loaded{};
  if (SliceRef found = cache_.find(image_, slice_offset(table, offset)))
    co_return SliceCache::Loaded{0, std::move(found)};
  if (table < g.cluster_size() || g.in_cluster(table) != 0 ||
      !range_inside(table, g.cluster_size(), image_.size_for(table + g.cluster_size()))) {
    co_return SliceCache::Loaded{
        image_.mark_corrupt("L2 table at " + std::to_string(table) + " is outside the file"), {}};
  }
  co_return co_await cache_.load(image_, slice_offset(table, offset));
}

Task<Tables::L1Entry> Tables::read_l1(uint64_t index) {
  const uint64_t per_slice = image_.g.slice_size() / 8;
  const uint64_t at = image_.header.l1_offset + index / per_slice * image_.g.slice_size();
  const SliceCache::Loaded loaded = co_await cache_.load(image_, at);
  if (loaded.error != 0) co_return L1Entry{loaded.error, 0};
  co_return L1Entry{0, load_be<uint64_t>(loaded.slice.bytes() + index % per_slice * 8)};
}

Task<SliceCache::Loaded> Tables::writable_slice(uint64_t offset) {
  const uint64_t index = offset / image_.g.l2_span();
  if ((l1_[index] & kCopiedFlag) == 0) {
    const int error = co_await own_table(index);
    if (error != 0) co_return SliceCache::Loaded{error, {}};
  }
  co_return co_await slice(offset);
}

Task<int> Tables::own_table(uint64_t index) {
  while (in_creation_.contains(index)) co_await created_.wait();
  if (l1_[index] & kCopiedFlag) co_return 0;
  in_creation_.insert(index);
  const int error = co_await make_table(index);
  in_creation_.erase(index);
  created_.wake_all();
  co_return error;
}

Task<int> Tables::make_table(uint64_t index) {
  const Geometry& g = image_.g;
  const FreeSpace::Taken taken = co_await space_.take_or_wait(1);
  if (taken.error != 0) co_return taken.error;
  const uint64_t table = taken.range.first << g.cluster_bits;
  cache_.drop(image_, table, g.cluster_size());
  const uint64_t old = l1_[index] & kOffsetMask;
  // All of the table must be there before anything points at it: the rest of it is not written.
  int error = 0;
  if (old != 0)
    error = co_await copy_table(old, table);
  else if (!taken.range.zeroed)
    error = co_await image_.zero(table, g.cluster_size());
  if (error != 0) {
    space_.give_back(taken.range.first, 1);
    co_return error;
  }
  if (old != 0) space_.give_back(old >> g.cluster_bits, 1);
  l1_[index] = table | kCopiedFlag;
  dirty_l1_.insert(static_cast<uint32_t>(index / kPerSector));
  co_return 0;
}

// An internal snapshot keeps the old one.
Task<int> Tables::copy_table(uint64_t from, uint64_t to) {
  const Geometry& g = image_.g;
  if (g.in_cluster(from) != 0 ||
      !range_inside(from, g.cluster_size(), image_.size_for(from + g.cluster_size())))
    co_return image_.mark_corrupt("L2 table at " + std::to_string(from) + " is outside the file");
  const Buffer table(g.cluster_size());
  int error = co_await image_.read(from, table.span());
  if (error == 0) error = co_await image_.write(to, table.span());
  co_return error;
}

void Tables::mark_dirty(const SliceRef& slice) {
  ++changes_;
  ++slice->version;
  if (std::exchange(slice->dirty, true)) return;
  dirty_.push_back(slice);
}

Tables::Copy Tables::begin_flush() {
  Copy copy;
  copy.slices.reserve(dirty_.size());
  for (const SliceRef& slice : dirty_) {
    Buffer data(slice->data.size());
    memcpy(data.data(), slice.bytes(), data.size());
    copy.slices.push_back({slice, slice->version, std::move(data)});
  }
  copy.l1_sectors = std::exchange(dirty_l1_, {});
  copy.l1_moves = std::exchange(l1_moves_, false);
  if (copy.l1_moves || !copy.l1_sectors.empty()) copy.l1 = l1_;
  return copy;
}

Task<int> Tables::write_piece(Copy::Piece& piece) {
  co_return co_await image_.write(piece.slice->offset, piece.data.span());
}

Task<int> Tables::write_l1_sector(const std::vector<uint64_t>& l1, uint32_t sector) {
  const Buffer data(kSector);
  for (uint32_t i = 0; i < kPerSector; ++i) {
    const uint64_t index = uint64_t{sector} * kPerSector + i;
    store_be<uint64_t>(data.data() + i * 8, index < l1.size() ? l1[index] : 0);
  }
  co_return co_await image_.write(image_.header.l1_offset + uint64_t{sector} * kSector,
                                  data.span());
}

Task<int> Tables::write(Copy& copy) {
  Group group(image_.ready);
  for (Copy::Piece& piece : copy.slices) group.start(write_piece(piece));
  if (!copy.l1_moves)
    for (const uint32_t sector : copy.l1_sectors) group.start(write_l1_sector(copy.l1, sector));
  co_return co_await group.join();
}

void Tables::end_flush(Copy copy, int error) {
  if (error != 0) {
    dirty_l1_.insert(copy.l1_sectors.begin(), copy.l1_sectors.end());
    l1_moves_ |= copy.l1_moves;
    return;
  }
  for (Copy::Piece& piece : copy.slices)
    if (piece.slice->version == piece.version) piece.slice->dirty = false;
  std::erase_if(dirty_, [](const SliceRef& slice) { return !slice->dirty; });
}

void Tables::grow_l1(uint64_t entries) {
  if (entries <= l1_.size()) return;
  l1_.resize(entries);
  l1_moves_ = true;
}

Task<int> Tables::move_l1(const Copy& copy, uint64_t to) {
  const Buffer data(align_up(copy.l1.size() * 8, image_.g.cluster_size()));
  memset(data.data(), 0, data.size());
  for (size_t i = 0; i < copy.l1.size(); ++i) store_be(data.data() + i * 8, copy.l1[i]);
  co_return co_await image_.write(to, data.span());
}

}  // namespace vbdkit::drivers::qcow2
