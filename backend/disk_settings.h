// SPDX-License-Identifier: LGPL-2.1-or-later
//
// DiskSettings: what can be set on a running disk and is no job: its size (block_resize), its
// limits (block_set_io_throttle), and holding it for a while (x-vbdkit-pause, x-vbdkit-resume).
// Arguments and results are QEMU's where it has the command.
//
// A pause ends at its deadline at the latest, whatever becomes of who asked for it: a guest whose
// disk is held for long gives it up.
//
// Thread: the reactor's. Ownership: the instance's; it goes before the graph.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string_view>

#include "backend/control/qmp_server.h"
#include "backend/live_graph.h"
#include "drivers/throttle.h"
#include "io/reactor.h"

namespace vbdkit {

class DiskSettings {
 public:
  struct Events {
    std::function<void()> resized;          // consumers are to be told
    std::function<void()> state_changed;    // paused or running; its limits
    std::function<void()> resumed_by_time;  // the deadline has passed
  };

  DiskSettings(io::Reactor& reactor, LiveGraph& graph, Events events);
  DiskSettings(const DiskSettings&) = delete;
  DiskSettings& operator=(const DiskSettings&) = delete;

  void add_commands(control::CommandTable& commands);

  bool paused() const { return pauses_ > 0; }
  // Ends all pauses, and admits none any more: what waits for them could never drain.
  void close();
  // Those of the first filter that limits; all zero where there is none.
  drivers::ThrottleLimits limits() const;

 private:
  void resize(const control::Json& given, control::Reply reply);
  void throttle(const control::Json& given, control::Reply reply);
  void pause(const control::Json& given, control::Reply reply);
  void resume(control::Reply reply);
  void end_pauses();

  io::Reactor& reactor_;
  LiveGraph& graph_;
  const Events events_;
  const std::unique_ptr<io::Timer> deadline_timer_;
  io::Timer::Clock::time_point deadline_{};
  unsigned pauses_ = 0;
  bool closed_ = false;
};

// QEMU's name of each limit, for its arguments and for query-block.
struct ThrottleArgument {
  const char* rate;
  const char* burst;
  const char* burst_seconds;
  drivers::Limit drivers::ThrottleLimits::*limit;
};
inline constexpr ThrottleArgument kThrottleArguments[] = {
    {"bps", "bps_max", "bps_max_length", &drivers::ThrottleLimits::bps},
    {"bps_rd", "bps_rd_max", "bps_rd_max_length", &drivers::ThrottleLimits::bps_read},
    {"bps_wr", "bps_wr_max", "bps_wr_max_length", &drivers::ThrottleLimits::bps_write},
    {"iops", "iops_max", "iops_max_length", &drivers::ThrottleLimits::iops},
    {"iops_rd", "iops_rd_max", "iops_rd_max_length", &drivers::ThrottleLimits::iops_read},
    {"iops_wr", "iops_wr_max", "iops_wr_max_length", &drivers::ThrottleLimits::iops_write},
};

}  // namespace vbdkit
