// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Stream sockets in the file system: the addresses, modes and stale files that every control socket
// has to get right. No thread affinity.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/fd.h"

namespace vbdkit::control {

// A listening socket with `mode`, never wider for a moment. A stale file of a dead process is
// replaced; where something still listens there, the error is kBusy.
Result<Fd> listen_unix(const std::string& path, mode_t mode = 0600);

// Non-blocking from the start; a unix socket connects at once or fails.
Result<Fd> connect_unix(const std::string& path);

}  // namespace vbdkit::control
