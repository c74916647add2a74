// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/qcow2/free_space.h"

#include <algorithm>

namespace vbdkit::drivers::qcow2 {
namespace {

// The file grows by at least so much, so that its size changes seldom.
constexpr uint64_t kGrowth = uint64_t{16} << 20;  // bytes

void append(std::vector<HostRange>& ranges, uint64_t first, uint64_t count) {
  if (!ranges.empty() && ranges.back().first + ranges.back().count == first)
    ranges.back().count += count;
  else
    ranges.push_back({first, count, false});
}

}  // namespace

Result<void> FreeSpace::start(const std::vector<uint64_t>& refcount_table,
                              const std::vector<uint64_t>& l1) {
  const Geometry& g = image_.g;
  const Header& h = image_.header;
  scan_end_ = image_.file->info().size.v >> g.cluster_bits;
  fresh_first_ = fresh_end_ = scan_end_;
  blocks_ = refcount_table;
  const auto add = [&](uint64_t offset, uint64_t bytes) {
    for (uint64_t i = 0; i < g.clusters_for(bytes); ++i)
      metadata_.push_back((offset >> g.cluster_bits) + i);
  };
  add(0, g.cluster_size());
  add(h.l1_offset, uint64_t{h.l1_entries} * 8);
  add(h.refcount_table_offset, h.refcount_table_bytes());
  if (h.snapshots > 0) add(h.snapshots_offset, uint64_t{h.snapshots} * 40);
  for (const uint64_t block : refcount_table)
    if (block != 0) add(block, g.cluster_size());
  for (const uint64_t entry : l1)
    if ((entry & kOffsetMask) != 0) add(entry & kOffsetMask, g.cluster_size());
  std::sort(metadata_.begin(), metadata_.end());
  const auto twice = std::adjacent_find(metadata_.begin(), metadata_.end());
  if (twice == metadata_.end()) return {};
  return Error(ErrorKind::kCorrupt,
               image_.path() + ": two of its tables overlap in cluster " + std::to_string(*twice));
}

void FreeSpace::insert(std::map<uint64_t, uint64_t>& ranges, uint64_t first, uint64_t count) {
  auto next = ranges.lower_bound(first);
  if (next != ranges.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == first) {
      first = before->first;
      count += before->second;
      ranges.erase(before);
    }
  }
  if (next != ranges.end() && first + count == next->first) {
    count += next->second;
    next = ranges.erase(next);
  }
  ranges.emplace_hint(next, first, count);
}

void FreeSpace::taken(uint64_t first, uint64_t count) { append(allocated_, first, count); }

HostRange FreeSpace::take(uint64_t most) {
  if (!free_.empty()) {
    auto node = free_.extract(free_.begin());
    const uint64_t first = node.key();
    const uint64_t count = std::min(most, node.mapped());
    if (count < node.mapped()) {
      node.key() += count;
      node.mapped() -= count;
      free_.insert(std::move(node));
    }
    taken(first, count);
    return {first, count, false};
  }
  const uint64_t count = std::min(most, fresh_end_ - fresh_first_);
  if (count == 0) return {};
  const uint64_t first = std::exchange(fresh_first_, fresh_first_ + count);
  taken(first, count);
  return {first, count, true};
}

Task<FreeSpace::Taken> FreeSpace::take_or_wait(uint64_t most) {
  for (;;) {
    const HostRange range = take(most);
    if (range.count > 0) co_return Taken{0, range};
    if (refilling_) {
      co_await turn_.wait();
      continue;
    }
    refilling_ = true;
    const int error = co_await refill();
    refilling_ = false;
    turn_.wake_all();
    if (error != 0) co_return Taken{error, {}};
  }
}

FreeSpace::Taken FreeSpace::take_contiguous(uint64_t count) {
  if (fresh_end_ - fresh_first_ < count) {
    const int error = grow(count - (fresh_end_ - fresh_first_));
    if (error != 0) return {error, {}};
  }
  const uint64_t first = std::exchange(fresh_first_, fresh_first_ + count);
  taken(first, count);
  return {0, {first, count, true}};
}

Task<int> FreeSpace::refill() {
  while (scanned_ < scan_end_ && free_.empty()) {
    const int error = co_await scan();
    if (error != 0) co_return error;
  }
  if (!free_.empty()) co_return 0;
  metadata_ = {};
  blocks_ = {};
  co_return grow(1);
}

// The clusters that the next slice of a refcount block counts.
Task<int> FreeSpace::scan() {
  const Geometry& g = image_.g;
  const uint64_t first = scanned_;
  const uint64_t block = first / g.refcounts_per_block();
  if (block >= blocks_.size() || blocks_[block] == 0) {
    const uint64_t end = std::min(scan_end_, (block + 1) * g.refcounts_per_block());
    scanned_ = end;
    const auto used = std::lower_bound(metadata_.begin(), metadata_.end(), first);
    if (used != metadata_.end() && *used < end)
      co_return image_.mark_corrupt("metadata in cluster " + std::to_string(*used) +
                                    " is not counted as used");
    insert(free_, first, end - first);
    co_return 0;
  }
  const uint64_t per_slice = g.refcounts_per_slice();
  const int error = co_await scan_slice(first, std::min(per_slice, scan_end_ - first));
  if (error == 0) scanned_ = std::min(scan_end_, first + per_slice);
  co_return error;
}

Task<int> FreeSpace::scan_slice(uint64_t first, uint64_t count) {
  const Geometry& g = image_.g;
  const uint64_t in_block = first % g.refcounts_per_block();
  const uint64_t offset = blocks_[first / g.refcounts_per_block()] +
                          in_block / g.refcounts_per_slice() * g.slice_size();
  const SliceCache::Loaded loaded = co_await cache_.load(image_, offset);
  if (loaded.error != 0) co_return loaded.error;
  uint64_t run = 0;  // of free clusters, so far
  for (uint64_t i = 0; i <= count; ++i) {
    if (i < count && g.get_refcount(loaded.slice.bytes(), i) == 0 && !withheld(first + i)) {
      ++run;
      continue;
    }
    if (run == 0) continue;
    const uint64_t start = first + i - run;
    const auto used = std::lower_bound(metadata_.begin(), metadata_.end(), start);
    if (used != metadata_.end() && *used < start + run)
      co_return image_.mark_corrupt("metadata in cluster " + std::to_string(*used) +
                                    " is not counted as used");
    insert(free_, start, run);
    run = 0;
  }
  co_return 0;
}

int FreeSpace::grow(uint64_t least) {
  const Geometry& g = image_.g;
  if (image_.blocking.block_device()) return ENOSPC;
  const uint64_t count = std::max(least, std::max<uint64_t>(kGrowth >> g.cluster_bits, 1));
  // Beyond this, neither refcount table nor L2 entries reach.
  const uint64_t table_reach = g.max_refcount_table_clusters() * g.cluster_size() / 8;
  const uint64_t reach =
      std::min(table_reach * g.refcounts_per_block(), (kOffsetMask >> g.cluster_bits) - 1);
  if (fresh_end_ + count > reach) return EFBIG;
  const auto grown = image_.file->resize(Bytes{(fresh_end_ + count) << g.cluster_bits});
  if (!grown) {
    image_.log.error("qcow2: %s", grown.error().message().c_str());
    return grown.error().sys_errno();
  }
  fresh_end_ += count;
  return 0;
}

void FreeSpace::add_free(uint64_t first, uint64_t count) {
  if (readers_) {
    insert(withheld_, first, count);  // whoever opens the image next finds it
    return;
  }
  const uint64_t end = first + count;
  // What the search has not come to yet it will find.
  if (first < scanned_) insert(free_, first, std::min(end, scanned_) - first);
  if (end > scan_end_) insert(free_, std::max(first, scan_end_), end - std::max(first, scan_end_));
}

void FreeSpace::readers_gone() {
  readers_ = false;
  for (const auto& [first, count] : std::exchange(withheld_, {})) add_free(first, count);
}

void FreeSpace::give_back(uint64_t first, uint64_t count) { append(given_back_, first, count); }

void FreeSpace::return_allocated(std::vector<HostRange> ranges) {
  allocated_.insert(allocated_.begin(), ranges.begin(), ranges.end());
}

void FreeSpace::return_given_back(std::vector<HostRange> ranges) {
  given_back_.insert(given_back_.begin(), ranges.begin(), ranges.end());
}

}  // namespace vbdkit::drivers::qcow2
