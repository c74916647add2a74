// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/vhd/write_layer.h"

#include <algorithm>

#include "drivers/iov.h"
#include "drivers/vhd/create.h"
#include "drivers/vhd/read_layer.h"

namespace vbdkit::drivers::vhd {
namespace {

// Beside those that are dirty; half a kilobyte each.
constexpr size_t kBitmapsKept = 2048;

// A bit without its block would be taken for that of the block to come.
bool clear_stale_bits(std::vector<std::byte>& batmap, const std::vector<uint32_t>& table) {
  bool found = false;
  for (uint32_t block = 0; block < batmap.size() * 8; ++block) {
    if (!test_bit(batmap.data(), block) || (block < table.size() && table[block] != kUnused))
      continue;
    clear_bit(batmap.data(), block);
    found = true;
  }
  return found;
}

// Two blocks in one place would change each other. An error names them.
Result<void> check_places(const Metadata& metadata, const std::vector<uint32_t>& table) {
  const auto length = static_cast<uint32_t>(
      (metadata.header.bitmap_bytes() + metadata.header.block_size) / kSectorSize);
  // Places are cut into slots of a block's length: two blocks in one slot overlap, and else only
  // neighbours do. So a table of millions of blocks needs no sorting.
  struct Slot {
    uint32_t sector = 0;
    uint32_t block = kUnused;
  };
  uint32_t last = 0;
  for (const uint32_t entry : table)
    if (entry != kUnused) last = std::max(last, entry);
  std::vector<Slot> slots(last / length + 1);
  const auto overlap = [](const Slot& a, const Slot& b) {
    return Error(ErrorKind::kCorrupt, "blocks " + std::to_string(std::min(a.block, b.block)) +
                                          " and " + std::to_string(std::max(a.block, b.block)) +
                                          " overlap");
  };
  for (uint32_t block = 0; block < table.size(); ++block) {
    if (table[block] == kUnused) continue;
    Slot& slot = slots[table[block] / length];
    const Slot here{table[block], block};
    if (slot.block != kUnused) return overlap(slot, here);
    slot = here;
  }
  for (size_t i = 1; i < slots.size(); ++i) {
    const Slot& before = slots[i - 1];
    const Slot& slot = slots[i];
    if (before.block != kUnused && slot.block != kUnused && slot.sector - before.sector < length)
      return overlap(before, slot);
  }
  return {};
}

}  // namespace

struct WriteLayer::Write {
  Request* request = nullptr;
  uint32_t pending = 0;
  int error = 0;
  Write* next = nullptr;
};

// The part of a request that lies in one block.
struct WriteLayer::Piece {
  Request request;  // first: `done` gets the rest from it
  WriteLayer* layer = nullptr;
  Write* write = nullptr;
  Bitmap* bitmap = nullptr;  // pinned; null where the block is full
  uint32_t block = 0;
  uint32_t first = 0;  // sector in the block
  uint32_t count = 0;  // sectors
  uint64_t skip = 0;   // bytes of the request that lie before
  std::vector<iovec> iov;
  Piece* next = nullptr;
};

WriteLayer::WriteLayer(LayerSource source, const LayerContext& context, ImageFile control,
                       std::optional<ParentReference> parent, BlockMap blocks, size_t dirty_limit)
    : path_(std::move(source.path)),
      log_(context.log),
      file_(std::move(source.file)),
      control_(std::move(control)),
      parent_(std::move(parent)),
      info_(describe(blocks.metadata(), *file_)),
      blocks_(std::move(blocks)),
      bitmaps_(*file_, blocks_.metadata().header.sectors_per_block(),
               blocks_.metadata().header.bitmap_bytes(), kBitmapsKept),
      dirty_limit_(dirty_limit) {
  if (!file_->info().volatile_cache) control_.ignore_flush();
}

Result<std::unique_ptr<Layer>> WriteLayer::open(LayerSource source, const LayerContext& context,
                                                ImageFile control, Metadata metadata,
                                                size_t dirty_limit) {
  std::optional<ParentReference> parent;
  if (metadata.differencing()) {
    VBDKIT_ASSIGN(parent, read_parent(control, metadata));
  }
  if (!metadata.locators_inside)
    return Error(ErrorKind::kCorrupt,
                 "vhd: " + source.path +
                     ": a parent locator reaches beyond the end of the file, so that it cannot be "
                     "written; vbdkit convert copies what it holds");
  VBDKIT_ASSIGN(auto table, read_table(control, metadata));
  for (uint32_t block = 0; block < table.size(); ++block)
    if (table[block] != kUnused && !metadata.valid_entry(table[block]))
      return Error(ErrorKind::kCorrupt, "vhd: " + source.path + ": block " + std::to_string(block) +
                                            " would be at sector " + std::to_string(table[block]) +
                                            ", outside the file or inside its tables");
  if (auto r = check_places(metadata, table); !r)
    return std::move(r).error().context("vhd: " + source.path);
  // The copy must hold whenever the footer moves.
  VBDKIT_TRY(mend_footers(control, metadata, table));
  VBDKIT_TRY(source.file->refresh_size());
  auto batmap = read_batmap(control, metadata);
  if (batmap && clear_stale_bits(*batmap, table))
    VBDKIT_TRY(write_batmap(control, metadata, *batmap));
  BlockMap blocks(std::move(metadata), std::move(table), std::move(batmap), control.block_device());
  return std::unique_ptr<Layer>(new WriteLayer(std::move(source), context, std::move(control),
                                               std::move(parent), std::move(blocks), dirty_limit));
}

WriteLayer::~WriteLayer() {
  if (auto r = finish(); !r)
    log_.error("vhd: %s: closing: %s", path_.c_str(), r.error().message().c_str());
}

WriteLayer::Write& WriteLayer::begin(Request& request) {
  Write* write = idle_writes_;
  if (write == nullptr) {
    writes_.push_back(std::make_unique<Write>());
    write = writes_.back().get();
  } else {
    idle_writes_ = write->next;
  }
  write->request = &request;
  write->pending = 1;
  write->error = 0;
  return *write;
}

void WriteLayer::release(Write& write) {
  if (--write.pending > 0) return;
  Request& request = *write.request;
  const int error = write.error;
  write.next = idle_writes_;
  idle_writes_ = &write;
  request.done(request, error);
}

// Calls fn(block, first sector, sectors, bytes of the request before).
template <typename Fn>
void WriteLayer::for_each_block(const Request& request, Fn fn) {
  const uint32_t size = blocks_.block_size();
  const uint64_t end = request.offset + request.length;
  for (uint64_t at = request.offset; at < end;) {
    const uint64_t start = align_down(at, size);
    const uint64_t stop = std::min(end, start + size);
    fn(static_cast<uint32_t>(start / size), static_cast<uint32_t>((at - start) / kSectorSize),
       static_cast<uint32_t>((stop - at) / kSectorSize), at - request.offset);
    at = stop;
  }
}

void WriteLayer::write(Request& request) {
  if (dirty_.size() >= dirty_limit_) {
    held_.push(request);
    if (stage_ == Stage::kIdle) start_flush();
    return;
  }
  start_write(request);
}

void WriteLayer::write_zeroes(Request& request) {
  // Without a parent, what is not there is zero already.
  if (parent_ && (request.flags & kInPlace) == 0)
    write(request);
  else
    change_blocks_in_place(request);
}

void WriteLayer::start_write(Request& request) {
  Write& write = begin(request);
  for_each_block(request, [&](uint32_t block, uint32_t first, uint32_t count, uint64_t skip) {
    ++write.pending;
    start_piece(make_piece(write, block, first, count, skip));
  });
  release(write);
}

// Discards, and zeroes that no bitmap has to tell of: what is allocated, wherever its bits stand.
void WriteLayer::change_blocks_in_place(Request& request) {
  Write& write = begin(request);
  for_each_block(request, [&](uint32_t block, uint32_t first, uint32_t count, uint64_t skip) {
    if (!blocks_.allocated(block)) return;
    ++write.pending;
    submit_piece(make_piece(write, block, first, count, skip));
  });
  release(write);
}

WriteLayer::Piece& WriteLayer::make_piece(Write& write, uint32_t block, uint32_t first,
                                          uint32_t count, uint64_t skip) {
  Piece* piece = idle_pieces_;
  if (piece == nullptr) {
    pieces_.push_back(std::make_unique<Piece>());
    piece = pieces_.back().get();
  } else {
    idle_pieces_ = piece->next;
  }
  piece->layer = this;
  piece->write = &write;
  piece->bitmap = nullptr;
  piece->block = block;
  piece->first = first;
  piece->count = count;
  piece->skip = skip;
  return *piece;
}

void WriteLayer::start_piece(Piece& piece) {
  const uint32_t block = piece.block;
  if (!blocks_.allocated(block)) {
    if (auto r = blocks_.allocate(block, *file_); !r) {
      log_.limited(complaints_, LogLevel::kError, "vhd: %s: adding a block: %s", path_.c_str(),
                   r.error().message().c_str());
      finish_piece(piece, r.error().sys_errno());
      return;
    }
    // Its bitmap is written also where none of its writes should succeed.
    mark_dirty(bitmaps_.create(block));
  }
  if (!blocks_.full(block)) {
    Bitmap* const bitmap = bitmaps_.find(block);
    if (bitmap == nullptr) {
      bitmaps_.load(block, blocks_.bitmap_offset(block), [this, &piece](int error) {
        if (error != 0)
          finish_piece(piece, error);
        else
          start_piece(piece);
      });
      return;
    }
    bitmaps_.pin(*bitmap);
    piece.bitmap = bitmap;
  }
  submit_piece(piece);
}

void WriteLayer::submit_piece(Piece& piece) {
  const Request& from = *piece.write->request;
  Request& request = piece.request;
  request.op = from.op;
  request.flags = from.flags;
  request.offset = blocks_.data_offset(piece.block) + uint64_t{piece.first} * kSectorSize;
  request.length = uint64_t{piece.count} * kSectorSize;
  if (request.length == from.length) {
    request.iov = from.iov;
    request.iov_count = from.iov_count;
  } else if (from.op == Op::kWrite) {
    piece.iov.clear();
    for_each_piece(from.iov, piece.skip, request.length, [&](char* base, size_t n) {
      piece.iov.push_back({base, n});
    });
    request.iov = piece.iov.data();
    request.iov_count = static_cast<uint32_t>(piece.iov.size());
  }
  request.done = [](Request& r, int error) {
    auto& p = *reinterpret_cast<Piece*>(&r);
    p.layer->piece_done(p, error);
  };
  file_->submit(request);
}

void WriteLayer::piece_done(Piece& piece, int error) {
  Bitmap* const bitmap = piece.bitmap;
  if (bitmap != nullptr) {
    const uint32_t changed = error != 0 ? 0 : set_bits(bitmap->bits(), piece.first, piece.count);
    if (changed > 0) {
      bitmap->set += changed;
      mark_dirty(*bitmap);
      if (bitmap->set == blocks_.metadata().header.sectors_per_block())
        blocks_.set_full(piece.block);
      const uint64_t offset =
          uint64_t{piece.block} * blocks_.block_size() + uint64_t{piece.first} * kSectorSize;
      if (listener_ != nullptr)
        listener_->remapped(offset,
                            {piece.request.length, piece.request.offset, Segment::Kind::kData});
    }
    bitmaps_.unpin(*bitmap);
  }
  finish_piece(piece, error);
}

void WriteLayer::finish_piece(Piece& piece, int error) {
  Write& write = *piece.write;
  piece.next = idle_pieces_;
  idle_pieces_ = &piece;
  if (error != 0 && write.error == 0) write.error = error;
  release(write);
}

void WriteLayer::mark_dirty(Bitmap& bitmap) {
  if (std::exchange(bitmap.dirty, true)) return;
  dirty_.push_back(&bitmap);
}

// One map() that waits for bitmaps.
struct WriteLayer::Mapping {
  MapRequest* request = nullptr;
  std::vector<Bitmap*> pinned;
  unsigned pending = 1;
  int error = 0;
};

void WriteLayer::map(MapRequest& request) {
  auto* const mapping = new Mapping;  // answer() deletes it
  mapping->request = &request;
  const uint32_t size = blocks_.block_size();
  const auto last = static_cast<uint32_t>((request.offset + request.length - 1) / size);
  for (auto block = static_cast<uint32_t>(request.offset / size); block <= last; ++block) {
    if (!blocks_.allocated(block) || blocks_.full(block)) continue;
    ++mapping->pending;
    bitmaps_.load(block, blocks_.bitmap_offset(block), [this, mapping, block](int error) {
      if (error != 0) {
        mapping->error = error;
      } else if (Bitmap* bitmap = bitmaps_.find(block)) {
        bitmaps_.pin(*bitmap);
        mapping->pinned.push_back(bitmap);
      }
      if (--mapping->pending == 0) answer(*mapping);
    });
  }
  if (--mapping->pending == 0) answer(*mapping);
}

void WriteLayer::answer(Mapping& mapping) {
  const std::unique_ptr<Mapping> owned(&mapping);
  MapRequest& request = *mapping.request;
  const uint32_t size = blocks_.block_size();
  const uint64_t end = request.offset + request.length;
  for (uint64_t at = request.offset; mapping.error == 0 && at < end;) {
    const auto block = static_cast<uint32_t>(at / size);
    const uint64_t start = align_down(at, size);
    const uint64_t stop = std::min(end, start + size);
    const auto pinned = std::find_if(mapping.pinned.begin(), mapping.pinned.end(),
                                     [&](const Bitmap* b) { return b->block == block; });
    if (pinned == mapping.pinned.end() && !blocks_.full(block)) {
      append_segment(request.segments, {stop - at, 0, Segment::Kind::kAbsent});
    } else {
      append_segments(request.segments, blocks_.full(block) ? nullptr : (*pinned)->bits(),
                      static_cast<uint32_t>((at - start) / kSectorSize),
                      static_cast<uint32_t>((stop - at) / kSectorSize), blocks_.data_offset(block));
    }
    at = stop;
  }
  for (Bitmap* bitmap : mapping.pinned) bitmaps_.unpin(*bitmap);
  request.done(mapping.error);
}

Result<void> WriteLayer::reload_parent() {
  VBDKIT_ASSIGN(const Metadata metadata, read_metadata(control_));
  std::optional<ParentReference> parent;
  if (metadata.differencing()) {
    VBDKIT_ASSIGN(parent, read_parent(control_, metadata));
  }
  parent_ = std::move(parent);
  blocks_.reload(metadata.footer, metadata.header);
  return {};
}

Result<void> WriteLayer::resize(Bytes size) {
  VBDKIT_TRY(finish());
  VBDKIT_TRY(grow(control_, size));
  VBDKIT_TRY(file_->refresh_size());
  VBDKIT_ASSIGN(Metadata metadata, read_metadata(control_));
  VBDKIT_ASSIGN(auto table, read_table(control_, metadata));
  auto batmap = read_batmap(control_, metadata);
  blocks_ =
      BlockMap(std::move(metadata), std::move(table), std::move(batmap), control_.block_device());
  bitmaps_.clear();
  info_ = describe(blocks_.metadata(), *file_);
  return {};
}

}  // namespace vbdkit::drivers::vhd
