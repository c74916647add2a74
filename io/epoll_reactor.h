// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The reactor on epoll(7), for kernels and containers without io_uring: sockets and watches by
// readiness, files through a FileEngine. Thread and ownership: io/reactor.h.
#pragma once

#include <memory>

#include "io/reactor.h"

namespace vbdkit::io {

// `engine`: kAio or kSync.
[[gnu::cold]] Result<std::unique_ptr<Reactor>> create_epoll_reactor(const Reactor::Options& options,
                                                                    EngineKind engine);

}  // namespace vbdkit::io
