// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The scheduler stands between consumers and the top node of the graph. It keeps the order of
// requests that overlap (unless both read), merges adjacent reads or writes of one turn into one
// vectored request, expands preflush, FUA-less flushes and barriers, splits what exceeds the node's
// max_transfer, and can pause the disk between two requests.
//
// Thread: one reactor. Requests are dispatched once per turn, so that a batch is seen whole.
// Cost: no allocation once its pools have grown to the load's depth; the overlap check is O(1)
// while no two requests in flight are near each other.
#pragma once

#include <functional>
#include <memory>

#include "backend/request_sink.h"
#include "io/reactor.h"

namespace vbdkit {

struct SchedulerCounters {
  uint64_t submitted = 0;   // requests from consumers
  uint64_t dispatched = 0;  // requests to the node
  uint64_t merged = 0;      // consumers' requests that travelled inside another's
  uint64_t delayed = 0;     // had to wait for an overlapping one, a barrier or a pause
};

class Scheduler : public RequestSink {
 public:
  // Both must outlive it.
  static std::unique_ptr<Scheduler> create(io::Reactor& reactor, drivers::Node& top);

  // The node to which requests go; replaced only while paused (snapshot, refresh).
  virtual void set_node(drivers::Node& top) = 0;
  virtual drivers::Node& node() = 0;

  // As the node's; a pause holds it up, and waits for it. `done` may run inside the call, and is to
  // be set anew for each question.
  virtual void block_status(drivers::StatusRequest& request) = 0;

  // Stops dispatching; `drained` is called from the loop when nothing is in flight below.
  // Requests submitted meanwhile wait. Pauses nest: as many resumes as pauses.
  virtual void pause(std::function<void()> drained) = 0;
  virtual void resume() = 0;

  virtual bool idle() const = 0;  // nothing waiting, nothing in flight
  virtual const SchedulerCounters& counters() const = 0;
};

}  // namespace vbdkit
