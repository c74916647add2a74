// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/termination.h"

#include <signal.h>

#include "base/signals.h"

namespace vbdkit::storage {

Result<Fd> catch_termination() { return catch_signals({SIGTERM, SIGINT}); }

void release_termination() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  ::sigprocmask(SIG_UNBLOCK, &set, nullptr);
}

}  // namespace vbdkit::storage
