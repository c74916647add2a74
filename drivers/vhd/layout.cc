// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/vhd/layout.h"

#include <algorithm>
#include <string_view>

namespace vbdkit::drivers::vhd {
namespace {

constexpr std::string_view kFooterCookie = "conectix";
constexpr std::string_view kHeaderCookie = "cxsparse";
constexpr std::string_view kBatmapCookie = "tdbatmap";
constexpr uint32_t kFooterVersion = 0x00010000;
constexpr uint32_t kHeaderVersion = 0x00010000;
constexpr int64_t kEpoch = 946684800;  // 2000-01-01 00:00 UTC, in Unix seconds

// Field offsets.
constexpr size_t kFooterChecksum = 64;
constexpr size_t kFooterHidden = 85;
constexpr size_t kHeaderChecksum = 36;
constexpr size_t kLocatorTable = 576;
constexpr size_t kLocatorSize = 24;

bool has_cookie(const std::byte* at, std::string_view cookie) {
  return memcmp(at, cookie.data(), cookie.size()) == 0;
}

std::string hex(uint64_t v) {
  char text[24];
  snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(v));
  return text;
}

// One's complement of the sum of all bytes, those of the checksum itself taken as zero.
uint32_t checksum(std::span<const std::byte> bytes, size_t field) {
  uint32_t sum = 0;
  for (size_t i = 0; i < bytes.size(); ++i)
    if (i < field || i >= field + 4) sum += std::to_integer<uint32_t>(bytes[i]);
  return ~sum;
}

Error corrupt(std::string what) { return Error(ErrorKind::kCorrupt, std::move(what)); }

uint64_t load_word(const std::byte* map, uint32_t word) {
  return load_be<uint64_t>(map + size_t{word} * 8);
}

}  // namespace

std::string to_string(const Uuid& uuid) {
  std::string text;
  for (size_t i = 0; i < uuid.size(); ++i) {
    char pair[3];
    snprintf(pair, sizeof(pair), "%02x", uuid[i]);
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += pair;
  }
  return text;
}

bool is_null(const Uuid& uuid) { return uuid == Uuid{}; }

uint32_t to_vhd_time(int64_t unix_seconds) {
  return static_cast<uint32_t>(std::clamp<int64_t>(unix_seconds - kEpoch, 0, UINT32_MAX));
}

int64_t from_vhd_time(uint32_t vhd_seconds) { return vhd_seconds + kEpoch; }

Geometry geometry_of(Bytes size) {
  const uint64_t total =
      std::min<uint64_t>(to_sectors(size).v, kLargestGeometry.bytes() / kSectorSize);
  uint64_t per_track = 255;
  uint64_t heads = 16;
  uint64_t tracks = total / per_track;
  if (total < uint64_t{65535} * 16 * 63) {
    per_track = 17;
    tracks = total / per_track;
    heads = std::max<uint64_t>((tracks + 1023) / 1024, 4);
    if (tracks >= heads * 1024 || heads > 16) {
      per_track = 31;
      heads = 16;
      tracks = total / per_track;
    }
    if (tracks >= heads * 1024) {
      per_track = 63;
      heads = 16;
      tracks = total / per_track;
    }
  }
  return {static_cast<uint16_t>(tracks / heads), static_cast<uint8_t>(heads),
          static_cast<uint8_t>(per_track)};
}

uint64_t Footer::disk_size() const {
  const std::string_view app(creator.data(), creator.size());
  const bool by_geometry = (app == "vpc " || app == "qemu") && geometry != kLargestGeometry;
  const uint64_t size = by_geometry ? geometry.bytes() : current_size;
  return align_down(size, kSectorSize);
}

uint64_t reserved_table_bytes(uint64_t original_size, uint32_t block_size) {
  constexpr uint64_t kTimesLarger = 4;
  const uint64_t size = std::min(original_size, kMaxSize / kTimesLarger) * kTimesLarger;
  return align_up((size + block_size - 1) / block_size * 4, kSectorSize);
}

Result<Footer> parse_footer(std::span<const std::byte, kFooterSize> bytes) {
  const std::byte* const b = bytes.data();
  if (!has_cookie(b, kFooterCookie)) return corrupt("no VHD footer");
  Footer footer;
  memcpy(footer.creator.data(), b + 28, 4);
  footer.creator_version = load_be<uint32_t>(b + 32);
  footer.hidden = b[kFooterHidden] != std::byte{};
  const uint32_t stored = load_be<uint32_t>(b + kFooterChecksum);
  uint32_t sum = checksum(bytes, kFooterChecksum);
  // Early versions of tapdisk did not count the byte that they set to hide an image.
  if (sum != stored && footer.hidden && made_by_tapdisk(footer) &&
      footer.creator_version <= 0x00010001)
    sum += std::to_integer<uint32_t>(b[kFooterHidden]);
  if (sum != stored) return corrupt("footer checksum " + hex(stored) + ", expected " + hex(sum));
  const uint32_t version = load_be<uint32_t>(b + 12);
  if (version >> 16 != kFooterVersion >> 16)
    return Error(ErrorKind::kUnsupported, "file format version " + hex(version));
  footer.features = load_be<uint32_t>(b + 8);
  footer.data_offset = load_be<uint64_t>(b + 16);
  footer.timestamp = load_be<uint32_t>(b + 24);
  memcpy(footer.creator_os.data(), b + 36, 4);
  footer.original_size = load_be<uint64_t>(b + 40);
  footer.current_size = load_be<uint64_t>(b + 48);
  const uint32_t geometry = load_be<uint32_t>(b + 56);
  footer.geometry = {static_cast<uint16_t>(geometry >> 16), static_cast<uint8_t>(geometry >> 8),
                     static_cast<uint8_t>(geometry)};
  const uint32_t type = load_be<uint32_t>(b + 60);
  if (type < 2 || type > 4)
    return Error(ErrorKind::kUnsupported, "disk type " + std::to_string(type));
  footer.type = static_cast<DiskType>(type);
  memcpy(footer.uuid.data(), b + 68, 16);
  footer.saved_state = b[84] != std::byte{};
  if (made_by_tapdisk(footer) && footer.creator_version <= 1 && footer.type != DiskType::kFixed)
    return Error(ErrorKind::kUnsupported,
                 "made by tapdisk 0.1, whose bitmaps have another bit order");
  if (footer.disk_size() == 0) return corrupt("its size is zero");
  if (footer.disk_size() > kMaxSize && footer.type != DiskType::kFixed)
    return corrupt("its size of " + std::to_string(footer.disk_size()) +
                   " bytes is more than the 2040 GiB of the format");
  if (footer.disk_size() > INT64_MAX - kFooterSize)
    return corrupt("its size of " + std::to_string(footer.disk_size()) + " bytes is impossible");
  return footer;
}

std::array<std::byte, kFooterSize> encode_footer(const Footer& footer) {
  std::array<std::byte, kFooterSize> bytes{};
  std::byte* const b = bytes.data();
  memcpy(b, kFooterCookie.data(), kFooterCookie.size());
  store_be<uint32_t>(b + 8, footer.features);
  store_be<uint32_t>(b + 12, kFooterVersion);
  store_be<uint64_t>(b + 16, footer.data_offset);
  store_be<uint32_t>(b + 24, footer.timestamp);
  memcpy(b + 28, footer.creator.data(), 4);
  store_be<uint32_t>(b + 32, footer.creator_version);
  memcpy(b + 36, footer.creator_os.data(), 4);
  store_be<uint64_t>(b + 40, footer.original_size);
  store_be<uint64_t>(b + 48, footer.current_size);
  store_be<uint32_t>(b + 56, uint32_t{footer.geometry.cylinders} << 16 |
                                 uint32_t{footer.geometry.heads} << 8 | footer.geometry.sectors);
  store_be<uint32_t>(b + 60, static_cast<uint32_t>(footer.type));
  memcpy(b + 68, footer.uuid.data(), 16);
  b[84] = static_cast<std::byte>(footer.saved_state);
  b[kFooterHidden] = static_cast<std::byte>(footer.hidden);
  store_be<uint32_t>(b + kFooterChecksum, checksum(bytes, kFooterChecksum));
  return bytes;
}

Result<DynamicHeader> parse_header(std::span<const std::byte, kHeaderSize> bytes) {
  const std::byte* const b = bytes.data();
  if (!has_cookie(b, kHeaderCookie)) return corrupt("no dynamic disk header");
  const uint32_t stored = load_be<uint32_t>(b + kHeaderChecksum);
  const uint32_t sum = checksum(bytes, kHeaderChecksum);
  if (sum != stored)
    return corrupt("dynamic header checksum " + hex(stored) + ", expected " + hex(sum));
  const uint32_t version = load_be<uint32_t>(b + 24);
  if (version >> 16 != kHeaderVersion >> 16)
    return Error(ErrorKind::kUnsupported, "dynamic header version " + hex(version));
  DynamicHeader header;
  header.table_offset = load_be<uint64_t>(b + 16);
  header.blocks = load_be<uint32_t>(b + 28);
  header.block_size = load_be<uint32_t>(b + 32);
  if (!std::has_single_bit(header.block_size) || header.block_size < kMinBlock ||
      header.block_size > kMaxBlock)
    return Error(ErrorKind::kUnsupported, "block size " + std::to_string(header.block_size) +
                                              ": expected a power of two from 512 KiB to 2 MiB");
  if (header.blocks > kMaxBlocks)
    return corrupt("block table of " + std::to_string(header.blocks) + " entries");
  if (header.table_offset % kSectorSize != 0 || header.table_offset > kMaxBlockSector * kSectorSize)
    return corrupt("block table at " + hex(header.table_offset));
  memcpy(header.parent_uuid.data(), b + 40, 16);
  header.parent_timestamp = load_be<uint32_t>(b + 56);
  memcpy(header.parent_name.data(), b + 64, header.parent_name.size());
  for (size_t i = 0; i < kLocators; ++i) {
    const std::byte* const l = b + kLocatorTable + i * kLocatorSize;
    header.locators[i] = {load_be<uint32_t>(l), load_be<uint32_t>(l + 4), load_be<uint32_t>(l + 8),
                          load_be<uint64_t>(l + 16)};
  }
  return header;
}

std::array<std::byte, kHeaderSize> encode_header(const DynamicHeader& header) {
  std::array<std::byte, kHeaderSize> bytes{};
  std::byte* const b = bytes.data();
  memcpy(b, kHeaderCookie.data(), kHeaderCookie.size());
  store_be<uint64_t>(b + 8, UINT64_MAX);
  store_be<uint64_t>(b + 16, header.table_offset);
  store_be<uint32_t>(b + 24, kHeaderVersion);
  store_be<uint32_t>(b + 28, header.blocks);
  store_be<uint32_t>(b + 32, header.block_size);
  memcpy(b + 40, header.parent_uuid.data(), 16);
  store_be<uint32_t>(b + 56, header.parent_timestamp);
  memcpy(b + 64, header.parent_name.data(), header.parent_name.size());
  for (size_t i = 0; i < kLocators; ++i) {
    std::byte* const l = b + kLocatorTable + i * kLocatorSize;
    store_be<uint32_t>(l, header.locators[i].code);
    store_be<uint32_t>(l + 4, header.locators[i].space);
    store_be<uint32_t>(l + 8, header.locators[i].length);
    store_be<uint64_t>(l + 16, header.locators[i].offset);
  }
  store_be<uint32_t>(b + kHeaderChecksum, checksum(bytes, kHeaderChecksum));
  return bytes;
}

void forget_parent(std::span<std::byte, kHeaderSize> header) {
  // UUID, time and name lie beside each other.
  constexpr size_t kParentFields = 40;
  std::fill(header.begin() + kParentFields, header.begin() + kSectorSize, std::byte{0});
  store_be<uint32_t>(header.data() + kHeaderChecksum, checksum(header, kHeaderChecksum));
}

std::optional<BatmapHeader> parse_batmap_header(std::span<const std::byte, 512> bytes) {
  const std::byte* const b = bytes.data();
  if (!has_cookie(b, kBatmapCookie)) return std::nullopt;
  BatmapHeader header;
  header.offset = load_be<uint64_t>(b + 8);
  header.sectors = load_be<uint32_t>(b + 16);
  header.version = load_be<uint32_t>(b + 20);
  header.checksum = load_be<uint32_t>(b + 24);
  if (header.version > 0x00010002 || header.offset % kSectorSize != 0) return std::nullopt;
  if (header.sectors == 0 || header.sectors > batmap_bytes(kMaxBlocks) / kSectorSize)
    return std::nullopt;
  return header;
}

std::array<std::byte, 512> encode_batmap_header(const BatmapHeader& header) {
  std::array<std::byte, 512> bytes{};
  std::byte* const b = bytes.data();
  memcpy(b, kBatmapCookie.data(), kBatmapCookie.size());
  store_be<uint64_t>(b + 8, header.offset);
  store_be<uint32_t>(b + 16, header.sectors);
  store_be<uint32_t>(b + 20, header.version);
  store_be<uint32_t>(b + 24, header.checksum);
  return bytes;
}

uint32_t batmap_checksum(uint32_t version, std::span<const std::byte> map) {
  uint32_t sum = 0;
  // Version 1.1 added the bytes as signed ones.
  for (const std::byte b : map)
    sum += version == 0x00010001
               ? static_cast<uint32_t>(static_cast<int8_t>(std::to_integer<uint8_t>(b)))
               : std::to_integer<uint32_t>(b);
  return ~sum;
}

uint64_t batmap_bytes(uint32_t blocks) { return align_up((uint64_t{blocks} + 7) / 8, kSectorSize); }

uint32_t set_bits(std::byte* map, uint32_t first, uint32_t count) {
  uint32_t changed = 0;
  const uint32_t end = first + count;
  while (first < end) {
    const uint32_t bit = first % 8;
    const uint32_t n = std::min(8 - bit, end - first);
    const auto mask = static_cast<uint8_t>((0xffu >> bit) & ~(0xffu >> (bit + n)));
    const auto old = std::to_integer<uint8_t>(map[first / 8]);
    changed += static_cast<uint32_t>(std::popcount(static_cast<uint8_t>(mask & ~old)));
    map[first / 8] = static_cast<std::byte>(old | mask);
    first += n;
  }
  return changed;
}

uint32_t count_bits(std::span<const std::byte> map, uint32_t bits) {
  uint32_t count = 0;
  for (uint32_t word = 0; word < bits / 64; ++word)
    count += static_cast<uint32_t>(std::popcount(load_word(map.data(), word)));
  return count;
}

uint32_t run_end(const std::byte* map, uint32_t first, uint32_t end) {
  const bool value = test_bit(map, first);
  uint32_t at = first;
  while (at < end) {
    uint64_t word = load_word(map, at / 64);
    if (value) word = ~word;  // now a set bit ends the run
    word <<= at % 64;
    if (word != 0) return std::min(end, at + static_cast<uint32_t>(std::countl_zero(word)));
    at = (at / 64 + 1) * 64;
  }
  return end;
}

}  // namespace vbdkit::drivers::vhd
