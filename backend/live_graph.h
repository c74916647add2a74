// SPDX-License-Identifier: LGPL-2.1-or-later
//
// LiveGraph: an instance's graph of nodes and the scheduler on top of it, and the only way to
// change the graph while consumers use it. A change runs between two requests: the scheduler is
// paused, what is in flight comes back, the change is applied, the scheduler goes on. Consumers
// notice a longer request at most; those that look at the graph itself ask to be told (on_changed).
//
// Changes are serialised: one that is asked for while another is under way waits for it, from its
// preparation on. A change that fails leaves the graph as it was; that is its own duty.
//
// Thread: the reactor's. Ownership: it owns scheduler and nodes; consumers go before it does.
// Destroyed with changes under way it drops them, and their `done` with them.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/scheduler.h"
#include "base/result.h"
#include "drivers/chain/chain_node.h"
#include "drivers/chain/live_chain.h"
#include "drivers/node.h"
#include "io/reactor.h"

namespace vbdkit {

class LiveGraph {
 public:
  using Done = std::function<void(Result<void>)>;

  struct Change {
    // While the disk runs on, and no other change does: what takes time. Calls its argument once.
    std::function<void(Done ready)> prepare = {};
    // Make durable what was written, while the disk runs, until that takes little time, and once
    // more with nothing in flight: so that a node that ends has little to write, and a storage that
    // cannot is met before `apply`.
    bool flush = false;
    // With nothing in flight, before `apply`, where that depends on others: consumers wait, for as
    // long as it takes. Calls its argument once.
    std::function<void(Done go)> hold = {};
    // With nothing in flight. `top` may be replaced; it is set on return. Requests that wait were
    // checked against the graph before: the disk gets no smaller, and its alignment no coarser.
    std::function<Result<void>(drivers::NodePtr& top)> apply = {};
    // When the disk goes on, and before the next change begins: what is left to do with files.
    // Calls its argument once.
    std::function<void(const Result<void>& result, std::function<void()> tidied)> tidy = {};
    // At last, from the loop.
    Done done = {};
  };

  enum class Place {
    kTop,         // above everything
    kAboveImage,  // beneath the filters
  };
  using MakeFilter = std::function<drivers::NodePtr(drivers::NodePtr next)>;

  LiveGraph(io::Reactor& reactor, drivers::NodePtr top);
  ~LiveGraph();
  LiveGraph(const LiveGraph&) = delete;
  LiveGraph& operator=(const LiveGraph&) = delete;

  Scheduler& scheduler() { return *scheduler_; }
  const Scheduler& scheduler() const { return *scheduler_; }
  drivers::Node& top() const { return *top_; }
  // The image beneath the filters; and where it is a chain, the chain, else nullptr.
  drivers::Node& image() const;
  drivers::ChainNode* chain() const;

  void change(Change change);
  void change(std::function<Result<void>(drivers::NodePtr& top)> apply, Done done) {
    change({.apply = std::move(apply), .done = std::move(done)});
  }
  // For `apply`: puts a node in the place of one that is in the graph, and gives that one out.
  // Where that is not in the graph, gives out the new one.
  static drivers::NodePtr replace(drivers::NodePtr& top, drivers::Node& old,
                                  drivers::NodePtr fresh);
  void insert_filter(Place place, MakeFilter make, Done done);
  // Takes the node out; what stood beneath it takes its place. kNotFound where it is not there.
  void remove_filter(drivers::Node& filter, Done done);

  // After each change that succeeded, before its `done`. For the graph's lifetime.
  void on_changed(std::function<void()> observer) { observers_.push_back(std::move(observer)); }

  // Somebody relies on the image's files: whoever would change them for another reason asks first,
  // and gets the reason why not.
  void reserve(std::string by) { reserved_by_ = std::move(by); }
  void release() { reserved_by_.clear(); }
  Result<void> unreserved() const;

  bool changing() const { return !changes_.empty(); }
  // For `prepare`: takes all steps of a refresh, one image a turn of the loop, so that guests'
  // requests get their turns in between.
  using Refresh = std::shared_ptr<std::unique_ptr<drivers::ChainRefresh>>;
  static void take_steps(io::Reactor& reactor, Refresh refresh, Done ready);

  // Refuses further changes; `closed` runs, from the loop, when those that were asked for are over.
  void close(std::function<void()> closed);

 private:
  struct Flush : drivers::Request {
    LiveGraph* graph = nullptr;
  };

  void begin();
  void prepare();
  void flush_first();
  void flush();
  void flushed(int error);
  void pause();
  void drained();
  void hold();
  void apply();
  void end(Result<void> result);
  void ended(Result<void> result);

  io::Reactor& reactor_;
  drivers::NodePtr top_;
  std::unique_ptr<Scheduler> scheduler_;
  std::vector<std::function<void()>> observers_;
  std::deque<Change> changes_;  // the first is under way
  bool paused_ = false;         // by us
  bool closed_ = false;
  std::string reserved_by_;
  std::vector<std::function<void()>> closing_;
  Flush flush_;
  std::chrono::steady_clock::time_point flush_began_{};
  unsigned flushes_ = 0;  // of this change, while the disk runs
  // Callbacks that outlive this find it gone.
  const std::shared_ptr<LiveGraph*> self_;
};

}  // namespace vbdkit
