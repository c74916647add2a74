// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The replacement libraries' one piece of process-wide state: the connection to the broker that all
// handles of the process share, as they would share one kernel. Any thread.
#pragma once

#include <memory>

#include "base/result.h"
#include "tests/sim/connection.h"

namespace vbdkit::sim {

// Opened at the first call, and again in a forked child. Lives until the process ends, because
// mappings outlive the handle they were made through.
Result<std::shared_ptr<Connection>> process_connection();

}  // namespace vbdkit::sim

// The replacement libraries export nothing but the libxen* calls.
#define SIMXEN_EXPORT extern "C" __attribute__((visibility("default")))
