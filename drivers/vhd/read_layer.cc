// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/vhd/read_layer.h"

#include <algorithm>

namespace vbdkit::drivers::vhd {
namespace {

// A window is one block on small disks. On large ones several blocks share a window, as the map has
// a cost per window that would otherwise reach its memory limit before the disk's end.
uint64_t window_of(Bytes size, uint32_t block) {
  const uint64_t gib = size.v >> 30;
  const uint64_t window = gib > 1024 ? 16 << 20 : gib > 128 ? 8 << 20 : 2 << 20;
  return std::max<uint64_t>(window, block);
}

}  // namespace

LayerInfo describe(const Metadata& metadata, const Node& file) {
  LayerInfo info;
  info.size = metadata.size();
  info.format = "vhd";
  if (!is_null(metadata.footer.uuid)) info.uuid = to_string(metadata.footer.uuid);
  info.map_window = window_of(info.size, metadata.header.block_size);
  info.cluster = metadata.header.block_size;
  info.gaps = true;
  info.discard_granularity = file.info().discard_granularity;
  info.can_write_zeroes = file.info().can_write_zeroes;
  return info;
}

void append_segment(std::vector<Segment>& segments, Segment segment) {
  if (!segments.empty()) {
    Segment& last = segments.back();
    if (last.kind == segment.kind && (segment.kind != Segment::Kind::kData ||
                                      last.file_offset + last.length == segment.file_offset)) {
      last.length += segment.length;
      return;
    }
  }
  segments.push_back(segment);
}

void append_segments(std::vector<Segment>& segments, const std::byte* bitmap, uint32_t first,
                     uint32_t count, uint64_t data) {
  const uint32_t end = first + count;
  while (first < end) {
    const bool there = bitmap == nullptr || test_bit(bitmap, first);
    const uint32_t stop = bitmap == nullptr ? end : run_end(bitmap, first, end);
    const uint64_t length = uint64_t{stop - first} * kSectorSize;
    append_segment(segments, {length, there ? data + uint64_t{first} * kSectorSize : 0,
                              there ? Segment::Kind::kData : Segment::Kind::kAbsent});
    first = stop;
  }
}

ReadLayer::ReadLayer(LayerSource source, const LayerContext& context, Metadata metadata,
                     std::optional<std::vector<std::byte>> batmap,
                     std::optional<ParentReference> parent)
    : path_(std::move(source.path)),
      metadata_(std::move(metadata)),
      batmap_(std::move(batmap)),
      parent_(std::move(parent)),
      log_(context.log),
      file_(std::move(source.file)),
      info_(describe(metadata_, *file_)),
      table_(*file_, metadata_.header.table_offset, metadata_.blocks()) {}

Result<void> ReadLayer::resize(Bytes) {
  return Error(ErrorKind::kPermission, path_ + ": opened read-only", EROFS);
}

// One map() on its way.
struct ReadLayer::Mapping {
  struct Bitmap {
    Request request;  // first: `done` gets the rest from it
    iovec iov{};
    ReadLayer* layer = nullptr;
    Mapping* mapping = nullptr;
  };

  MapRequest* request = nullptr;
  uint32_t first = 0;             // block
  std::vector<uint32_t> entries;  // of the blocks touched
  std::vector<Bitmap> bitmaps;    // by block; those without `layer` are not read
  std::vector<SectorBuffer> bits;
  unsigned pending = 1;
  int error = 0;
};

void ReadLayer::map(MapRequest& request) {
  const uint32_t block = metadata_.header.block_size;
  auto* const mapping = new Mapping;  // answer() deletes it
  mapping->request = &request;
  mapping->first = static_cast<uint32_t>(request.offset / block);
  const uint64_t last = (request.offset + request.length - 1) / block;
  mapping->entries.resize(last - mapping->first + 1);
  table_.get(mapping->first, mapping->entries, [this, mapping](int error) {
    mapping->error = error;
    if (error == 0) read_bitmaps(*mapping);
    if (--mapping->pending == 0) answer(*mapping);
  });
}

// Where it seems to be beyond the file's end, that is looked at again: a coalescer may be adding to
// a parent.
bool ReadLayer::valid(uint32_t entry) {
  if (metadata_.valid_entry(entry)) return true;
  if (!file_->refresh_size() || file_->info().size.v <= metadata_.file_size) return false;
  metadata_.file_size = file_->info().size.v;
  return metadata_.valid_entry(entry);
}

void ReadLayer::read_bitmaps(Mapping& mapping) {
  const size_t size = metadata_.header.bitmap_bytes();
  const size_t count = mapping.entries.size();
  std::vector<size_t> wanted;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t entry = mapping.entries[i];
    const auto block = static_cast<uint32_t>(mapping.first + i);
    if (entry == kUnused) continue;
    if (!valid(entry)) {
      log_.limited(complaints_, LogLevel::kError,
                   "vhd: %s: block %u would be at sector %u, outside the file or inside its tables",
                   path_.c_str(), block, entry);
      mapping.error = EIO;
      return;
    }
    if (!batmap_ || !test_bit(batmap_->data(), block)) wanted.push_back(i);
  }
  if (wanted.empty()) return;
  mapping.bits.resize(count * size / kSectorSize);
  mapping.bitmaps.resize(count);
  for (const size_t i : wanted) {
    Mapping::Bitmap& bitmap = mapping.bitmaps[i];
    bitmap.layer = this;
    bitmap.mapping = &mapping;
    bitmap.iov = {mapping.bits[i * size / kSectorSize].bytes.data(), size};
    bitmap.request.op = Op::kRead;
    bitmap.request.offset = uint64_t{mapping.entries[i]} * kSectorSize;
    bitmap.request.length = size;
    bitmap.request.iov = &bitmap.iov;
    bitmap.request.iov_count = 1;
    bitmap.request.done = [](Request& r, int error) {
      auto& b = *reinterpret_cast<Mapping::Bitmap*>(&r);
      Mapping& m = *b.mapping;
      if (error != 0) m.error = error;
      if (--m.pending == 0) b.layer->answer(m);
    };
    ++mapping.pending;
    file_->submit(bitmap.request);
  }
}

void ReadLayer::answer(Mapping& mapping) {
  const std::unique_ptr<Mapping> owned(&mapping);
  MapRequest& request = *mapping.request;
  const DynamicHeader& header = metadata_.header;
  const uint64_t end = request.offset + request.length;
  for (uint64_t at = request.offset; mapping.error == 0 && at < end;) {
    const size_t i = at / header.block_size - mapping.first;
    const uint64_t start = align_down(at, header.block_size);
    const uint64_t stop = std::min(end, start + header.block_size);
    const uint32_t entry = mapping.entries[i];
    if (entry == kUnused) {
      append_segment(request.segments, {stop - at, 0, Segment::Kind::kAbsent});
    } else {
      const bool read = i < mapping.bitmaps.size() && mapping.bitmaps[i].layer != nullptr;
      append_segments(
          request.segments,
          read ? mapping.bits[i * header.bitmap_bytes() / kSectorSize].bytes.data() : nullptr,
          static_cast<uint32_t>((at - start) / kSectorSize),
          static_cast<uint32_t>((stop - at) / kSectorSize),
          uint64_t{entry} * kSectorSize + header.bitmap_bytes());
    }
    at = stop;
  }
  request.done(mapping.error);
}

}  // namespace vbdkit::drivers::vhd
