// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/options.h"

#include <charconv>

namespace vbdkit::drivers {
namespace {

constexpr std::string_view kSizeForm = "a size in bytes, or with a suffix K, M, G or T";

bool parse_digits(std::string_view text, uint64_t* out) {
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), *out);
  return ec == std::errc() && end == text.data() + text.size();
}

}  // namespace

Result<uint64_t> parse_size(std::string_view text) {
  std::string_view digits = text;
  unsigned shift = 0;
  if (!digits.empty()) {
    switch (digits.back()) {
      case 'k':
      case 'K':
        shift = 10;
        break;
      case 'm':
      case 'M':
        shift = 20;
        break;
      case 'g':
      case 'G':
        shift = 30;
        break;
      case 't':
      case 'T':
        shift = 40;
        break;
      default:
        break;
    }
    if (shift != 0) digits.remove_suffix(1);
  }
  uint64_t value = 0;
  if (!parse_digits(digits, &value) || value > (UINT64_MAX >> shift))
    return Error(ErrorKind::kInvalid,
                 "'" + std::string(text) + "' is not " + std::string(kSizeForm));
  return value << shift;
}

Error OptionReader::bad(const std::string& key, std::string_view expected) const {
  return Error(ErrorKind::kInvalid, spec_.driver + ": " + key + "=" + spec_.options.at(key) +
                                        ": expected " + std::string(expected));
}

Result<bool> OptionReader::flag(const std::string& key, bool fallback) const {
  const auto it = spec_.options.find(key);
  if (it == spec_.options.end()) return fallback;
  if (it->second == "on") return true;
  if (it->second == "off") return false;
  return bad(key, "on or off");
}

Result<uint64_t> OptionReader::size(const std::string& key, uint64_t fallback) const {
  const auto it = spec_.options.find(key);
  if (it == spec_.options.end()) return fallback;
  auto value = parse_size(it->second);
  if (!value) return bad(key, kSizeForm);
  return value;
}

Result<uint64_t> OptionReader::number(const std::string& key, uint64_t fallback) const {
  const auto it = spec_.options.find(key);
  if (it == spec_.options.end()) return fallback;
  uint64_t value = 0;
  if (!parse_digits(it->second, &value)) return bad(key, "a number");
  return value;
}

}  // namespace vbdkit::drivers
