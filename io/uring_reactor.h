// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The reactor on io_uring (io_uring(7), liburing). Everything goes through one ring, so a turn of
// the loop costs one system call whatever it submits and reaps. Thread and ownership: io/reactor.h.
#pragma once

#include <memory>

#include "io/reactor.h"

namespace vbdkit::io {

[[gnu::cold]] Result<std::unique_ptr<Reactor>> create_uring_reactor(
    const Reactor::Options& options);

}  // namespace vbdkit::io
