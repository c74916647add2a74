// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "storage/terminal.h"

namespace vbdkit::storage {
namespace {

size_t columns() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

std::string duration(uint64_t seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%u:%02u", static_cast<unsigned>(seconds / 60),
                static_cast<unsigned>(seconds % 60));
  return text;
}

}  // namespace

Progress::Progress(std::string label)
    : label_(std::move(label)), visible_(isatty(STDERR_FILENO) != 0) {}

std::string Progress::text(const std::string& label, uint64_t settled, uint64_t total,
                           double seconds, size_t columns) {
  const double share = total == 0 ? 1 : static_cast<double>(settled) / static_cast<double>(total);
  char percent[8];
  std::snprintf(percent, sizeof percent, "%3u%%", static_cast<unsigned>(share * 100));
  const std::string head = label + " " + percent + " [";
  std::string tail = "] " + human_size(settled) + " of " + human_size(total);
  // Before that, it would be a guess.
  if (seconds >= 1 && settled > 0 && settled < total)
    tail += ", " + duration(static_cast<uint64_t>(seconds * (1 - share) / share)) + " left";
  constexpr size_t kLeast = 5;
  const size_t used = head.size() + tail.size() + 1;
  const size_t width = columns > used + kLeast ? std::min<size_t>(columns - used, 40) : kLeast;
  const auto filled = static_cast<size_t>(share * static_cast<double>(width));
  std::string line = head + std::string(filled, '#') + std::string(width - filled, '.') + tail;
  line.resize(std::min(line.size(), columns > 0 ? columns - 1 : 0));
  return line;
}

void Progress::show(uint64_t settled, uint64_t total) {
  if (!visible_) return;
  const std::chrono::duration<double> time = Clock::now() - begin_;
  // The rest of the line is what a longer one left.
  std::fprintf(stderr, "\r%s\033[K", text(label_, settled, total, time.count(), columns()).c_str());
  std::fflush(stderr);
  shown_ = true;
}

void Progress::clear() {
  if (!shown_) return;
  std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
  shown_ = false;
}

}  // namespace vbdkit::storage
