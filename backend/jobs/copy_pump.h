// SPDX-License-Identifier: LGPL-2.1-or-later
//
// CopyPump: asks for one copy after the other until nothing is marked in a MirrorFilter. Copies go
// through the scheduler like any consumer's requests, each so small that a guest's request never
// waits for much. With a speed set they go one at a time, as the speed lets them; else a few at a
// time.
// Thread: the reactor's. The job owns it, and destroys it only when nothing is in flight
// (stop()).
#pragma once

#include <array>
#include <functional>
#include <memory>

#include "backend/request_sink.h"
#include "drivers/jobs/mirror_filter.h"
#include "drivers/token_bucket.h"
#include "io/reactor.h"

namespace vbdkit::jobs {

class CopyPump {
 public:
  struct Events {
    // Nothing is marked any more, and nothing is in flight. Once for each go().
    std::function<void()> clean;
    // A copy failed for the disk's sake (what the target does the filter tells). It has stopped.
    std::function<void(int error, uint64_t offset)> failed;
  };

  CopyPump(io::Reactor& reactor, RequestSink& disk, drivers::MirrorFilter& filter, Events events);
  CopyPump(const CopyPump&) = delete;
  CopyPump& operator=(const CopyPump&) = delete;

  void go();
  // Bytes a second; 0: as fast as it goes.
  void set_speed(uint64_t speed);
  void pause(bool paused);
  // Asks for nothing more; `stopped` is called, perhaps at once, when nothing is in flight.
  void stop(std::function<void()> stopped);

  bool busy() const { return in_flight_ > 0; }
  uint64_t copied() const { return copied_; }  // bytes

  static constexpr uint64_t kCopy = 256 * 1024;  // bytes at once
  // Who sets a limit cares for the guest: it waits for a smaller piece, less long.
  static constexpr uint64_t kLimitedCopy = 64 * 1024;

 private:
  static constexpr size_t kSlots = 4;
  struct Slot : drivers::Request {
    CopyPump* pump = nullptr;
    bool busy = false;
  };

  void pump();
  bool copy(uint64_t offset, uint64_t length);
  void done(Slot& slot, int error);

  RequestSink& disk_;
  drivers::MirrorFilter& filter_;
  const Events events_;
  const std::unique_ptr<io::Timer> timer_;
  drivers::TokenBucket bucket_;
  std::array<Slot, kSlots> slots_;
  size_t in_flight_ = 0;
  uint64_t cursor_ = 0;
  uint64_t copied_ = 0;
  bool running_ = false;
  bool paused_ = false;
  std::function<void()> stopped_;
};

}  // namespace vbdkit::jobs
