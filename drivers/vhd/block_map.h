// SPDX-License-Identifier: LGPL-2.1-or-later
//
// BlockMap: the metadata of a VHD that is being written, but for the sector bitmaps: block table,
// batmap, footer, and where the next block goes; and what of them the file does not know yet. It
// changes in one direction only: blocks are added, never taken away.
//
// The rule a FlushPlan keeps (data are durable before any of it is written): a table entry is
// written together with the block's bitmap where the bitmap's place in the file is known to be
// zero, as then the block holds nothing until the bitmap is there. Elsewhere old bytes would be
// taken for a bitmap, so the bitmap must be durable first. The footer moves to the new end of the
// file in the same step; should its old place be overwritten and the new one not be there yet, the
// copy at the file's start holds.
//
// The reactor's thread; no I/O but for growing the file.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "base/result.h"
#include "drivers/node.h"
#include "drivers/vhd/bitmap_cache.h"
#include "drivers/vhd/metadata.h"

namespace vbdkit::drivers::vhd {

// What one flush writes, copied when it begins: what changes meanwhile waits for the next.
struct FlushPlan {
  struct Chunk {
    uint64_t offset = 0;  // in the file
    uint32_t first = 0;   // in `memory`
    uint32_t sectors = 0;
  };

  std::vector<SectorBuffer> memory;
  std::vector<Chunk> first;
  std::vector<Chunk> second;  // when `first` is durable
  // What it covers, for the case that it fails. Bitmaps are pinned.
  std::vector<Bitmap*> bitmaps;
  std::set<uint32_t> table;   // sectors
  std::set<uint32_t> batmap;  // sectors
  std::set<uint32_t> filled;  // blocks
  bool footer = false;

  bool empty() const { return first.empty() && second.empty(); }
};

class BlockMap {
 public:
  // `device`: the file is a block device, whose size is what somebody has reckoned for the image.
  BlockMap(Metadata metadata, std::vector<uint32_t> table,
           std::optional<std::vector<std::byte>> batmap, bool device);

  const Metadata& metadata() const { return metadata_; }
  uint32_t block_size() const { return metadata_.header.block_size; }

  bool allocated(uint32_t block) const { return table_[block] != kUnused; }
  // Where the block's bitmap stands in the file; its data follow.
  uint64_t bitmap_offset(uint32_t block) const { return uint64_t{table_[block]} * kSectorSize; }
  uint64_t data_offset(uint32_t block) const {
    return bitmap_offset(block) + metadata_.header.bitmap_bytes();
  }
  // Whether all of the block's sectors are there.
  bool full(uint32_t block) const { return test_bit(full_.data(), block); }
  void set_full(uint32_t block);

  // What they say of the parent has changed.
  void reload(const Footer& footer, const DynamicHeader& header) {
    metadata_.footer = footer;
    metadata_.header = header;
  }

  // Gives the block a place, growing the file where it must.
  Result<void> allocate(uint32_t block, Node& file);

  // Takes what is to be written. `bitmaps`: the dirty ones; they are pinned and clean afterwards.
  FlushPlan plan(std::vector<Bitmap*> bitmaps, BitmapCache& cache);
  // It is done.
  void written(const FlushPlan& plan);
  // It failed: what it covered is to be written again; the bitmaps are the caller's.
  void restore(const FlushPlan& plan);
  bool dirty() const { return !table_dirty_.empty() || !batmap_dirty_.empty() || footer_dirty_; }

  // Where the file could end, after the footer; what lies beyond is room for blocks to come.
  uint64_t tight_end() const;
  uint64_t file_size() const { return metadata_.file_size; }
  bool grown() const { return grown_; }

 private:
  bool reads_as_zero(uint32_t block) const;
  uint64_t place_after(uint64_t end) const;
  Result<void> grow(uint64_t end, Node& file);
  void add(FlushPlan& plan, std::vector<FlushPlan::Chunk>& to, uint64_t offset,
           std::span<const std::byte> bytes) const;

  Metadata metadata_;
  std::vector<uint32_t> table_;      // file sectors, host order
  std::vector<std::byte> full_;      // as the batmap
  uint64_t alignment_ = 0;           // bytes, of data
  uint64_t next_ = 0;                // where the next block's bitmap goes
  uint64_t end_ = 0;                 // of the last block
  uint32_t allocated_ = 0;           // blocks
  uint64_t zero_from_ = UINT64_MAX;  // from here on the file is zero, but for blocks and the footer
  uint64_t footer_at_ = 0;           // where the file has its footer
  std::vector<uint32_t> unsafe_;     // new blocks whose bitmap must come before their entry
  // Full blocks of which the file does not know yet. Their batmap bits wait for the next flush: a
  // bit must never be there before the block's entry and bitmap, as it is what is believed.
  std::set<uint32_t> filled_;
  std::set<uint32_t> table_dirty_;
  std::set<uint32_t> batmap_dirty_;
  bool footer_dirty_ = false;
  bool grown_ = false;
};

}  // namespace vbdkit::drivers::vhd
