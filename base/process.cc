// SPDX-License-Identifier: LGPL-2.1-or-later
#include "base/process.h"

#include <unistd.h>

#include <array>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/fd.h"

namespace vbdkit {

std::optional<uint64_t> process_start_time(pid_t pid) {
  constexpr int kState = 3;
  constexpr int kStartTime = 22;
  const auto stat = Fd::open("/proc/" + std::to_string(pid) + "/stat", O_RDONLY);
  std::array<char, 1024> text;
  const ssize_t n = stat ? ::read(stat->get(), text.data(), text.size()) : -1;
  if (n <= 0) return std::nullopt;
  const std::string_view all(text.data(), static_cast<size_t>(n));
  size_t at = all.rfind(')');  // the name, field 2, may hold spaces
  for (int field = 2; field < kStartTime && at != all.npos; ++field) {
    at = all.find(' ', at);
    if (at != all.npos) ++at;
    if (field + 1 == kState && at < all.size() && (all[at] == 'Z' || all[at] == 'X'))
      return std::nullopt;
  }
  if (at >= all.size()) return std::nullopt;
  return std::strtoull(std::string(all.substr(at)).c_str(), nullptr, 10);
}

}  // namespace vbdkit
