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

}  // namespace vbdkit
