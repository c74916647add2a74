// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/vhd/create.h"

#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <limits>

#include "drivers/vhd/locator.h"
#include "drivers/vhd/metadata.h"

namespace vbdkit::drivers::vhd {
namespace {

constexpr uint64_t kLocatorSpace = 4096;  // bytes, for each
constexpr uint32_t kTimesLarger = 4;      // room in the batmap
constexpr std::array<uint32_t, 3> kLocatorCodes{kMacX, kW2ku, kW2ru};

Error failed(const std::string& path, Error error) {
  return std::move(error).context("vhd: create " + path);
}

Error invalid(std::string what) { return Error(ErrorKind::kInvalid, std::move(what)); }

Result<Uuid> new_uuid() {
  Uuid uuid;
  if (getrandom(uuid.data(), uuid.size(), 0) != static_cast<ssize_t>(uuid.size()))
    return Error::from_errno(errno, "random numbers");
  uuid[6] = static_cast<uint8_t>(0x40 | (uuid[6] & 0x0f));
  uuid[8] = static_cast<uint8_t>(0x80 | (uuid[8] & 0x3f));
  return uuid;
}

// From the directory that `path` is in.
Result<std::string> relative_to(const std::string& path, const std::string& parent) {
  namespace fs = std::filesystem;
  std::error_code error;
  fs::path directory = fs::path(path).parent_path();
  if (directory.empty()) directory = ".";
  const fs::path from = fs::canonical(directory, error);
  if (error) return Error::from_errno(error.value(), "open " + directory.string());
  const fs::path to = fs::canonical(parent, error);
  if (error) return Error::from_errno(error.value(), "open " + parent);
  return to.lexically_relative(from).string();
}

struct ParentFacts {
  Bytes size;
  Uuid uuid{};
  int64_t modified = 0;
};

Result<ParentFacts> look_at_parent(const std::string& path, bool raw) {
  VBDKIT_ASSIGN(const ImageFile file, ImageFile::open(path, ImageFile::Mode::kRead));
  ParentFacts facts;
  facts.modified = file.modified();
  if (raw) {
    VBDKIT_ASSIGN(const Bytes size, file.size());
    facts.size = Bytes{align_down(size.v, kSectorSize)};
    return facts;
  }
  VBDKIT_ASSIGN(const Metadata metadata, read_metadata(file));
  facts.size = metadata.size();
  facts.uuid = metadata.footer.uuid;
  if (is_null(facts.uuid))
    return invalid(path + " has no UUID, so no child could tell it from other images");
  return facts;
}

// Who it is, by UUID and names. Locators get their texts here, not their places.
using LocatorTexts = std::array<std::vector<std::byte>, kLocators>;
Result<LocatorTexts> name_parent(DynamicHeader& header, const std::string& path,
                                 const std::string& parent, const ParentFacts& facts) {
  VBDKIT_ASSIGN(const std::string relative, relative_to(path, parent));
  header.parent_uuid = facts.uuid;
  header.parent_timestamp = to_vhd_time(facts.modified);
  header.parent_name = encode_parent_name(std::filesystem::path(relative).filename().string());
  LocatorTexts texts;
  for (size_t i = 0; i < kLocatorCodes.size(); ++i) {
    texts[i] = encode_locator(kLocatorCodes[i], relative);
    if (texts[i].size() > kLocatorSpace)
      return invalid("the way from " + path + " to its parent " + parent + " is too long a name");
    header.locators[i].code = kLocatorCodes[i];
    header.locators[i].length = static_cast<uint32_t>(texts[i].size());
  }
  return texts;
}

Result<void> write_texts(ImageFile& file, const DynamicHeader& header, const LocatorTexts& texts) {
  for (size_t i = 0; i < kLocatorCodes.size(); ++i) {
    std::vector<std::byte> padded = texts[i];
    padded.resize(header.locators[i].space_bytes());
    VBDKIT_TRY(file.write(header.locators[i].offset, padded));
  }
  return {};
}

Result<void> write_unused(ImageFile& file, uint64_t offset, uint64_t end) {
  const std::vector<std::byte> unused(std::min<uint64_t>(end - offset, 1 << 20), std::byte{0xff});
  while (offset < end) {
    const size_t n = std::min<uint64_t>(unused.size(), end - offset);
    VBDKIT_TRY(file.write(offset, std::span(unused).first(n)));
    offset += n;
  }
  return {};
}

uint64_t footer_place(uint64_t end, const ImageFile& file, uint64_t device_size) {
  if (file.block_device()) return align_down(device_size, kSectorSize) - kFooterSize;
  return align_up(end + kFooterSize, kDataAlignment) - kFooterSize;
}

Result<void> write_sparse(ImageFile& file, const CreateOptions& options, Footer& footer,
                          DynamicHeader& header, const LocatorTexts& texts) {
  header.block_size = options.block_size;
  header.blocks =
      static_cast<uint32_t>((footer.current_size + options.block_size - 1) / options.block_size);
  footer.data_offset = kFooterSize;
  uint64_t at = footer.data_offset + kHeaderSize;
  BatmapHeader batmap;
  if (options.batmap) {
    const uint32_t limit = static_cast<uint32_t>(kMaxSize / options.block_size);
    const uint64_t bytes = batmap_bytes(std::min(header.blocks * kTimesLarger, limit));
    batmap.offset = at + kSectorSize;
    batmap.sectors = static_cast<uint32_t>(bytes / kSectorSize);
    batmap.checksum = batmap_checksum(batmap.version, {});  // of zeroes: the same as of nothing
    at = batmap.offset + bytes;
  }
  for (size_t i = 0; i < kLocatorCodes.size() && footer.type == DiskType::kDifferencing; ++i) {
    header.locators[i].space = kLocatorSpace;
    header.locators[i].offset = at;
    at += kLocatorSpace;
  }
  header.table_offset = align_up(at, kDataAlignment);
  const uint64_t end =
      header.table_offset + reserved_table_bytes(footer.original_size, options.block_size);
  VBDKIT_ASSIGN(const Bytes device, file.size());
  const uint64_t footer_at = footer_place(end, file, device.v);
  if (file.block_device() && footer_at < end)
    return Error(ErrorKind::kNoSpace, file.path() + ": too small for the image's tables", ENOSPC);
  VBDKIT_TRY(file.resize(Bytes{footer_at + kFooterSize}));
  VBDKIT_TRY(file.write(footer.data_offset, encode_header(header)));
  if (options.batmap) {
    const std::vector<std::byte> zeroes(size_t{batmap.sectors} * kSectorSize);
    VBDKIT_TRY(file.write(batmap.offset - kSectorSize, encode_batmap_header(batmap)));
    VBDKIT_TRY(file.write(batmap.offset, zeroes));
  }
  if (footer.type == DiskType::kDifferencing) VBDKIT_TRY(write_texts(file, header, texts));
  VBDKIT_TRY(write_unused(file, header.table_offset, header.table_end()));
  VBDKIT_TRY(file.write(0, encode_footer(footer)));
  return file.write(footer_at, encode_footer(footer));
}

Result<void> write_fixed(ImageFile& file, const Footer& footer) {
  VBDKIT_ASSIGN(const Bytes device, file.size());
  if (file.block_device() && device.v < footer.current_size + kFooterSize)
    return Error(ErrorKind::kNoSpace, file.path() + ": too small for the disk", ENOSPC);
  const uint64_t at =
      file.block_device() ? align_down(device.v, kSectorSize) - kFooterSize : footer.current_size;
  VBDKIT_TRY(file.resize(Bytes{at + kFooterSize}));
  return file.write(at, encode_footer(footer));
}

Result<void> check_options(const CreateOptions& options, uint64_t size) {
  if (!std::has_single_bit(options.block_size) || options.block_size < kMinBlock ||
      options.block_size > kMaxBlock)
    return invalid("block size " + std::to_string(options.block_size) +
                   ": expected a power of two from 512K to 2M");
  if (size == 0) return invalid("a size is missing");
  if (size > kMaxSize)
    return invalid(std::to_string(size) + " bytes are more than the 2040 GiB of the format");
  return {};
}

Geometry geometry_for(uint64_t size) {
  const Geometry geometry = geometry_of(Bytes{size});
  // With the largest geometry, those who go by it look at the size instead.
  return geometry.bytes() == size ? geometry : kLargestGeometry;
}

Result<void> create_in(ImageFile& file, const CreateOptions& options) {
  Footer footer;
  DynamicHeader header;
  LocatorTexts texts;
  uint64_t size = align_up(options.size.v, kSectorSize);
  if (options.type == DiskType::kDifferencing) {
    VBDKIT_ASSIGN(const ParentFacts parent, look_at_parent(options.parent, options.raw_parent));
    if (size == 0) size = parent.size.v;
    if (size < parent.size.v) return invalid("a disk smaller than its parent");
    VBDKIT_ASSIGN(texts, name_parent(header, file.path(), options.parent, parent));
  }
  VBDKIT_TRY(check_options(options, size));
  VBDKIT_ASSIGN(footer.uuid, new_uuid());
  footer.timestamp = to_vhd_time(time(nullptr));
  footer.original_size = size;
  footer.current_size = size;
  footer.geometry = geometry_for(size);
  footer.type = options.type;
  VBDKIT_TRY(options.type == DiskType::kFixed ? write_fixed(file, footer)
                                              : write_sparse(file, options, footer, header, texts));
  return file.flush();
}

// The end first: it is the one that counts where the two differ.
Result<void> replace_footer(ImageFile& file, const Metadata& metadata, const Footer& footer) {
  VBDKIT_TRY(
      file.write(align_down(metadata.file_size, kSectorSize) - kFooterSize, encode_footer(footer)));
  VBDKIT_TRY(file.flush());
  if (metadata.fixed()) return {};
  VBDKIT_TRY(file.write(0, encode_footer(footer)));
  return file.flush();
}

// A larger table: in its place where the room behind it is free, else at the end of the file. The
// header's fields for it lie in one sector, so they change at once or not at all.
Result<void> grow_table(ImageFile& file, Metadata& metadata, uint32_t blocks) {
  DynamicHeader header = metadata.header;
  VBDKIT_ASSIGN(const std::vector<uint32_t> table, read_table(file, metadata));
  header.blocks = blocks;
  const uint64_t old_end = metadata.header.table_end();
  bool in_place =
      range_inside(header.table_offset, header.table_bytes(), metadata.file_size - kFooterSize) &&
      !metadata.touches_structures(old_end, header.table_end()) && made_here(metadata.footer);
  for (const uint32_t entry : table) {
    const uint64_t start = uint64_t{entry} * kSectorSize;
    if (entry != kUnused && start < header.table_end() &&
        start + header.bitmap_bytes() + header.block_size > old_end)
      in_place = false;
  }
  if (in_place) {
    VBDKIT_TRY(write_unused(file, old_end, header.table_end()));
  } else {
    if (file.block_device())
      return Error(ErrorKind::kUnsupported, "on a block device its block table cannot move");
    header.table_offset = align_up(end_of_blocks(metadata, table) + kFooterSize, kDataAlignment);
    uint64_t end = header.table_end();
    // tapdisk expects its batmap behind the table, wherever that is. An empty one is always right.
    BatmapHeader batmap;
    const bool move_batmap = metadata.batmap && !made_here(metadata.footer);
    if (move_batmap) {
      batmap.offset = end + kSectorSize;
      batmap.sectors = static_cast<uint32_t>(batmap_bytes(blocks) / kSectorSize);
      batmap.checksum = batmap_checksum(batmap.version, {});
      end = batmap.offset + batmap_bytes(blocks);
    }
    const uint64_t footer_at = footer_place(end, file, 0);
    VBDKIT_TRY(file.resize(Bytes{footer_at + kFooterSize}));
    VBDKIT_TRY(write_unused(file, header.table_offset, header.table_end()));
    std::vector<uint32_t> entries = table;
    for (uint32_t& entry : entries) entry = __builtin_bswap32(entry);
    VBDKIT_TRY(file.write(header.table_offset, std::as_bytes(std::span(entries))));
    if (move_batmap)
      VBDKIT_TRY(file.write(batmap.offset - kSectorSize, encode_batmap_header(batmap)));
    VBDKIT_TRY(file.write(footer_at, encode_footer(metadata.footer)));
    metadata.file_size = footer_at + kFooterSize;
  }
  VBDKIT_TRY(file.flush());
  const auto bytes = encode_header(header);
  VBDKIT_TRY(file.write(metadata.footer.data_offset, std::span(bytes).first(kSectorSize)));
  return file.flush();
}

}  // namespace

Result<void> create(const std::string& path, const CreateOptions& options) {
  auto file = ImageFile::open(path, ImageFile::Mode::kCreate);
  if (!file) return failed(path, std::move(file).error());
  if (auto r = create_in(*file, options); !r) {
    if (!file->block_device()) unlink(path.c_str());
    return failed(path, std::move(r).error());
  }
  return {};
}

Result<void> grow(ImageFile& file, Bytes size) {
  VBDKIT_ASSIGN(Metadata metadata, read_metadata(file));
  const uint64_t wanted = align_up(size.v, kSectorSize);
  if (wanted < metadata.size().v)
    return Error(ErrorKind::kUnsupported, "a VHD cannot be made smaller");
  if (wanted == metadata.size().v) return {};
  if (wanted > kMaxSize && !metadata.fixed())
    return invalid(std::to_string(wanted) + " bytes are more than the 2040 GiB of the format");
  Footer footer = metadata.footer;
  footer.current_size = wanted;
  footer.geometry = geometry_for(wanted);
  if (metadata.fixed()) {
    if (file.block_device() && metadata.file_size < wanted + kFooterSize)
      return Error(ErrorKind::kNoSpace, "the device is too small", ENOSPC);
    const uint64_t old = align_down(metadata.file_size, kSectorSize) - kFooterSize;
    // The footer's own write extends the file, so that there is no time without one.
    if (!file.block_device()) metadata.file_size = wanted + kFooterSize;
    VBDKIT_TRY(replace_footer(file, metadata, footer));
    if (file.block_device() || old >= wanted) return {};
    // The old footer has become a part of the disk.
    VBDKIT_TRY(file.write(old, std::array<std::byte, kFooterSize>{}));
    return file.flush();
  }
  const uint32_t block = metadata.header.block_size;
  const auto blocks = static_cast<uint32_t>((wanted + block - 1) / block);
  if (blocks > metadata.header.blocks) VBDKIT_TRY(grow_table(file, metadata, blocks));
  return replace_footer(file, metadata, footer);
}

Result<std::vector<FilePatch>> plan_parent(const std::string& path, const std::string& parent,
                                           bool raw_parent) {
  VBDKIT_ASSIGN(const ImageFile file, ImageFile::open(path, ImageFile::Mode::kRead));
  VBDKIT_ASSIGN(const Metadata metadata, read_metadata(file));
  if (!metadata.differencing())
    return invalid("vhd: " + path + ": has no parent, so it cannot get another one");
  VBDKIT_ASSIGN(const ParentFacts facts, look_at_parent(parent, raw_parent));
  DynamicHeader header = metadata.header;
  VBDKIT_ASSIGN(const LocatorTexts texts, name_parent(header, path, parent, facts));
  // Texts go where the old ones are; those that are too long for that, and other kinds of
  // locators, go.
  std::vector<FilePatch> patches;
  for (size_t i = 0; i < kLocators; ++i) {
    Locator& locator = header.locators[i];
    const bool ours = i < kLocatorCodes.size();
    const bool fits = ours && locator.offset != 0 && locator.length <= locator.space_bytes() &&
                      range_inside(locator.offset, locator.space_bytes(), metadata.file_size);
    if (fits)
      patches.push_back({locator.offset, texts[i]});
    else
      locator = {};
  }
  if (patches.empty())
    return Error(ErrorKind::kUnsupported, "vhd: " + path + ": has no room for its parent's name");
  const auto bytes = encode_header(header);
  FilePatch switched{metadata.footer.data_offset, {bytes.begin(), bytes.end()}};
  // Until the header has the new parent's UUID, one name of the old one must be left.
  patches.insert(patches.size() > 1 ? patches.end() - 1 : patches.end(), std::move(switched));
  return patches;
}

Result<void> set_parent(const std::string& path, const std::string& parent, bool raw_parent) {
  VBDKIT_ASSIGN(const std::vector<FilePatch> patches, plan_parent(path, parent, raw_parent));
  VBDKIT_ASSIGN(ImageFile file, ImageFile::open(path, ImageFile::Mode::kWrite));
  return apply_patches(file, patches);
}

Result<std::vector<FilePatch>> plan_alone(const std::string& path) {
  VBDKIT_ASSIGN(const ImageFile file, ImageFile::open(path, ImageFile::Mode::kRead));
  VBDKIT_ASSIGN(const Metadata metadata, read_metadata(file));
  if (!metadata.differencing()) return invalid("vhd: " + path + ": has no parent to be left");
  if (!metadata.tail_valid)
    return Error(ErrorKind::kCorrupt, "vhd: " + path + ": has no valid footer at its end");
  Footer footer = metadata.footer;
  footer.type = DiskType::kDynamic;
  const auto bytes = encode_footer(footer);
  const std::vector<std::byte> encoded(bytes.begin(), bytes.end());
  // The end first: it is the one that counts where the two differ.
  std::vector<FilePatch> patches{
      {align_down(metadata.file_size, kSectorSize) - kFooterSize, encoded}, {0, encoded}};
  // The parent's name goes where that is one write: the header's checksum covers two sectors, and a
  // power cut between them would cost the image. So the second one, with the locators, stays as it
  // is, and points at empty texts.
  std::array<std::byte, kHeaderSize> header{};
  VBDKIT_TRY(file.read(metadata.footer.data_offset, header));
  forget_parent(header);
  patches.push_back({metadata.footer.data_offset, {header.begin(), header.begin() + kSectorSize}});
  for (const Locator& locator : metadata.header.locators)
    if (locator.code != 0 && locator.length != 0 &&
        range_inside(locator.offset, locator.length, metadata.file_size))
      patches.push_back({locator.offset, std::vector<std::byte>(locator.length)});
  return patches;
}

Result<void> set_hidden(const std::string& path, bool hidden) {
  VBDKIT_ASSIGN(ImageFile file, ImageFile::open(path, ImageFile::Mode::kWrite));
  VBDKIT_ASSIGN(const Metadata metadata, read_metadata(file));
  Footer footer = metadata.footer;
  footer.hidden = hidden;
  return replace_footer(file, metadata, footer);
}

}  // namespace vbdkit::drivers::vhd
