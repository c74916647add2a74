// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/journal_text.h"

#include <unistd.h>

#include <charconv>
#include <cstdio>

#include "drivers/chain/image_file.h"
#include "drivers/image_forest.h"

namespace vbdkit::drivers {
namespace {

constexpr uint64_t kMostBytes = uint64_t{64} << 20;

std::optional<std::vector<std::byte>> from_hex(std::string_view text) {
  std::vector<std::byte> bytes;
  if (text.size() % 2 != 0) return std::nullopt;
  for (size_t i = 0; i < text.size(); i += 2) {
    uint8_t value = 0;
    const auto [end, error] = std::from_chars(&text[i], &text[i] + 2, value, 16);
    if (error != std::errc() || end != &text[i] + 2) return std::nullopt;
    bytes.push_back(static_cast<std::byte>(value));
  }
  return bytes;
}

}  // namespace

std::string to_hex(std::span<const std::byte> bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const std::byte byte : bytes) {
    const auto value = std::to_integer<unsigned>(byte);
    text += kDigits[value >> 4];
    text += kDigits[value & 15];
  }
  return text;
}

std::string to_hex(std::string_view text) { return to_hex(std::as_bytes(std::span(text))); }

std::string_view take_until(std::string_view& text, char end) {
  const std::string_view taken = text.substr(0, text.find(end));
  text.remove_prefix(std::min(text.size(), taken.size() + 1));
  return taken;
}

uint64_t JournalLine::number() {
  const std::string_view word = take_until(rest_, ' ');
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  good_ = good_ && !word.empty() && error == std::errc() && end == word.data() + word.size();
  return value;
}

std::vector<std::byte> JournalLine::bytes() {
  auto value = from_hex(take_until(rest_, ' '));
  good_ = good_ && value.has_value();
  return std::move(value).value_or(std::vector<std::byte>());
}

std::string JournalLine::text() {
  const auto value = bytes();
  return {reinterpret_cast<const char*>(value.data()), value.size()};
}

Result<std::optional<std::string>> load_journal(const std::string& path) {
  const auto file = ImageFile::open(path, ImageFile::Mode::kRead);
  // What is beside an image of the longest name that can be had is not there either.
  if (!file && (file.error().sys_errno() == ENOENT || file.error().sys_errno() == ENAMETOOLONG))
    return std::optional<std::string>();
  if (!file) return file.error();
  VBDKIT_ASSIGN(const Bytes size, file->size());
  if (size.v > kMostBytes) return Error(ErrorKind::kCorrupt, path + ": too long for a journal");
  std::string text(size.v, '\0');
  VBDKIT_TRY(file->read(0, std::as_writable_bytes(std::span(text))));
  return std::optional<std::string>(std::move(text));
}

Result<void> save_journal(const std::string& path, const std::string& text) {
  const std::string fresh = path + ".new";
  ::unlink(fresh.c_str());
  const auto make = [&]() -> Result<void> {
    VBDKIT_ASSIGN(ImageFile file, ImageFile::open(fresh, ImageFile::Mode::kCreate));
    VBDKIT_TRY(file.write(0, std::as_bytes(std::span(text))));
    VBDKIT_TRY(file.flush());
    if (::rename(fresh.c_str(), path.c_str()) == 0) return {};
    return Error::from_errno(errno, "rename " + fresh + " to " + path);
  };
  if (auto made = make(); !made) {
    ::unlink(fresh.c_str());
    return made;
  }
  return sync_directory(directory_of(path));
}

}  // namespace vbdkit::drivers
