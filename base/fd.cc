// SPDX-License-Identifier: LGPL-2.1-or-later
#include "base/fd.h"

#include <sys/eventfd.h>
#include <unistd.h>

namespace vbdkit {

Result<Fd> Fd::open(const std::string& path, int flags, mode_t mode) {
  int fd;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return Error::from_errno(errno, "open " + path);
  return Fd(fd);
}

Result<Fd> Fd::eventfd() {
  int fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) return Error::from_errno(errno, "eventfd");
  return Fd(fd);
}

void Fd::reset() {
  // close() must not be retried on EINTR: Linux has released the descriptor by then.
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

}  // namespace vbdkit
