// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/termination.h"

#include <signal.h>
#include <sys/signalfd.h>

namespace vbdkit::storage {
namespace {

sigset_t termination_set() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

}  // namespace

Result<Fd> catch_termination() {
  const sigset_t set = termination_set();
  if (::sigprocmask(SIG_BLOCK, &set, nullptr) != 0) return Error::from_errno(errno, "sigprocmask");
  Fd fd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd.valid()) return Error::from_errno(errno, "signalfd");
  return fd;
}

void release_termination() {
  const sigset_t set = termination_set();
  ::sigprocmask(SIG_UNBLOCK, &set, nullptr);
}

}  // namespace vbdkit::storage
