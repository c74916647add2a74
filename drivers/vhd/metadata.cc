// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/vhd/metadata.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "drivers/vhd/locator.h"

namespace vbdkit::drivers::vhd {
namespace {

Error in_file(const ImageFile& file, Error error) {
  return std::move(error).context("vhd: " + file.path());
}

Error corrupt(const ImageFile& file, std::string what) {
  return in_file(file, Error(ErrorKind::kCorrupt, std::move(what)));
}

Result<Footer> footer_at(const ImageFile& file, uint64_t offset) {
  std::array<std::byte, kFooterSize> bytes{};
  // Virtual PC before 2004 wrote footers of 511 bytes; the last one is reserved and zero.
  VBDKIT_ASSIGN(const size_t n, file.read_some(offset, bytes));
  if (n < kFooterSize - 1) return Error(ErrorKind::kCorrupt, "no VHD footer");
  return parse_footer(bytes);
}

Result<void> take_footer(const ImageFile& file, Metadata& metadata) {
  VBDKIT_ASSIGN(const Bytes size, file.size());
  metadata.file_size = size.v;
  if (size.v < kFooterSize)
    return corrupt(file, "too short for a VHD (" + std::to_string(size.v) + " bytes)");
  const uint64_t tail_size =
      size.v % kSectorSize == kFooterSize - 1 ? kFooterSize - 1 : kFooterSize;
  auto tail = footer_at(file, size.v - tail_size);
  const auto copy = footer_at(file, 0);
  if (tail) {
    metadata.footer = *tail;
    metadata.tail_valid = true;
    // As if it were whole: all who look for its place count from the end.
    if (tail_size < kFooterSize) metadata.file_size = size.v + 1;
    metadata.copy_valid =
        copy.ok() && tail->type != DiskType::kFixed && encode_footer(*copy) == encode_footer(*tail);
    return {};
  }
  // A fixed disk has no copy; what stands at its start belongs to the guest.
  if (!copy || copy->type == DiskType::kFixed) return in_file(file, std::move(tail).error());
  metadata.footer = *copy;
  metadata.copy_valid = true;
  return {};
}

// What the header's texts say, in its order; a locator that cannot be read is left out.
std::vector<std::string> parent_texts(const ImageFile& file, const Metadata& metadata) {
  std::vector<std::string> texts;
  for (const Locator& locator : metadata.header.locators) {
    if (locator.length == 0 || locator.length > kMaxLocatorText ||
        !range_inside(locator.offset, locator.length, metadata.file_size))
      continue;
    std::vector<std::byte> bytes(locator.length);
    if (!file.read(locator.offset, bytes)) continue;
    if (auto text = decode_locator(locator.code, bytes)) texts.push_back(std::move(*text));
  }
  if (auto name = decode_parent_name(metadata.header.parent_name)) texts.push_back(*name);
  return texts;
}

void list_structures(Metadata& metadata) {
  const DynamicHeader& header = metadata.header;
  auto& list = metadata.structures;
  const auto add = [&](uint64_t start, uint64_t length) {
    list.push_back({start, start + length});
  };
  add(0, kFooterSize);
  add(metadata.footer.data_offset, kHeaderSize);
  add(header.table_offset, header.table_bytes());
  if (metadata.batmap) {
    add(metadata.batmap_header_at, kSectorSize);
    add(metadata.batmap->offset, uint64_t{metadata.batmap->sectors} * kSectorSize);
  }
  for (const Locator& locator : header.locators) {
    if (locator.code == 0 || locator.length == 0) continue;
    const uint64_t length = std::max<uint64_t>(locator.space_bytes(), locator.length);
    if (range_inside(locator.offset, length, metadata.file_size))
      add(locator.offset, length);
    else
      metadata.locators_inside = false;
  }
}

}  // namespace

uint32_t Metadata::blocks() const {
  return static_cast<uint32_t>((size().v + header.block_size - 1) / header.block_size);
}

uint64_t Metadata::blocks_begin() const {
  uint64_t end = structures.back().end;
  for (const Range& range : structures) end = std::max(end, range.end);
  if (!made_here(footer)) return end;
  return std::max(
      end, header.table_offset + reserved_table_bytes(footer.original_size, header.block_size));
}

bool Metadata::touches_structures(uint64_t start, uint64_t end) const {
  return std::any_of(structures.begin(), structures.end(),
                     [&](const Range& r) { return start < r.end && r.start < end; });
}

bool Metadata::valid_entry(uint32_t entry) const {
  const uint64_t start = uint64_t{entry} * kSectorSize;
  const uint64_t length = uint64_t{header.bitmap_bytes()} + header.block_size;
  return range_inside(start, length, file_size) && !touches_structures(start, start + length);
}

uint64_t batmap_header_place(const Footer& footer, const DynamicHeader& header) {
  return made_here(footer) ? footer.data_offset + kHeaderSize : header.table_end();
}

Result<Metadata> read_metadata(const ImageFile& file) {
  Metadata metadata;
  VBDKIT_TRY(take_footer(file, metadata));
  const Footer& footer = metadata.footer;
  if (metadata.fixed()) {
    if (footer.disk_size() > metadata.file_size)
      return corrupt(file, "shorter than the disk in it (" + std::to_string(metadata.file_size) +
                               " bytes, the disk has " + std::to_string(footer.disk_size()) + ")");
    return metadata;
  }
  if (!range_inside(footer.data_offset, kHeaderSize, metadata.file_size) ||
      footer.data_offset % kSectorSize != 0)
    return corrupt(file, "its dynamic header would be outside the file");
  std::array<std::byte, kHeaderSize> bytes;
  if (auto r = file.read(footer.data_offset, bytes); !r) return in_file(file, std::move(r).error());
  auto header = parse_header(bytes);
  if (!header) return in_file(file, std::move(header).error());
  metadata.header = *header;
  if (!range_inside(header->table_offset, header->table_bytes(), metadata.file_size))
    return corrupt(file, "its block table would reach beyond the file");
  if (metadata.size().v > uint64_t{header->blocks} * header->block_size)
    return corrupt(file, "its block table of " + std::to_string(header->blocks) +
                             " entries is too small for the disk");
  // Only they who reserve the room for a batmap are believed to have one: elsewhere the place
  // behind the table is the bitmap of a block, whose bits a guest chooses.
  std::array<std::byte, 512> map;
  metadata.batmap_header_at = batmap_header_place(footer, *header);
  if ((made_by_tapdisk(footer) || made_here(footer)) &&
      file.read(metadata.batmap_header_at, map).ok())
    metadata.batmap = parse_batmap_header(map);
  if (metadata.batmap &&
      !range_inside(metadata.batmap->offset, uint64_t{metadata.batmap->sectors} * kSectorSize,
                    metadata.file_size))
    metadata.batmap.reset();
  list_structures(metadata);
  return metadata;
}

Result<std::vector<uint32_t>> read_table(const ImageFile& file, const Metadata& metadata) {
  std::vector<uint32_t> table(metadata.header.blocks);
  const auto bytes = std::as_writable_bytes(std::span(table));
  if (auto r = file.read(metadata.header.table_offset, bytes); !r)
    return in_file(file, std::move(r).error());
  for (uint32_t& entry : table) entry = __builtin_bswap32(entry);
  return table;
}

std::optional<std::vector<std::byte>> read_batmap(const ImageFile& file, const Metadata& metadata) {
  if (!metadata.batmap) return std::nullopt;
  const BatmapHeader& header = *metadata.batmap;
  std::vector<std::byte> map(size_t{header.sectors} * kSectorSize);
  if (!file.read(header.offset, map)) return std::nullopt;
  // A crash can leave map and checksum of different times; the map only saves work.
  if (batmap_checksum(header.version, map) != header.checksum) return std::nullopt;
  map.resize(std::max(map.size(), batmap_bytes(metadata.blocks())));
  return map;
}

uint64_t end_of_blocks(const Metadata& metadata, const std::vector<uint32_t>& table) {
  uint64_t end = metadata.blocks_begin();
  for (const uint32_t entry : table)
    if (entry != kUnused)
      end = std::max(end, uint64_t{entry} * kSectorSize + metadata.header.bitmap_bytes() +
                              metadata.header.block_size);
  return end;
}

Result<void> mend_footers(ImageFile& file, Metadata& metadata, const std::vector<uint32_t>& table) {
  if (metadata.fixed() || (metadata.tail_valid && metadata.copy_valid)) return {};
  const auto footer = encode_footer(metadata.footer);
  uint64_t at = align_down(metadata.file_size, kSectorSize) - kFooterSize;
  if (!metadata.tail_valid) {
    const uint64_t end = end_of_blocks(metadata, table);
    if (at < end && file.block_device())
      return corrupt(file, "a block stands where its footer would have to");
    if (at < end) at = align_up(end + kFooterSize, kDataAlignment) - kFooterSize;
    VBDKIT_TRY(file.write(at, footer));
  } else {
    VBDKIT_TRY(file.write(0, footer));
  }
  VBDKIT_TRY(file.flush());
  metadata.file_size = std::max(metadata.file_size, at + kFooterSize);
  metadata.tail_valid = true;
  metadata.copy_valid = true;
  return {};
}

Result<void> write_batmap(ImageFile& file, const Metadata& metadata,
                          std::span<const std::byte> map) {
  BatmapHeader header = *metadata.batmap;
  map = map.first(size_t{header.sectors} * kSectorSize);
  header.checksum = batmap_checksum(header.version, map);
  VBDKIT_TRY(file.write(header.offset, map));
  VBDKIT_TRY(file.write(metadata.batmap_header_at, encode_batmap_header(header)));
  return file.flush();
}

namespace {

bool has_uuid(const std::string& path, const std::string& uuid) {
  const auto file = ImageFile::open(path, ImageFile::Mode::kRead);
  if (!file) return false;
  const auto metadata = read_metadata(*file);
  return metadata && to_string(metadata->footer.uuid) == uuid;
}

// The first candidate that is there. Several are where images were moved, or while the image is put
// on another parent: then the UUID tells which one is meant.
std::string choose_parent(const ParentReference& reference) {
  std::vector<std::string> found;
  for (const std::string& path : reference.tried)
    if (access(path.c_str(), F_OK) == 0) found.push_back(path);
  if (found.empty()) return reference.tried.front();
  if (found.size() > 1 && !reference.uuid.empty())
    for (const std::string& path : found)
      if (has_uuid(path, reference.uuid)) return path;
  return found.front();
}

}  // namespace

Result<ParentReference> read_parent(const ImageFile& file, const Metadata& metadata) {
  ParentReference reference;
  const std::vector<std::string> texts = parent_texts(file, metadata);
  reference.tried = parent_candidates(file.path(), texts);
  // Where the child is reached through a link, its parent stands beside the file itself.
  std::error_code error;
  const auto real = std::filesystem::canonical(file.path(), error);
  if (!error)
    for (std::string& path : parent_candidates(real.string(), texts))
      if (std::find(reference.tried.begin(), reference.tried.end(), path) == reference.tried.end())
        reference.tried.push_back(std::move(path));
  if (reference.tried.empty()) return corrupt(file, "it has a parent but does not say where");
  const DynamicHeader& header = metadata.header;
  // tapdisk's mark of a parent that is no VHD.
  reference.format = is_null(header.parent_uuid) ? "raw" : "vhd";
  if (!is_null(header.parent_uuid)) reference.uuid = to_string(header.parent_uuid);
  reference.path = choose_parent(reference);
  if (header.parent_timestamp != 0) reference.modified = from_vhd_time(header.parent_timestamp);
  return reference;
}

}  // namespace vbdkit::drivers::vhd
