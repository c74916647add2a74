// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Messages for the admin, on stderr. Under systemd (JOURNAL_STREAM set) each line starts with the
// "<N>" priority that journald understands (sd-daemon(3)); on a terminal it starts with the
// program's name. A Logger is created in main and passed down; it may be used from any thread.
//
// A guest can provoke messages at will, so whatever a guest or client can trigger is logged
// through a RateLimit, which also says how many it swallowed.
#pragma once

#include <chrono>
#include <cstdarg>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace vbdkit {

enum class LogLevel : int { kError = 3, kWarning = 4, kNotice = 5, kInfo = 6, kDebug = 7 };
// "error", "warning", "notice", "info", "debug".
Result<LogLevel> parse_log_level(std::string_view name);

// Lets `burst` messages through per `interval`. Not thread-safe: one owner.
class RateLimit {
 public:
  using Clock = std::chrono::steady_clock;
  explicit RateLimit(unsigned burst = 5, Clock::duration interval = std::chrono::seconds(10))
      : burst_(burst), interval_(interval) {}

  // True where a message may be written now; then *suppressed is how many were swallowed before it.
  bool allow(Clock::time_point now, uint64_t* suppressed);

 private:
  unsigned burst_;
  Clock::duration interval_;
  Clock::time_point window_start_{};
  unsigned in_window_ = 0;
  uint64_t swallowed_ = 0;
};

class Logger {
 public:
  // `program` is the prefix of each line; `threshold`: messages less urgent are dropped.
  // Writes to `fd`, which it does not own.
  Logger(std::string program, LogLevel threshold, int fd = 2);

  bool enabled(LogLevel level) const { return level <= threshold_; }

  [[gnu::format(printf, 3, 4)]] void log(LogLevel level, const char* format, ...) const;
  [[gnu::format(printf, 2, 3)]] void error(const char* format, ...) const;
  [[gnu::format(printf, 2, 3)]] void warning(const char* format, ...) const;
  [[gnu::format(printf, 2, 3)]] void notice(const char* format, ...) const;
  [[gnu::format(printf, 2, 3)]] void info(const char* format, ...) const;
  [[gnu::format(printf, 2, 3)]] void debug(const char* format, ...) const;
  // For what a guest or a client can provoke.
  [[gnu::format(printf, 4, 5)]] void limited(RateLimit& limit, LogLevel level, const char* format,
                                             ...) const;

 private:
  void vlog(LogLevel level, std::string_view suffix, const char* format, va_list args) const;

  std::string program_;
  LogLevel threshold_;
  int fd_;
  bool journal_;
};

}  // namespace vbdkit
