// SPDX-License-Identifier: LGPL-2.1-or-later
#include "base/signals.h"

#include <sys/signalfd.h>

#include <csignal>

namespace vbdkit {

Result<Fd> catch_signals(std::initializer_list<int> signals) {
  sigset_t mask;
  ::sigemptyset(&mask);
  for (const int signal : signals) ::sigaddset(&mask, signal);
  if (::sigprocmask(SIG_BLOCK, &mask, nullptr) < 0) return Error::from_errno(errno, "sigprocmask");
  Fd fd(::signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd.valid()) return Error::from_errno(errno, "signalfd");
  return fd;
}

void survive_file_size_limit() { std::signal(SIGXFSZ, SIG_IGN); }

}  // namespace vbdkit
