// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Stream sockets in the file system: the addresses, modes and stale files that every control socket
// has to get right. No thread affinity.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/fd.h"

namespace vbdkit::control {

// A listening socket with `mode`, never wider for a moment. It replaces whatever is at `path`: that
// no other process lives there is for a lock to say. (The socket itself cannot: the kernel may keep
// that of a killed process listening for a while, for the sake of its io_uring.)
[[gnu::cold]] Result<Fd> listen_unix(const std::string& path, mode_t mode = 0600);

// Non-blocking from the start; a unix socket connects at once or fails.
[[gnu::cold]] Result<Fd> connect_unix(const std::string& path);

}  // namespace vbdkit::control
