// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/cbt/superblock.h"

#include <zlib.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <string_view>

namespace vbdkit::drivers::cbt {
namespace {

constexpr std::string_view kMagic = "vbdkitCB";
constexpr uint32_t kVersion = 1;
constexpr uint32_t kInUse = 1;

// Offsets of the fields, bytes.
constexpr size_t kVersionAt = 8;
constexpr size_t kChecksumAt = 12;  // CRC-32 of the superblock with this field zero
constexpr size_t kSequenceAt = 16;
constexpr size_t kDiskSizeAt = 24;
constexpr size_t kGranularityAt = 32;
constexpr size_t kFlagsAt = 40;
constexpr size_t kBootIdAt = 48;  // text, padded with zeroes
constexpr size_t kBootIdSize = 48;
constexpr size_t kNameAt = 96;  // likewise
constexpr size_t kNameSize = kMaxName + 1;
constexpr size_t kHotAt = 2048;  // a bit for each region, the lowest of a byte first
static_assert(kNameAt + kNameSize <= kHotAt && kHotAt + kRegions / 8 == kPageSize);
static_assert(std::endian::native == std::endian::little);

template <typename T>
void store(Page& page, size_t at, T value) {
  std::memcpy(page.data() + at, &value, sizeof value);
}

template <typename T>
T load(const uint8_t* page, size_t at) {
  T value;
  std::memcpy(&value, page + at, sizeof value);
  return value;
}

std::string load_text(const uint8_t* page, size_t at, size_t size) {
  const char* const text = reinterpret_cast<const char*>(page + at);
  return {text, strnlen(text, size)};
}

uint32_t checksum(Page page) {
  store<uint32_t>(page, kChecksumAt, 0);
  return static_cast<uint32_t>(crc32(0, page.data(), kPageSize));
}

bool plausible(const Superblock& s) {
  return std::has_single_bit(s.granularity) && s.granularity >= kMinGranularity &&
         s.granularity <= kMaxGranularity && s.disk_size <= kMaxDiskSize;
}

}  // namespace

uint64_t Superblock::region_size() const {
  return std::max(granularity, std::bit_ceil((disk_size + kRegions - 1) / kRegions));
}

void encode(const Superblock& s, Page& out) {
  out.fill(0);
  std::ranges::copy(kMagic, out.begin());
  store(out, kVersionAt, kVersion);
  store(out, kSequenceAt, s.sequence);
  store(out, kDiskSizeAt, s.disk_size);
  store(out, kGranularityAt, s.granularity);
  store(out, kFlagsAt, s.in_use ? kInUse : uint32_t{0});
  s.boot_id.copy(reinterpret_cast<char*>(out.data() + kBootIdAt), kBootIdSize - 1);
  s.name.copy(reinterpret_cast<char*>(out.data() + kNameAt), kNameSize - 1);
  for (size_t i = 0; i < kRegions; ++i)
    if (s.hot[i]) out[kHotAt + i / 8] |= static_cast<uint8_t>(1u << i % 8);
  store(out, kChecksumAt, checksum(out));
}

std::optional<Superblock> decode(std::span<const uint8_t, kPageSize> in) {
  if (!std::equal(kMagic.begin(), kMagic.end(), in.begin())) return std::nullopt;
  Page page;
  std::ranges::copy(in, page.begin());
  if (load<uint32_t>(in.data(), kChecksumAt) != checksum(page)) return std::nullopt;
  if (load<uint32_t>(in.data(), kVersionAt) != kVersion) return std::nullopt;
  Superblock s;
  s.sequence = load<uint64_t>(in.data(), kSequenceAt);
  s.disk_size = load<uint64_t>(in.data(), kDiskSizeAt);
  s.granularity = load<uint64_t>(in.data(), kGranularityAt);
  s.in_use = load<uint32_t>(in.data(), kFlagsAt) & kInUse;
  s.boot_id = load_text(in.data(), kBootIdAt, kBootIdSize);
  s.name = load_text(in.data(), kNameAt, kNameSize);
  for (size_t i = 0; i < kRegions; ++i) s.hot[i] = in[kHotAt + i / 8] >> i % 8 & 1;
  if (!plausible(s)) return std::nullopt;
  return s;
}

}  // namespace vbdkit::drivers::cbt
