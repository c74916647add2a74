// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What the journals beside images are written in: lines of text, each a keyword and its words;
// what others named (paths) is in hexadecimal digits. A journal is replaced as a whole, durably.
// Whoever can write beside an image can write anything there: all that is read is checked.
// Pure but for load_journal() and save_journal(), which block; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace vbdkit::drivers {

std::string to_hex(std::span<const std::byte> bytes);
std::string to_hex(std::string_view text);

// What is in front of the first `end`, which goes with it; all there is without one.
std::string_view take_until(std::string_view& text, char end);

// One line's words after the first, each of which must be there and be right. No stream: those
// would bring all locales into the instances.
class JournalLine {
 public:
  explicit JournalLine(std::string_view line) : rest_(line), keyword_(take_until(rest_, ' ')) {}
  std::string_view keyword() const { return keyword_; }

  uint64_t number();
  std::vector<std::byte> bytes();
  std::string text();
  // All words were right, and none is left.
  bool good() const { return good_ && rest_.empty(); }

 private:
  std::string_view rest_;
  std::string_view keyword_;
  bool good_ = true;
};

// Nothing where there is no such file.
Result<std::optional<std::string>> load_journal(const std::string& path);
Result<void> save_journal(const std::string& path, const std::string& text);

}  // namespace vbdkit::drivers
