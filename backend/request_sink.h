// SPDX-License-Identifier: LGPL-2.1-or-later
//
// RequestSink: where a consumer (a ring, an NBD connection, a job) hands its requests. The
// Scheduler is one; so is the hand-over to a scheduler on another reactor. A consumer so never
// knows on which thread the image lives.
//
// Thread: submit() on the consumer's own reactor; `done` comes back on the same one.
// Ownership: as for drivers::Request: the sink owns it until done. `done` never runs inside
// submit().
#pragma once

#include "drivers/node.h"

namespace vbdkit {

// Flags of a drivers::Request that sinks understand beyond those of nodes; no node sees them.
inline constexpr uint8_t kPreflush = 0x10;  // make completed writes durable, then do this request
inline constexpr uint8_t kBarrier = 0x20;   // after all earlier requests, before all later ones

class RequestSink {
 public:
  virtual ~RequestSink() = default;

  // op kFlush carries no data. The range must lie inside the disk and be aligned to
  // info().request_alignment: consumers validate, because they know how to refuse in their
  // protocol.
  virtual void submit(drivers::Request& request) = 0;
  virtual const drivers::NodeInfo& info() const = 0;
  // The consumer leaves, and waits for what it has submitted: that is not to wait for a limit any
  // more. Completions may run inside.
  virtual void hurry() {}
};

}  // namespace vbdkit
