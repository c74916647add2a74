// SPDX-License-Identifier: LGPL-2.1-or-later
//
// An open event-channel device: the ports bound through it, and the descriptor that is readable
// while one of them is pending. A port comes masked and is delivered again after unmask(). Any
// thread; behaviour after Linux drivers/xen/evtchn.c.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <memory>

#include "base/fd.h"
#include "base/result.h"
#include "tests/sim/connection.h"

namespace vbdkit::sim {

using Deadline = std::chrono::steady_clock::time_point;
inline Deadline in(std::chrono::milliseconds time) {
  return std::chrono::steady_clock::now() + time;
}

class EventChannels {
 public:
  static Result<std::unique_ptr<EventChannels>> open(std::shared_ptr<Connection> connection);
  ~EventChannels();
  EventChannels(const EventChannels&) = delete;
  EventChannels& operator=(const EventChannels&) = delete;

  int fd() const { return fd_.get(); }

  Result<EvtPort> bind_unbound(DomId remote);
  Result<EvtPort> bind_interdomain(DomId remote, EvtPort remote_port);
  Result<EvtPort> bind_virq(uint32_t virq);
  Result<void> unbind(EvtPort port);

  // These are on the data path and answer with an errno, 0 for success.
  int notify(EvtPort port);
  int unmask(EvtPort port);
  struct Pending {
    int error;
    EvtPort port;
  };
  // Blocks while nothing is pending, unless the descriptor is non-blocking (EAGAIN).
  Pending pending();
  // True once something is pending; false where the deadline passed.
  bool wait(Deadline deadline) const;

 private:
  EventChannels(std::shared_ptr<Connection> connection, uint32_t handle, Fd fd)
      : connection_(std::move(connection)), handle_(handle), fd_(std::move(fd)) {}
  Result<EvtPort> bind(Op op, uint32_t arg1, uint32_t arg2);
  bool owns(EvtPort port) const;

  std::shared_ptr<Connection> connection_;
  uint32_t handle_;
  Fd fd_;
  // The port behind each bit, kept after an unbind: an event already queued still comes out, as it
  // does from the kernel's ring.
  std::array<std::atomic<EvtPort>, kPortsPerHandle> slot_port_{};
  std::array<std::atomic<bool>, kPortsPerHandle> slot_bound_{};
  std::atomic<uint32_t> words_used_ = 0;  // of the handle's bitmap
};

}  // namespace vbdkit::sim
