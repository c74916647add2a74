// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The layout of a file of changed blocks. All integers are little-endian.
//
//     0     superblock, slot 0
//     4096  superblock, slot 1
//     8192  the bitmap: bit n (the lowest of its byte first) stands for the n-th block
//
// Superblocks are written to the slots in turn; the valid one with the higher sequence holds. So
// one that a power cut tore leaves the one before it, which was right as long as nothing relied on
// its successor. Besides the parameters a superblock has the hot regions: those parts of the disk
// whose bits in the file may be older than the disk. Pure.
#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace vbdkit::drivers::cbt {

inline constexpr uint64_t kPageSize =
    4096;  // bytes; of a superblock, and of what is written at once
inline constexpr uint64_t kBitmapOffset = 2 * kPageSize;
inline constexpr uint64_t kBitsPerPage = kPageSize * 8;
inline constexpr size_t kRegions = 16384;
inline constexpr size_t kMaxName = 255;  // bytes
inline constexpr uint64_t kMinGranularity = 4096;
inline constexpr uint64_t kMaxGranularity = uint64_t{1} << 30;
inline constexpr uint64_t kMaxDiskSize = uint64_t{1} << 56;

using Regions = std::bitset<kRegions>;
using Page = std::array<uint8_t, kPageSize>;

struct Superblock {
  uint64_t sequence = 0;
  uint64_t disk_size = 0;    // bytes
  uint64_t granularity = 0;  // bytes of one block; a power of two
  bool in_use = false;       // somebody has it open for writing, or had when it crashed
  std::string boot_id;       // of the kernel under which it is in use
  std::string name;
  Regions hot;

  uint64_t blocks() const { return (disk_size + granularity - 1) / granularity; }
  // Bytes of one region; a power of two, no less than a block.
  uint64_t region_size() const;
};

void encode(const Superblock& superblock, Page& out);
// Nothing where this is no superblock of ours, or a damaged one.
std::optional<Superblock> decode(std::span<const uint8_t, kPageSize> in);

}  // namespace vbdkit::drivers::cbt
