// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The structures of a VHD file: bytes to meaning and back. Pure, no I/O, any thread. What a parse
// function accepts is consistent in itself, and sizes that somebody allocates by have been capped;
// whether offsets lie inside the file is for the reader of the file to check (metadata.h).
//
// Sources: Microsoft's "Virtual Hard Disk Image Format Specification" (2006), sections "Hard Disk
// Footer Format", "Dynamic Disk Header Format", "Block Allocation Table and Data Blocks",
// "Implementing a Differencing Hard Disk"; include/vhd.h of blktap for the batmap.
// All numbers in the file are big-endian; bit 0 of a bitmap is the most significant bit of its
// first byte.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/units.h"

namespace vbdkit::drivers::vhd {

inline constexpr size_t kFooterSize = 512;
inline constexpr size_t kHeaderSize = 1024;
inline constexpr size_t kLocators = 8;
inline constexpr uint32_t kUnused = 0xffffffff;         // BAT entry of a block that is not there
inline constexpr uint32_t kMinBlock = 512 * 1024;       // bytes
inline constexpr uint32_t kMaxBlock = 2 * 1024 * 1024;  // bytes
inline constexpr uint64_t kMaxSize = uint64_t{2040} << 30;  // bytes, virtual
// What kMaxSize takes in the smallest blocks.
inline constexpr uint32_t kMaxBlocks = static_cast<uint32_t>(kMaxSize / kMinBlock);
// Blocks made here have their data at multiples of this, so that direct I/O takes them on any disk;
// files end at one, too.
inline constexpr uint64_t kDataAlignment = 4096;  // bytes
// In files that have room for it, at multiples of this: the page cache keeps larger folios then,
// and storage that is made of stripes or large pages has less to read and write again.
inline constexpr uint64_t kWideAlignment = 64 * 1024;  // bytes
// BAT entries are sectors: the last place where a block can begin.
inline constexpr uint64_t kMaxBlockSector = kUnused - 1;

inline constexpr std::string_view kOurCreator = "vbdk";

using Uuid = std::array<uint8_t, 16>;
std::string to_string(const Uuid& uuid);  // "01234567-89ab-…"
bool is_null(const Uuid& uuid);

// The format counts seconds from 2000-01-01 00:00 UTC.
uint32_t to_vhd_time(int64_t unix_seconds);
int64_t from_vhd_time(uint32_t vhd_seconds);

enum class DiskType : uint32_t { kFixed = 2, kDynamic = 3, kDifferencing = 4 };

// Cylinders, heads, sectors per track.
struct Geometry {
  uint16_t cylinders = 0;
  uint8_t heads = 0;
  uint8_t sectors = 0;

  uint64_t bytes() const { return uint64_t{cylinders} * heads * sectors * kSectorSize; }
  friend bool operator==(const Geometry&, const Geometry&) = default;
};

inline constexpr Geometry kLargestGeometry{65535, 16, 255};

// What a disk of that size gets by the specification's appendix.
Geometry geometry_of(Bytes size);

struct Footer {
  uint32_t features = 2;              // the reserved bit, always set
  uint64_t data_offset = UINT64_MAX;  // of the dynamic header
  uint32_t timestamp = 0;
  std::array<char, 4> creator{'v', 'b', 'd', 'k'};
  uint32_t creator_version = 0x00010000;
  std::array<char, 4> creator_os{'W', 'i', '2', 'k'};
  uint64_t original_size = 0;  // bytes
  uint64_t current_size = 0;   // bytes
  Geometry geometry;
  DiskType type = DiskType::kDynamic;
  Uuid uuid{};
  bool saved_state = false;
  bool hidden = false;  // tapdisk's: a node that no guest uses by itself

  // The size that the guest sees. Virtual PC and QEMU without force_size go by the geometry, all
  // others by current_size; the largest geometry says nothing.
  uint64_t disk_size() const;
};

inline bool made_here(const Footer& footer) {
  return std::string_view(footer.creator.data(), footer.creator.size()) == kOurCreator;
}
inline bool made_by_tapdisk(const Footer& footer) {
  return std::string_view(footer.creator.data(), footer.creator.size()).starts_with("tap");
}

// Images made here keep so much room for their block table, that a disk can grow to several times
// its first size without moving anything.
uint64_t reserved_table_bytes(uint64_t original_size, uint32_t block_size);

Result<Footer> parse_footer(std::span<const std::byte, kFooterSize> bytes);
std::array<std::byte, kFooterSize> encode_footer(const Footer& footer);

struct Locator {
  uint32_t code = 0;    // kMacX and so on
  uint32_t space = 0;   // as it stands: sectors, or bytes in many files
  uint32_t length = 0;  // bytes
  uint64_t offset = 0;

  // Bytes reserved in the file.
  uint64_t space_bytes() const {
    return space < kSectorSize ? uint64_t{space} * kSectorSize : space;
  }
};

inline constexpr uint32_t kMacX = 0x4d616358;  // file URL, UTF-8
inline constexpr uint32_t kW2ku = 0x57326b75;  // absolute path, UTF-16LE
inline constexpr uint32_t kW2ru = 0x57327275;  // relative path, UTF-16LE

struct DynamicHeader {
  uint64_t table_offset = 0;  // of the BAT
  uint32_t blocks = 0;        // entries of the BAT
  uint32_t block_size = kMaxBlock;
  Uuid parent_uuid{};
  uint32_t parent_timestamp = 0;
  std::array<std::byte, 512> parent_name{};  // UTF-16BE
  std::array<Locator, kLocators> locators{};

  uint64_t table_bytes() const { return align_up(uint64_t{blocks} * 4, kSectorSize); }
  uint64_t table_end() const { return table_offset + table_bytes(); }
  uint32_t sectors_per_block() const { return block_size / static_cast<uint32_t>(kSectorSize); }
  // Bytes of a sector bitmap, padded to sectors as it stands in front of each block.
  uint32_t bitmap_bytes() const {
    return static_cast<uint32_t>(align_up(sectors_per_block() / 8, kSectorSize));
  }
};

Result<DynamicHeader> parse_header(std::span<const std::byte, kHeaderSize> bytes);
std::array<std::byte, kHeaderSize> encode_header(const DynamicHeader& header);

// tapdisk's batmap: one bit per block, set where all of the block's sectors are. Its header stands
// right behind the BAT.
struct BatmapHeader {
  uint64_t offset = 0;
  uint32_t sectors = 0;
  uint32_t version = 0x00010002;
  uint32_t checksum = 0;
};

// Takes out of an encoded header what its first sector says of the parent.
void forget_parent(std::span<std::byte, kHeaderSize> header);

std::optional<BatmapHeader> parse_batmap_header(std::span<const std::byte, 512> bytes);
std::array<std::byte, 512> encode_batmap_header(const BatmapHeader& header);
uint32_t batmap_checksum(uint32_t version, std::span<const std::byte> map);
// Bytes of the batmap of so many blocks, padded to sectors.
uint64_t batmap_bytes(uint32_t blocks);

// Memory for direct I/O.
struct alignas(kSectorSize) SectorBuffer {
  std::array<std::byte, kSectorSize> bytes;
};

// Big-endian numbers at a place of a buffer.
template <typename T>
T load_be(const std::byte* from) {
  T value;
  memcpy(&value, from, sizeof(T));
  if constexpr (sizeof(T) == 8)
    return __builtin_bswap64(value);
  else
    return __builtin_bswap32(value);
}
template <typename T>
void store_be(std::byte* to, T value) {
  if constexpr (sizeof(T) == 8)
    value = __builtin_bswap64(value);
  else
    value = __builtin_bswap32(value);
  memcpy(to, &value, sizeof(T));
}

inline bool test_bit(const std::byte* map, uint32_t bit) {
  return (map[bit / 8] & (std::byte{0x80} >> (bit % 8))) != std::byte{};
}
inline void set_bit(std::byte* map, uint32_t bit) { map[bit / 8] |= std::byte{0x80} >> (bit % 8); }
inline void clear_bit(std::byte* map, uint32_t bit) {
  map[bit / 8] &= ~(std::byte{0x80} >> (bit % 8));
}
// Sets [first, first + count); returns how many were not set before.
uint32_t set_bits(std::byte* map, uint32_t first, uint32_t count);
uint32_t count_bits(std::span<const std::byte> map, uint32_t bits);
// The first bit after `first` that differs from it, or `end`.
uint32_t run_end(const std::byte* map, uint32_t first, uint32_t end);

}  // namespace vbdkit::drivers::vhd
