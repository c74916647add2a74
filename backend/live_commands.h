// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The commands of the control socket that change an instance's chain of images while guests use it:
//
//   blockdev-snapshot-sync   QEMU's: a new file in front of the image
//   x-vbdkit-snapshot        the present content under another name; the image keeps its own
//   x-vbdkit-refresh         looks again which images the chain is made of, and how large the
//                            disk is; answered when other hosts may have what is used no more
//   x-vbdkit-yield-lock      lets a coalescer write to parents (drivers/file_lock.h)
//   x-vbdkit-relink          puts the leaf on another parent that reads the same
//
// What a coalescer was let do ends by itself: the instance keeps trying to have its locks back.
//
// Thread: the reactor's; files are made by a thread beside it, so that a slow file system does not
// hold up guests. The instance owns it, with everything it refers to.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/beside.h"
#include "backend/control/qmp_server.h"
#include "backend/live_graph.h"
#include "base/log.h"
#include "drivers/chain/live_chain.h"
#include "drivers/registry.h"
#include "io/reactor.h"

namespace vbdkit {

class LiveCommands {
 public:
  // Whether an image that was made may be opened for writing; none: always.
  using Admit = std::function<void(const std::string& path, LiveGraph::Done done)>;
  // Calls back when other hosts know which images are used here; none: there are no others.
  using Settled = std::function<void(std::function<void()> then)>;

  // `options`: how the graph's image was opened.
  LiveCommands(io::Reactor& reactor, const Logger& log, LiveGraph& graph,
               drivers::OpenOptions options, Admit admit = {}, Settled settled = {});
  LiveCommands(const LiveCommands&) = delete;
  LiveCommands& operator=(const LiveCommands&) = delete;

  void add_to(control::CommandTable& commands);

 private:
  struct Snapshot;
  // Null where there is no chain.
  using MakeRefresh = std::function<Result<std::unique_ptr<drivers::ChainRefresh>>()>;

  void snapshot_sync(const control::Json& arguments, control::Reply reply);
  void snapshot_name(const control::Json& arguments, control::Reply reply);
  void take(std::shared_ptr<Snapshot> snapshot, control::Reply reply);
  Result<void> put_over_raw(drivers::NodePtr& top, const Snapshot& snapshot);
  void refresh(control::Reply reply);
  void relink(const control::Json& arguments, control::Reply reply);
  void change_parents(std::shared_ptr<std::unique_ptr<drivers::ChainRefresh>> refresh,
                      MakeRefresh make, bool flush, control::Reply reply);
  void yield_lock(const control::Json& arguments, control::Reply reply);
  void retake_locks();

  drivers::OpenContext context() const { return {reactor_, log_, options_}; }

  io::Reactor& reactor_;
  const Logger& log_;
  LiveGraph& graph_;
  const drivers::OpenOptions options_;
  const Admit admit_;
  const Settled settled_;
  Beside beside_;  // the graph has one change under way
  std::unique_ptr<io::Timer> retake_;
};

}  // namespace vbdkit
