// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Processes told apart for good: a process id is used again, together with the time at which the
// process began it is not. Any thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>

namespace vbdkit {

// When the process began, in the kernel's clock ticks since the machine did (proc_pid_stat(5),
// field 22). Nothing where there is no such process, or only its exit status is left.
std::optional<uint64_t> process_start_time(pid_t pid);

}  // namespace vbdkit
