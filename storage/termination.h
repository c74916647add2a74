// SPDX-License-Identifier: LGPL-2.1-or-later
//
// SIGTERM and SIGINT as events of a reactor, for commands that end in an orderly way.
#pragma once

#include "base/fd.h"
#include "base/result.h"

namespace vbdkit::storage {

// The two become readable (signalfd(2)) instead of interrupting. Before anything else starts a
// thread, so that all inherit the mask.
Result<Fd> catch_termination();
// From now on they interrupt again.
void release_termination();

}  // namespace vbdkit::storage
