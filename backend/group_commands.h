// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What an instance does for a snapshot of several disks at one moment (drivers/group_snapshot.h),
// of which it has one:
//
//   x-vbdkit-group-prepare   makes the files, while the guest goes on
//   x-vbdkit-group-hold      the disk stands still from here on; the answer is the instance's vote
//   x-vbdkit-group-settle    does what the journal says; where it says nothing, that is the end of
//                            it. "durable": it is so already, which spares the disk a wait
//
// Where no word comes in time, or nobody is left to give it, the instance settles by itself. The
// disk goes on when the verdict is known, and not before: where it cannot be read the disk waits.
//
// Thread: the reactor's. The instance owns it, with everything it refers to.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "backend/beside.h"
#include "backend/control/qmp_server.h"
#include "backend/live_graph.h"
#include "base/log.h"
#include "drivers/group_snapshot.h"
#include "drivers/registry.h"
#include "io/reactor.h"

namespace vbdkit {

class GroupCommands {
 public:
  using Admit = std::function<void(const std::string& path, LiveGraph::Done done)>;

  // As LiveCommands has them.
  GroupCommands(io::Reactor& reactor, const Logger& log, LiveGraph& graph,
                drivers::OpenOptions options, Admit admit);
  ~GroupCommands();
  GroupCommands(const GroupCommands&) = delete;
  GroupCommands& operator=(const GroupCommands&) = delete;

  void add_to(control::CommandTable& commands);
  // Waits for nobody any more: the graph is about to be closed.
  void close();

 private:
  struct Group;
  struct Flush : drivers::Request {
    GroupCommands* commands = nullptr;
  };

  void prepare(const control::Json& arguments, control::Reply reply);
  void made(Result<void> result);
  void prepared(Result<void> result);
  void hold(const control::Json& arguments, control::Reply reply);
  void held(LiveGraph::Done go);
  void settle(const control::Json& given, control::Reply reply);
  void settle_now();
  void settled(drivers::Verdict verdict);
  void tidy(const Result<void>& result, std::function<void()> tidied);
  void forget(Result<void> result);
  void wait_for_word(std::chrono::milliseconds time);
  void look();

  io::Reactor& reactor_;
  const Logger& log_;
  LiveGraph& graph_;
  const drivers::OpenOptions options_;
  const Admit admit_;
  const std::unique_ptr<io::Timer> timer_;
  io::Timer::Clock::time_point deadline_{};
  std::unique_ptr<Group> group_;  // one at a time
  bool closing_ = false;
  Flush flush_;
  Beside beside_;
};

}  // namespace vbdkit
