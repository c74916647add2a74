// SPDX-License-Identifier: LGPL-2.1-or-later
#include "base/uuid.h"

#include <unistd.h>

#include <array>

#include "base/fd.h"

namespace vbdkit {

Result<std::string> random_uuid() {
  VBDKIT_ASSIGN(const Fd source, Fd::open("/proc/sys/kernel/random/uuid", O_RDONLY));
  std::array<char, 36> text;
  if (::read(source.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    return Error::from_errno(errno, "read /proc/sys/kernel/random/uuid");
  return std::string(text.data(), text.size());
}

}  // namespace vbdkit
