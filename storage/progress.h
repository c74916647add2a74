// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A progress bar on stderr, where that is a terminal; nothing elsewhere. One thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace vbdkit::storage {

class Progress {
 public:
  explicit Progress(std::string label);
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  bool visible() const { return visible_; }
  void show(uint64_t settled, uint64_t total);  // bytes
  // Takes the bar away, for messages and the end.
  void clear();

  // The text of a bar so wide; `seconds` since the beginning. Pure.
  static std::string text(const std::string& label, uint64_t settled, uint64_t total,
                          double seconds, size_t columns);

 private:
  using Clock = std::chrono::steady_clock;

  const std::string label_;
  const Clock::time_point begin_ = Clock::now();
  const bool visible_;
  bool shown_ = false;
};

}  // namespace vbdkit::storage
