// SPDX-License-Identifier: LGPL-2.1-or-later
#include "base/log.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace vbdkit {
namespace {

constexpr size_t kMaxLine = 2048;

}  // namespace

Result<LogLevel> parse_log_level(std::string_view name) {
  // In the order of the levels, from kError on.
  constexpr std::array<std::string_view, 5> kNames = {"error", "warning", "notice", "info",
                                                      "debug"};
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  if (found == kNames.end())
    return Error(ErrorKind::kInvalid,
                 "log level '" + std::string(name) +
                     "': unknown (known: error, warning, notice, info, debug)");
  return static_cast<LogLevel>(static_cast<int>(LogLevel::kError) +
                               static_cast<int>(found - kNames.begin()));
}

bool RateLimit::allow(Clock::time_point now, uint64_t* suppressed) {
  if (now - window_start_ >= interval_) {
    window_start_ = now;
    in_window_ = 0;
  }
  if (in_window_ >= burst_) {
    ++swallowed_;
    return false;
  }
  ++in_window_;
  *suppressed = std::exchange(swallowed_, 0);
  return true;
}

Logger::Logger(std::string program, LogLevel threshold, int fd)
    : program_(std::move(program)),
      threshold_(threshold),
      fd_(fd),
      journal_(getenv("JOURNAL_STREAM") != nullptr) {}

void Logger::vlog(LogLevel level, std::string_view suffix, const char* format, va_list args) const {
  // One line, one write: lines of several threads and processes must not mix.
  char line[kMaxLine];
  int head = journal_ ? snprintf(line, sizeof line, "<%d>", static_cast<int>(level))
                      : snprintf(line, sizeof line, "%s: ", program_.c_str());
  if (head < 0) return;
  size_t used = std::min(static_cast<size_t>(head), sizeof line - 1);
  int body = vsnprintf(line + used, sizeof line - used, format, args);
  if (body < 0) return;
  // What a guest wrote may stand in a message: no control character reaches the terminal.
  size_t end = std::min(used + static_cast<size_t>(body), sizeof line - 1);
  std::replace_if(
      line + used, line + end, [](char c) { return static_cast<unsigned char>(c) < 0x20; }, '?');
  used = end;
  size_t tail = std::min(suffix.size(), sizeof line - 1 - used);
  std::copy_n(suffix.data(), tail, line + used);
  used += tail;
  line[std::min(used, sizeof line - 1)] = '\n';
  // A log that cannot be written must not stop a disk.
  [[maybe_unused]] ssize_t n = ::write(fd_, line, std::min(used + 1, sizeof line));
}

#define VBDKIT_LOG_BODY(level)   \
  if (!enabled(level)) return;   \
  va_list args;                  \
  va_start(args, format);        \
  vlog(level, {}, format, args); \
  va_end(args)

void Logger::log(LogLevel level, const char* format, ...) const { VBDKIT_LOG_BODY(level); }
void Logger::error(const char* format, ...) const { VBDKIT_LOG_BODY(LogLevel::kError); }
void Logger::warning(const char* format, ...) const { VBDKIT_LOG_BODY(LogLevel::kWarning); }
void Logger::notice(const char* format, ...) const { VBDKIT_LOG_BODY(LogLevel::kNotice); }
void Logger::info(const char* format, ...) const { VBDKIT_LOG_BODY(LogLevel::kInfo); }
void Logger::debug(const char* format, ...) const { VBDKIT_LOG_BODY(LogLevel::kDebug); }

void Logger::limited(RateLimit& limit, LogLevel level, const char* format, ...) const {
  if (!enabled(level)) return;
  uint64_t suppressed = 0;
  if (!limit.allow(RateLimit::Clock::now(), &suppressed)) return;
  char suffix[64] = "";
  if (suppressed > 0)
    snprintf(suffix, sizeof suffix, " (and %llu like it before)",
             static_cast<unsigned long long>(suppressed));
  va_list args;
  va_start(args, format);
  vlog(level, suffix, format, args);
  va_end(args);
}

}  // namespace vbdkit
