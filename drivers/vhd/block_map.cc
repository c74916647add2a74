// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/vhd/block_map.h"

#include <algorithm>

namespace vbdkit::drivers::vhd {
namespace {

constexpr uint32_t kEntriesPerSector = kSectorSize / 4;
constexpr uint32_t kBitsPerSector = kSectorSize * 8;
// The file grows by several blocks at a time, as each change of its size may have to wait for the
// I/O in flight.
constexpr uint32_t kMostBlocksAhead = 16;

}  // namespace

BlockMap::BlockMap(Metadata metadata, std::vector<uint32_t> table,
                   std::optional<std::vector<std::byte>> batmap, bool device)
    : metadata_(std::move(metadata)), table_(std::move(table)) {
  const DynamicHeader& header = metadata_.header;
  end_ = end_of_blocks(metadata_, table_);
  allocated_ = static_cast<uint32_t>(
      std::count_if(table_.begin(), table_.end(), [](uint32_t e) { return e != kUnused; }));
  const uint64_t wide =
      end_ + uint64_t{metadata_.blocks() - allocated_} * (header.block_size + kWideAlignment);
  alignment_ = !device && wide / kSectorSize <= kMaxBlockSector ? kWideAlignment : kDataAlignment;
  next_ = place_after(end_);
  footer_at_ = align_down(metadata_.file_size, kSectorSize) - kFooterSize;
  if (batmap) {
    full_ = std::move(*batmap);
  } else {
    full_.resize(batmap_bytes(metadata_.blocks()));
    if (metadata_.batmap) {
      full_.resize(std::max<size_t>(full_.size(), metadata_.batmap->sectors * kSectorSize));
      for (uint32_t i = 0; i < metadata_.batmap->sectors; ++i) batmap_dirty_.insert(i);
    }
  }
}

void BlockMap::set_full(uint32_t block) {
  if (set_bits(full_.data(), block, 1) == 0 || !metadata_.batmap) return;
  if (block / kBitsPerSector < metadata_.batmap->sectors) filled_.insert(block);
}

bool BlockMap::reads_as_zero(uint32_t block) const {
  const uint64_t offset = bitmap_offset(block);
  const uint64_t end = offset + metadata_.header.bitmap_bytes();
  return offset >= zero_from_ && (footer_at_ >= end || footer_at_ + kFooterSize <= offset);
}

Result<void> BlockMap::allocate(uint32_t block, Node& file) {
  const DynamicHeader& header = metadata_.header;
  const uint64_t offset = next_;
  const uint64_t end = offset + header.bitmap_bytes() + block_size();
  if (offset / kSectorSize > kMaxBlockSector)
    return Error(ErrorKind::kNoSpace, "the file has reached the 2 TiB that the format can address",
                 ENOSPC);
  if (end + kFooterSize > metadata_.file_size) VBDKIT_TRY(grow(end, file));
  table_[block] = static_cast<uint32_t>(offset / kSectorSize);
  table_dirty_.insert(block / kEntriesPerSector);
  if (!reads_as_zero(block)) unsafe_.push_back(block);
  ++allocated_;
  end_ = end;
  next_ = place_after(end);
  return {};
}

// Its bitmap; the data follow it.
uint64_t BlockMap::place_after(uint64_t end) const {
  const uint64_t bitmap = metadata_.header.bitmap_bytes();
  return align_up(end + bitmap, alignment_) - bitmap;
}

Result<void> BlockMap::grow(uint64_t end, Node& file) {
  const uint64_t stride = block_size() + alignment_;
  const uint64_t ahead = std::min(allocated_ / 8, kMostBlocksAhead - 1) * stride;
  const uint64_t needed = align_up(end + kFooterSize, kDataAlignment);
  const uint64_t old = metadata_.file_size;
  Result<void> resized = file.resize(Bytes{needed + ahead});
  if (!resized && ahead > 0) resized = file.resize(Bytes{needed});
  VBDKIT_TRY(std::move(resized));
  metadata_.file_size = file.info().size.v;
  zero_from_ = std::min(zero_from_, old);
  footer_dirty_ = true;
  grown_ = true;
  return {};
}

void BlockMap::add(FlushPlan& plan, std::vector<FlushPlan::Chunk>& to, uint64_t offset,
                   std::span<const std::byte> bytes) const {
  const auto first = static_cast<uint32_t>(plan.memory.size());
  const auto sectors = static_cast<uint32_t>(bytes.size() / kSectorSize);
  plan.memory.resize(first + sectors);
  memcpy(plan.memory[first].bytes.data(), bytes.data(), bytes.size());
  if (!to.empty()) {
    FlushPlan::Chunk& last = to.back();
    if (last.offset + last.sectors * kSectorSize == offset && last.first + last.sectors == first) {
      last.sectors += sectors;
      return;
    }
  }
  to.push_back({offset, first, sectors});
}

FlushPlan BlockMap::plan(std::vector<Bitmap*> bitmaps, BitmapCache& cache) {
  FlushPlan plan;
  plan.bitmaps = std::move(bitmaps);
  for (Bitmap* bitmap : plan.bitmaps) {
    add(plan, plan.first, bitmap_offset(bitmap->block), {bitmap->bits(), bitmap->bytes()});
    cache.pin(*bitmap);
    bitmap->dirty = false;
  }
  plan.table.swap(table_dirty_);
  plan.batmap.swap(batmap_dirty_);
  plan.footer = std::exchange(footer_dirty_, false);

  auto& tables = unsafe_.empty() ? plan.first : plan.second;
  for (const uint32_t sector : plan.table) {
    std::array<std::byte, kSectorSize> bytes;
    for (uint32_t i = 0; i < kEntriesPerSector; ++i) {
      const size_t block = size_t{sector} * kEntriesPerSector + i;
      store_be(bytes.data() + i * 4, block < table_.size() ? table_[block] : kUnused);
    }
    add(plan, tables, metadata_.header.table_offset + uint64_t{sector} * kSectorSize, bytes);
  }
  unsafe_.clear();
  plan.filled = filled_;
  if (!plan.batmap.empty()) {
    BatmapHeader header = *metadata_.batmap;
    std::vector<std::byte> map(full_.begin(), full_.begin() + header.sectors * kSectorSize);
    for (const uint32_t block : plan.filled) clear_bit(map.data(), block);
    header.checksum = batmap_checksum(header.version, map);
    add(plan, tables, metadata_.batmap_header_at, encode_batmap_header(header));
    for (const uint32_t sector : plan.batmap)
      add(plan, tables, header.offset + uint64_t{sector} * kSectorSize,
          std::span(map).subspan(size_t{sector} * kSectorSize, kSectorSize));
  }
  if (plan.footer) {
    footer_at_ = align_down(metadata_.file_size, kSectorSize) - kFooterSize;
    add(plan, plan.first, footer_at_, encode_footer(metadata_.footer));
  }
  return plan;
}

void BlockMap::written(const FlushPlan& plan) {
  for (const uint32_t block : plan.filled) {
    filled_.erase(block);
    batmap_dirty_.insert(block / kBitsPerSector);
  }
}

void BlockMap::restore(const FlushPlan& plan) {
  table_dirty_.insert(plan.table.begin(), plan.table.end());
  batmap_dirty_.insert(plan.batmap.begin(), plan.batmap.end());
  footer_dirty_ = footer_dirty_ || plan.footer;
  // What was safe is not known any more.
  for (const uint32_t sector : plan.table)
    for (uint32_t i = 0; i < kEntriesPerSector; ++i) {
      const uint32_t block = sector * kEntriesPerSector + i;
      if (block < table_.size() && allocated(block)) unsafe_.push_back(block);
    }
}

uint64_t BlockMap::tight_end() const { return align_up(end_ + kFooterSize, kDataAlignment); }

}  // namespace vbdkit::drivers::vhd
