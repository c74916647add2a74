// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/vhd/locator.h"

#include <algorithm>
#include <cctype>

namespace vbdkit::drivers::vhd {
namespace {

constexpr std::string_view kFileUrl = "file://";

void append_utf8(std::string& text, uint32_t c) {
  if (c < 0x80) {
    text += static_cast<char>(c);
  } else if (c < 0x800) {
    text += static_cast<char>(0xc0 | c >> 6);
    text += static_cast<char>(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    text += static_cast<char>(0xe0 | c >> 12);
    text += static_cast<char>(0x80 | (c >> 6 & 0x3f));
    text += static_cast<char>(0x80 | (c & 0x3f));
  } else {
    text += static_cast<char>(0xf0 | c >> 18);
    text += static_cast<char>(0x80 | (c >> 12 & 0x3f));
    text += static_cast<char>(0x80 | (c >> 6 & 0x3f));
    text += static_cast<char>(0x80 | (c & 0x3f));
  }
}

// Up to the first NUL.
std::optional<std::string> from_utf16(std::span<const std::byte> bytes, bool big_endian) {
  std::string text;
  uint32_t high = 0;
  for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
    const auto first = std::to_integer<uint32_t>(bytes[i]);
    const auto second = std::to_integer<uint32_t>(bytes[i + 1]);
    const uint32_t unit = big_endian ? first << 8 | second : second << 8 | first;
    if (unit == 0) break;
    if (unit >= 0xdc00 && unit < 0xe000) {
      if (high == 0) return std::nullopt;
      append_utf8(text, 0x10000 + ((high - 0xd800) << 10) + (unit - 0xdc00));
      high = 0;
      continue;
    }
    if (high != 0) return std::nullopt;
    if (unit >= 0xd800 && unit < 0xdc00)
      high = unit;
    else
      append_utf8(text, unit);
  }
  if (high != 0 || text.empty()) return std::nullopt;
  return text;
}

// What is no UTF-8 is taken byte by byte: a name must not be lost for its encoding.
std::vector<uint16_t> to_utf16(std::string_view text) {
  std::vector<uint16_t> units;
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const size_t length = lead < 0x80       ? 1
                          : lead >> 5 == 6  ? 2
                          : lead >> 4 == 14 ? 3
                          : lead >> 3 == 30 ? 4
                                            : 0;
    uint32_t c = length == 1 ? lead : length == 0 ? 0 : lead & (0xffu >> (length + 1));
    bool valid = length != 0 && i + length <= text.size();
    for (size_t k = 1; valid && k < length; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      valid = next >> 6 == 2;
      c = c << 6 | (next & 0x3fu);
    }
    if (!valid || (c >= 0xd800 && c < 0xe000) || c > 0x10ffff) {
      units.push_back(lead);
      ++i;
      continue;
    }
    if (c >= 0x10000) {
      units.push_back(static_cast<uint16_t>(0xd800 + ((c - 0x10000) >> 10)));
      units.push_back(static_cast<uint16_t>(0xdc00 + ((c - 0x10000) & 0x3ff)));
    } else {
      units.push_back(static_cast<uint16_t>(c));
    }
    i += length;
  }
  return units;
}

std::string slashes(std::string text) {
  std::replace(text.begin(), text.end(), '\\', '/');
  return text;
}

std::string unescape(std::string_view url) {
  std::string text;
  for (size_t i = 0; i < url.size(); ++i) {
    const auto digit = [&](size_t at) {
      return at < url.size() && std::isxdigit(static_cast<unsigned char>(url[at]));
    };
    if (url[i] == '%' && digit(i + 1) && digit(i + 2)) {
      text += static_cast<char>(std::stoi(std::string(url.substr(i + 1, 2)), nullptr, 16));
      i += 2;
    } else {
      text += url[i];
    }
  }
  return text;
}

std::string directory_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

bool has_drive(std::string_view path) {
  return path.size() >= 2 && std::isalpha(static_cast<unsigned char>(path[0])) && path[1] == ':';
}

std::string_view last_part(std::string_view path) { return path.substr(path.rfind('/') + 1); }

}  // namespace

std::optional<std::string> decode_locator(uint32_t code, std::span<const std::byte> bytes) {
  bytes = bytes.first(std::min(bytes.size(), kMaxLocatorText));
  if (code == kW2ku || code == kW2ru) {
    auto text = from_utf16(bytes, false);
    if (!text) return std::nullopt;
    return slashes(std::move(*text));
  }
  if (code != kMacX) return std::nullopt;
  std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  text.resize(std::min(text.size(), text.find('\0')));
  if (!text.starts_with(kFileUrl)) return std::nullopt;
  text.erase(0, kFileUrl.size());
  if (text.starts_with("localhost/")) text.erase(0, std::string_view("localhost").size());
  if (text.empty()) return std::nullopt;
  return text;
}

std::optional<std::string> decode_parent_name(std::span<const std::byte, 512> name) {
  auto text = from_utf16(name, true);
  if (!text) return std::nullopt;
  return slashes(std::move(*text));
}

std::vector<std::string> parent_candidates(const std::string& child,
                                           const std::vector<std::string>& texts) {
  const std::string directory = directory_of(child);
  std::vector<std::string> found;
  const auto add = [&](std::string path) {
    if (path.find('\0') == std::string::npos && path.back() != '/' &&
        std::find(found.begin(), found.end(), path) == found.end())
      found.push_back(std::move(path));
  };
  const auto beside = [&](std::string_view relative) {
    while (relative.starts_with("./")) relative.remove_prefix(2);
    if (!relative.empty()) add((directory == "/" ? "" : directory) + "/" + std::string(relative));
  };
  for (const std::string& text : texts) {
    for (const std::string& path : {text, unescape(text)}) {
      if (path.empty()) continue;
      if (has_drive(path) || path.starts_with("//")) {
        beside(last_part(path));
      } else if (path.front() == '/') {
        add(path);
      } else {
        beside(path);
      }
    }
  }
  return found;
}

std::vector<std::byte> encode_locator(uint32_t code, std::string_view relative) {
  const bool dotted = relative.starts_with("./");
  std::string text;
  std::vector<std::byte> bytes;
  if (code == kMacX) {
    text = std::string(kFileUrl) + (dotted ? "" : "./") + std::string(relative);
    for (const char c : text) bytes.push_back(static_cast<std::byte>(c));
    return bytes;
  }
  text = ".\\" + std::string(relative.substr(dotted ? 2 : 0));
  std::replace(text.begin(), text.end(), '/', '\\');
  for (const uint16_t unit : to_utf16(text)) {
    bytes.push_back(static_cast<std::byte>(unit & 0xff));
    bytes.push_back(static_cast<std::byte>(unit >> 8));
  }
  return bytes;
}

std::array<std::byte, 512> encode_parent_name(std::string_view file_name) {
  std::array<std::byte, 512> name{};
  std::vector<uint16_t> units = to_utf16(file_name);
  units.resize(std::min<size_t>(units.size(), name.size() / 2 - 1));
  for (size_t i = 0; i < units.size(); ++i) {
    name[i * 2] = static_cast<std::byte>(units[i] >> 8);
    name[i * 2 + 1] = static_cast<std::byte>(units[i] & 0xff);
  }
  return name;
}

}  // namespace vbdkit::drivers::vhd
