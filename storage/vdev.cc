// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/vdev.h"

#include <charconv>

namespace vbdkit::storage {

namespace {

constexpr uint64_t kExtended = uint64_t{1} << 28;  // | disk << 8 | partition
constexpr uint64_t kMaxExtendedDisk = (1 << 20) - 1;
constexpr uint64_t kMaxExtendedPartition = 255;
// Linux's block majors, which the numbers of few disks with few partitions still are.
constexpr uint64_t kXvdMajor = 202;
constexpr uint64_t kSdMajor = 8;
constexpr uint64_t kHdMajors[] = {3, 22};

// Decimal digits at the front of `text`, which are taken off.
std::optional<uint64_t> take_number(std::string_view& text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return std::nullopt;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return number;
}

// "a" is 0, "z" 25, "aa" 26.
std::optional<uint64_t> take_letters(std::string_view& text) {
  uint64_t number = 0;
  size_t n = 0;
  for (; n < text.size() && text[n] >= 'a' && text[n] <= 'z'; ++n) {
    number = number * 26 + static_cast<uint64_t>(text[n] - 'a') + 1;
    if (number > kMaxExtendedDisk + 1) return std::nullopt;
  }
  if (n == 0) return std::nullopt;
  text.remove_prefix(n);
  return number - 1;
}

std::string letters(uint64_t disk) {
  std::string text;
  for (uint64_t rest = disk + 1; rest > 0; rest = (rest - 1) / 26)
    text.insert(text.begin(), static_cast<char>('a' + (rest - 1) % 26));
  return text;
}

std::optional<uint64_t> number_of(uint64_t disk, uint64_t partition) {
  if (disk < 16 && partition < 16) return kXvdMajor << 8 | disk << 4 | partition;
  if (disk > kMaxExtendedDisk || partition > kMaxExtendedPartition) return std::nullopt;
  return kExtended | disk << 8 | partition;
}

std::string with_partition(std::string disk, uint64_t partition) {
  return partition == 0 ? disk : disk + std::to_string(partition);
}

}  // namespace

std::optional<uint64_t> parse_vdev(std::string_view name) {
  std::string_view rest = name;
  if (const auto number = take_number(rest)) return rest.empty() ? number : std::nullopt;

  std::optional<uint64_t> disk;
  uint64_t partition = 0;
  const std::string_view kind = name.substr(0, 2);
  if (name.starts_with("xvd") || kind == "hd" || kind == "sd") {
    rest = name.substr(name.starts_with("xvd") ? 3 : 2);
    disk = take_letters(rest);
    if (disk && !rest.empty()) partition = take_number(rest).value_or(0);
  } else if (name.starts_with("d")) {
    rest = name.substr(1);
    disk = take_number(rest);
    if (disk && rest.starts_with("p")) {
      rest.remove_prefix(1);
      const auto number = take_number(rest);
      if (!number) return std::nullopt;
      partition = *number;
    }
  }
  if (!disk || !rest.empty()) return std::nullopt;
  if (kind == "hd") {
    if (*disk > 3 || partition > 63) return std::nullopt;
    return kHdMajors[*disk / 2] << 8 | (*disk % 2) << 6 | partition;
  }
  if (kind == "sd") {
    if (*disk > 15 || partition > 15) return std::nullopt;
    return kSdMajor << 8 | *disk << 4 | partition;
  }
  return number_of(*disk, partition);
}

std::string vdev_name(uint64_t number) {
  if ((number & kExtended) != 0 && number < kExtended << 1)
    return with_partition("xvd" + letters((number & (kExtended - 1)) >> 8), number & 0xff);
  const uint64_t minor = number & 0xff;
  switch (number >> 8) {
    case kXvdMajor:
      return with_partition("xvd" + letters(minor >> 4), minor & 15);
    case kSdMajor:
      return with_partition("sd" + letters(minor >> 4), minor & 15);
    case kHdMajors[0]:
      return with_partition("hd" + letters(minor >> 6), minor & 63);
    case kHdMajors[1]:
      return with_partition("hd" + letters(2 + (minor >> 6)), minor & 63);
    default:
      return std::to_string(number);
  }
}

}  // namespace vbdkit::storage
