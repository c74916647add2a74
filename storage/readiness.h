// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Tells whoever started the program that it is ready, in the two ways that supervisors know: a line
// on a descriptor (s6's notification), and systemd's datagram (sd_notify(3), whose protocol is
// stable and documented; linking libsystemd for it would double an idle process's memory).
#pragma once

#include "base/result.h"

namespace vbdkit::storage {

// Writes "\n" to the descriptor and closes it.
Result<void> announce_on_fd(int fd);
// READY=1 to $NOTIFY_SOCKET; does nothing where that is not set.
Result<void> announce_to_systemd();

}  // namespace vbdkit::storage
