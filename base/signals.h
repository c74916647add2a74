// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Signals as something to read: a loop takes them when it has time. Call it before there are other
// threads, which inherit what is blocked.
#pragma once

#include <initializer_list>

#include "base/fd.h"
#include "base/result.h"

namespace vbdkit {

// Blocks these signals for the process; the signalfd(2), which does not block, has them.
[[gnu::cold]] Result<Fd> catch_signals(std::initializer_list<int> signals);

// A write beyond RLIMIT_FSIZE (systemd's LimitFSIZE=) is an error of that write, EFBIG, and not the
// end of the process and of all its guests' disks.
[[gnu::cold]] void survive_file_size_limit();

}  // namespace vbdkit
