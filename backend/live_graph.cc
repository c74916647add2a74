// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/live_graph.h"

#include <chrono>
#include <utility>

namespace vbdkit {
namespace {

using Clock = std::chrono::steady_clock;

// While a flush takes its time a guest writes what the next one has to flush: that one is short
// when this one was.
constexpr std::chrono::milliseconds kShortFlush{1};
constexpr unsigned kMostFlushes = 4;  // before the pause

// Where the node stands that `matches`: the pointer that owns it is top's, or that of the node
// above. Nothing is changed.
template <typename Matches>
drivers::Node* above(drivers::Node& top, Matches matches) {
  for (drivers::Node* node = &top; node->next_node() != nullptr; node = node->next_node())
    if (matches(*node->next_node())) return node;
  return nullptr;
}

}  // namespace

LiveGraph::LiveGraph(io::Reactor& reactor, drivers::NodePtr top)
    : reactor_(reactor),
      top_(std::move(top)),
      scheduler_(Scheduler::create(reactor_, *top_)),
      self_(std::make_shared<LiveGraph*>(this)) {
  flush_.graph = this;
}

LiveGraph::~LiveGraph() {
  *self_ = nullptr;
  scheduler_.reset();  // before the nodes
}

drivers::Node& LiveGraph::image() const {
  drivers::Node* node = top_.get();
  while (node->next_node() != nullptr) node = node->next_node();
  return *node;
}

drivers::ChainNode* LiveGraph::chain() const { return dynamic_cast<drivers::ChainNode*>(&image()); }

Result<void> LiveGraph::unreserved() const {
  if (reserved_by_.empty()) return {};
  return Error(ErrorKind::kBusy, reserved_by_ + " runs on this disk; wait for its end or cancel it",
               EBUSY);
}

void LiveGraph::change(Change change) {
  if (closed_) {
    reactor_.post([done = std::move(change.done)] {
      done(Error(ErrorKind::kBusy, "the instance is shutting down"));
    });
    return;
  }
  changes_.push_back(std::move(change));
  if (changes_.size() == 1) begin();
}

void LiveGraph::begin() {
  // From the loop, whoever asked.
  reactor_.post([self = self_] {
    if (*self != nullptr) (*self)->prepare();
  });
}

void LiveGraph::prepare() {
  const auto go_on = [self = self_](Result<void> result) {
    if (*self == nullptr) return;
    LiveGraph& graph = **self;
    if (!result)
      graph.end(std::move(result));
    else if (graph.changes_.front().flush && !graph.top_->info().read_only)
      graph.flush_first();
    else
      graph.pause();
  };
  if (const auto& step = changes_.front().prepare)
    step(go_on);
  else
    go_on({});
}

void LiveGraph::flush_first() {
  flushes_ = 0;
  flush();
}

// Past the scheduler, which somebody may have paused; a flush is in nobody's way.
void LiveGraph::flush() {
  flush_began_ = Clock::now();
  flush_.op = drivers::Op::kFlush;
  flush_.flags = 0;
  flush_.offset = flush_.length = 0;
  flush_.done = [](drivers::Request& request, int error) {
    // A node may complete it at once; what follows may destroy the node.
    LiveGraph& graph = *static_cast<Flush&>(request).graph;
    graph.reactor_.post([self = graph.self_, error] {
      if (*self != nullptr) (*self)->flushed(error);
    });
  };
  top_->submit(flush_);
}

void LiveGraph::flushed(int error) {
  if (error != 0)
    end(Error::from_errno(error, "flush " + top_->spec()));
  else if (paused_)
    hold();
  else if (Clock::now() - flush_began_ > kShortFlush && ++flushes_ < kMostFlushes)
    flush();
  else
    pause();
}

void LiveGraph::pause() {
  paused_ = true;
  scheduler_->pause([self = self_] {
    if (*self != nullptr) (*self)->drained();
  });
}

void LiveGraph::drained() {
  if (!changes_.front().flush || top_->info().read_only) return hold();
  flush();
}

void LiveGraph::hold() {
  // It may be called to its end inside of the call.
  const auto wait = std::move(changes_.front().hold);
  if (!wait) return apply();
  wait([self = self_](Result<void> go) {
    if (*self == nullptr) return;
    if (go)
      (*self)->apply();
    else
      (*self)->end(std::move(go));
  });
}

void LiveGraph::apply() {
  auto result = changes_.front().apply(top_);
  scheduler_->set_node(*top_);
  end(std::move(result));
}

void LiveGraph::end(Result<void> result) {
  if (std::exchange(paused_, false)) scheduler_->resume();
  if (result)
    for (const auto& observer : observers_) observer();
  // It may be called to its end inside of the call.
  const auto tidy = std::move(changes_.front().tidy);
  if (!tidy) return ended(std::move(result));
  tidy(result, [self = self_, result] {
    if (*self != nullptr) (*self)->ended(result);
  });
}

void LiveGraph::ended(Result<void> result) {
  const Change change = std::move(changes_.front());
  changes_.pop_front();
  if (!changes_.empty()) begin();
  if (changes_.empty())
    for (auto& closed : std::exchange(closing_, {})) reactor_.post(std::move(closed));
  if (change.done) change.done(std::move(result));
}

drivers::NodePtr LiveGraph::replace(drivers::NodePtr& top, drivers::Node& old,
                                    drivers::NodePtr fresh) {
  if (top.get() == &old) return std::exchange(top, std::move(fresh));
  drivers::Node* const over = above(*top, [&](auto& n) { return &n == &old; });
  return over == nullptr ? std::move(fresh) : over->exchange_next(std::move(fresh));
}

void LiveGraph::insert_filter(Place place, MakeFilter make, Done done) {
  change(
      [this, place, make = std::move(make)](drivers::NodePtr& top) -> Result<void> {
        drivers::Node* const wanted = place == Place::kTop ? nullptr : &image();
        drivers::Node* const over =
            wanted == nullptr ? nullptr : above(*top, [&](auto& n) { return &n == wanted; });
        if (over == nullptr)
          top = make(std::move(top));
        else
          over->exchange_next(make(over->exchange_next(nullptr)));
        return {};
      },
      std::move(done));
}

void LiveGraph::remove_filter(drivers::Node& filter, Done done) {
  change(
      [&filter](drivers::NodePtr& top) -> Result<void> {
        if (top.get() == &filter && top->next_node() != nullptr) {
          top = top->exchange_next(nullptr);
          return {};
        }
        drivers::Node* const over = above(*top, [&](auto& n) { return &n == &filter; });
        if (over == nullptr || filter.next_node() == nullptr)
          return Error(ErrorKind::kNotFound, "the filter is not in the graph any more");
        drivers::NodePtr removed = over->exchange_next(nullptr);
        over->exchange_next(removed->exchange_next(nullptr));
        return {};
      },
      std::move(done));
}

void LiveGraph::take_steps(io::Reactor& reactor, Refresh refresh, Done ready) {
  const auto more = (*refresh)->step();
  if (!more) return ready(more.error());
  if (!*more) return ready({});
  reactor.post([&reactor, refresh = std::move(refresh), ready = std::move(ready)] {
    take_steps(reactor, refresh, ready);
  });
}

void LiveGraph::close(std::function<void()> closed) {
  closed_ = true;
  if (changes_.empty())
    reactor_.post(std::move(closed));
  else
    closing_.push_back(std::move(closed));
}

}  // namespace vbdkit
