// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/scheduler.h"

#include <algorithm>
#include <vector>

#include "backend/overlap_filter.h"

namespace vbdkit {
namespace {

using drivers::Op;
using drivers::Request;

// Larger ones gain nothing: the kernel merges what reaches a device together. They lose where the
// page cache answers, as the guest waits for the last byte before it sees the first.
constexpr uint64_t kMaxMergedBytes = 128 << 10;
constexpr uint32_t kMaxMergedIovs = 64;
constexpr size_t kTicketsPerChunk = 32;
// How many requests of a turn a new one may join: covers that many interleaved sequential streams.
constexpr size_t kOpenGroups = 4;

struct MergeBuffer {
  iovec iov[kMaxMergedIovs];
  MergeBuffer* next = nullptr;
};

class SchedulerImpl;
struct Ticket;

struct NodeRequest : Request {
  Ticket* ticket = nullptr;
};

// The scheduler's record of one consumer's request, from its arrival to its completion. The ticket
// that leads a merged group carries the node's request for all of them.
struct Ticket {
  SchedulerImpl* owner = nullptr;
  Request* origin = nullptr;
  NodeRequest node_request;

  // Arrival order of everything alive.
  Ticket* prev = nullptr;
  Ticket* next = nullptr;

  Ticket* dependents = nullptr;      // wait for this one
  Ticket* next_dependent = nullptr;  // in the blocker's list, or in the list to look at again

  Ticket* group_next = nullptr;  // the next member of a merged group
  Ticket* group_tail = nullptr;  // leader only
  MergeBuffer* merge_buffer = nullptr;
  std::vector<iovec> slice;  // pieces of a request that exceeds the node's max_transfer
  uint64_t sent = 0;         // bytes of such a request that are done
  bool preflush_pending = false;
  bool alone = false;  // never merged: it is being repeated after its group failed
};

bool writes(const Request& r) { return r.op != Op::kRead; }
bool mergeable(const Ticket& t) {
  const Request& r = *t.origin;
  return (r.op == Op::kRead || r.op == Op::kWrite) && !t.alone &&
         (r.flags & (kBarrier | kPreflush)) == 0;
}

bool conflict(const Request& a, const Request& b) {
  if ((a.flags | b.flags) & kBarrier) return true;
  // A flush covers what is complete already, so it waits for nothing and nothing waits for it.
  if (a.op == Op::kFlush || b.op == Op::kFlush) return false;
  if (!writes(a) && !writes(b)) return false;
  return a.offset < b.offset + b.length && b.offset < a.offset + a.length;
}

class SchedulerImpl final : public Scheduler {
 public:
  SchedulerImpl(io::Reactor& reactor, drivers::Node& top) : reactor_(reactor), top_(&top) {
    turn_.self = this;
    turn_.run = [](io::Deferred& d) { static_cast<Turn&>(d).self->dispatch(); };
  }
  void submit(Request& request) override;
  const drivers::NodeInfo& info() const override { return top_->info(); }

  void set_node(drivers::Node& top) override { top_ = &top; }
  drivers::Node& node() override { return *top_; }
  void block_status(drivers::StatusRequest& request) override;
  void pause(std::function<void()> drained) override;
  void resume() override;
  void hurry() override { top_->hurry(); }
  bool idle() const override { return live_head_ == nullptr && incoming_head_ == nullptr; }
  const SchedulerCounters& counters() const override { return counters_; }

 private:
  struct Turn : io::Deferred {
    SchedulerImpl* self = nullptr;
  };

  Ticket& take_ticket(Request& origin);
  void free_ticket(Ticket& t);
  MergeBuffer& take_merge_buffer();

  void dispatch();
  Ticket* find_blocker(const Ticket& t) const;
  void place(Ticket& t);
  bool try_merge(Ticket& t);
  void start(Ticket& t);
  void send(Ticket& t);
  bool send_slice(Ticket& t);
  void node_done(Ticket& leader, int error);
  void finish(Ticket& t, int error);
  void notify_drained();
  void ask_status(drivers::StatusRequest& request);

  io::Reactor& reactor_;
  drivers::Node* top_;
  Turn turn_;

  Request* incoming_head_ = nullptr;
  Request** incoming_tail_ = &incoming_head_;
  Ticket* live_head_ = nullptr;
  Ticket* live_tail_ = nullptr;
  Ticket* look_again_ = nullptr;  // their blocker is done
  OverlapFilter filter_;
  unsigned barriers_alive_ = 0;
  unsigned in_flight_ = 0;  // groups at the node, and questions of block status
  Ticket* open_groups_[kOpenGroups] = {};
  std::vector<Ticket*> starting_;  // leaders of this turn

  unsigned paused_ = 0;
  std::vector<std::function<void()>> drained_;
  std::vector<drivers::StatusRequest*> held_questions_;

  std::vector<std::unique_ptr<Ticket[]>> chunks_;
  Ticket* free_tickets_ = nullptr;
  std::vector<std::unique_ptr<MergeBuffer>> merge_buffers_;
  MergeBuffer* free_merge_ = nullptr;
  SchedulerCounters counters_;
};

Ticket& SchedulerImpl::take_ticket(Request& origin) {
  if (free_tickets_ == nullptr) {
    chunks_.push_back(std::make_unique<Ticket[]>(kTicketsPerChunk));
    for (size_t i = 0; i < kTicketsPerChunk; ++i) {
      Ticket& t = chunks_.back()[i];
      t.owner = this;
      t.node_request.ticket = &t;
      t.next = free_tickets_;
      free_tickets_ = &t;
    }
  }
  Ticket& t = *free_tickets_;
  free_tickets_ = t.next;
  t.origin = &origin;
  t.dependents = nullptr;
  t.group_next = nullptr;
  t.sent = 0;
  t.preflush_pending = (origin.flags & kPreflush) != 0;
  t.alone = false;

  t.prev = live_tail_;
  t.next = nullptr;
  (live_tail_ != nullptr ? live_tail_->next : live_head_) = &t;
  live_tail_ = &t;
  return t;
}

void SchedulerImpl::free_ticket(Ticket& t) {
  (t.prev != nullptr ? t.prev->next : live_head_) = t.next;
  (t.next != nullptr ? t.next->prev : live_tail_) = t.prev;
  t.next = free_tickets_;
  free_tickets_ = &t;
}

MergeBuffer& SchedulerImpl::take_merge_buffer() {
  if (free_merge_ == nullptr) {
    merge_buffers_.push_back(std::make_unique<MergeBuffer>());
    return *merge_buffers_.back();
  }
  MergeBuffer& m = *free_merge_;
  free_merge_ = m.next;
  return m;
}

void SchedulerImpl::submit(Request& request) {
  ++counters_.submitted;
  request.next = nullptr;
  *incoming_tail_ = &request;
  incoming_tail_ = &request.next;
  reactor_.defer(turn_);
}

void SchedulerImpl::dispatch() {
  if (paused_ > 0) {
    if (in_flight_ > 0) hurry();
    notify_drained();
    return;
  }
  for (drivers::StatusRequest* question : std::exchange(held_questions_, {})) ask_status(*question);
  while (look_again_ != nullptr) {
    Ticket& t = *look_again_;
    look_again_ = t.next_dependent;
    place(t);
  }
  // Requests that arrive while this turn's are sent wait for the next one.
  Request* r = std::exchange(incoming_head_, nullptr);
  incoming_tail_ = &incoming_head_;
  while (r != nullptr) {
    Request* const next = r->next;
    const bool close_look =
        barriers_alive_ > 0 || (r->flags & kBarrier) != 0 ||
        (r->op != Op::kFlush && filter_.may_conflict(r->offset, r->length, writes(*r)));
    Ticket& t = take_ticket(*r);
    if (r->flags & kBarrier) ++barriers_alive_;
    if (r->op != Op::kFlush) filter_.add(r->offset, r->length, writes(*r));
    if (close_look)
      place(t);
    else if (!try_merge(t))
      start(t);
    r = next;
  }
  // A node may complete a request inside submit(), and its consumer may come back at once with
  // another: nothing of this turn is touched after its leaders are taken over.
  std::vector<Ticket*> leaders;
  leaders.swap(starting_);
  std::fill(std::begin(open_groups_), std::end(open_groups_), nullptr);
  for (Ticket* t : leaders) send(*t);
  leaders.clear();
  if (starting_.empty()) starting_.swap(leaders);  // keep the capacity
}

// The latest earlier request that `t` must wait for.
Ticket* SchedulerImpl::find_blocker(const Ticket& t) const {
  for (Ticket* other = t.prev; other != nullptr; other = other->prev)
    if (conflict(*t.origin, *other->origin)) return other;
  return nullptr;
}

void SchedulerImpl::place(Ticket& t) {
  if (Ticket* blocker = find_blocker(t)) {
    ++counters_.delayed;
    t.next_dependent = blocker->dependents;
    blocker->dependents = &t;
    return;
  }
  if (!try_merge(t)) start(t);
}

// Adjacent requests of the same kind travel as one. Only leaders that have not been sent take
// members, so nothing changes under the node.
bool SchedulerImpl::try_merge(Ticket& t) {
  if (!mergeable(t)) return false;
  const Request& r = *t.origin;
  const uint64_t limit = top_->info().max_transfer;
  const uint64_t most = limit == 0 ? kMaxMergedBytes : std::min(limit, kMaxMergedBytes);
  for (Ticket* leader : open_groups_) {
    if (leader == nullptr) continue;
    Request& n = leader->node_request;
    if (n.op != r.op || n.flags != r.flags || n.offset + n.length != r.offset) continue;
    if (n.length + r.length > most || n.iov_count + r.iov_count > kMaxMergedIovs) continue;
    if (leader->merge_buffer == nullptr) {
      leader->merge_buffer = &take_merge_buffer();
      std::copy_n(n.iov, n.iov_count, leader->merge_buffer->iov);
      n.iov = leader->merge_buffer->iov;
    }
    iovec* const all = leader->merge_buffer->iov;
    for (uint32_t i = 0; i < r.iov_count; ++i) {
      iovec& last = all[n.iov_count - 1];
      if (static_cast<char*>(last.iov_base) + last.iov_len == r.iov[i].iov_base)
        last.iov_len += r.iov[i].iov_len;
      else
        all[n.iov_count++] = r.iov[i];
    }
    n.length += r.length;
    leader->group_tail->group_next = &t;
    leader->group_tail = &t;
    ++counters_.merged;
    return true;
  }
  return false;
}

// Makes `t` the leader of a group of its own, to be sent at the end of this turn.
void SchedulerImpl::start(Ticket& t) {
  const Request& r = *t.origin;
  Request& n = t.node_request;
  n.op = r.op;
  n.flags = r.flags & static_cast<uint8_t>(~(kPreflush | kBarrier));
  n.iov = r.iov;
  n.iov_count = r.iov_count;
  n.offset = r.offset;
  n.length = r.length;
  n.done = [](Request& done, int error) {
    Ticket& ticket = *static_cast<NodeRequest&>(done).ticket;
    ticket.owner->node_done(ticket, error);
  };
  t.group_tail = &t;
  t.merge_buffer = nullptr;
  starting_.push_back(&t);
  if (mergeable(t)) {
    std::copy_backward(open_groups_, open_groups_ + kOpenGroups - 1, open_groups_ + kOpenGroups);
    open_groups_[0] = &t;
  }
}

void SchedulerImpl::send(Ticket& t) {
  ++in_flight_;
  ++counters_.dispatched;
  Request& n = t.node_request;
  if (t.preflush_pending) {
    n.op = Op::kFlush;
    n.flags = 0;
    n.offset = n.length = 0;
    n.iov_count = 0;
    n.iov = nullptr;
  } else {
    const uint64_t limit = top_->info().max_transfer;
    if (limit != 0 && n.length > limit) send_slice(t);
  }
  top_->submit(n);
}

// The next piece of a request larger than the node takes, in t.node_request. False: none is left.
bool SchedulerImpl::send_slice(Ticket& t) {
  const Request& r = *t.origin;
  if (t.sent >= r.length) return false;
  Request& n = t.node_request;
  n.offset = r.offset + t.sent;
  n.length = std::min(top_->info().max_transfer, r.length - t.sent);
  if (r.iov_count > 0) {
    t.slice.clear();
    uint64_t skip = t.sent;
    uint64_t want = n.length;
    for (uint32_t i = 0; i < r.iov_count && want > 0; ++i) {
      if (skip >= r.iov[i].iov_len) {
        skip -= r.iov[i].iov_len;
        continue;
      }
      const size_t take = static_cast<size_t>(std::min<uint64_t>(r.iov[i].iov_len - skip, want));
      t.slice.push_back({static_cast<char*>(r.iov[i].iov_base) + skip, take});
      want -= take;
      skip = 0;
    }
    n.iov = t.slice.data();
    n.iov_count = static_cast<uint32_t>(t.slice.size());
  }
  t.sent += n.length;
  return true;
}

void SchedulerImpl::node_done(Ticket& leader, int error) {
  --in_flight_;
  const bool merged = leader.group_next != nullptr;
  if (error == 0 && leader.preflush_pending) {
    leader.preflush_pending = false;
    if (leader.origin->op != Op::kFlush) {
      start(leader);
      reactor_.defer(turn_);
      return;
    }
  }
  if (error == 0 && leader.sent > 0 && send_slice(leader)) {
    ++in_flight_;
    ++counters_.dispatched;
    top_->submit(leader.node_request);
    return;
  }
  if (MergeBuffer* m = std::exchange(leader.merge_buffer, nullptr)) {
    m->next = free_merge_;
    free_merge_ = m;
  }
  Ticket* member = &leader;
  while (member != nullptr) {
    Ticket* const next = std::exchange(member->group_next, nullptr);
    if (merged && error != 0) {
      // One bad sector must not fail its neighbours: each is tried by itself.
      member->alone = true;
      start(*member);
      reactor_.defer(turn_);
    } else {
      finish(*member, error);
    }
    member = next;
  }
}

void SchedulerImpl::finish(Ticket& t, int error) {
  Request& r = *t.origin;
  if (r.flags & kBarrier) --barriers_alive_;
  if (r.op != Op::kFlush) filter_.remove(r.offset, r.length, writes(r));
  if (t.dependents != nullptr) {
    Ticket* last = t.dependents;
    while (last->next_dependent != nullptr) last = last->next_dependent;
    last->next_dependent = look_again_;
    look_again_ = t.dependents;
    reactor_.defer(turn_);
  }
  free_ticket(t);
  if (paused_ > 0 && in_flight_ == 0) reactor_.defer(turn_);
  r.done(r, error);
}

void SchedulerImpl::block_status(drivers::StatusRequest& request) {
  if (paused_ > 0)
    held_questions_.push_back(&request);
  else
    ask_status(request);
}

void SchedulerImpl::ask_status(drivers::StatusRequest& request) {
  ++in_flight_;
  request.done = [this, inner = std::move(request.done)](int error) {
    // The question, and this function in it, may be gone once the asker has its answer.
    const auto answer = inner;
    if (--in_flight_ == 0 && paused_ > 0) reactor_.defer(turn_);
    answer(error);
  };
  top_->block_status(request);
}

void SchedulerImpl::pause(std::function<void()> drained) {
  ++paused_;
  drained_.push_back(std::move(drained));
  reactor_.defer(turn_);
}

void SchedulerImpl::notify_drained() {
  if (in_flight_ > 0) return;
  std::vector<std::function<void()>> callbacks;
  callbacks.swap(drained_);
  for (auto& callback : callbacks) callback();
}

void SchedulerImpl::resume() {
  if (--paused_ == 0) reactor_.defer(turn_);
}

}  // namespace

std::unique_ptr<Scheduler> Scheduler::create(io::Reactor& reactor, drivers::Node& top) {
  return std::make_unique<SchedulerImpl>(reactor, top);
}

}  // namespace vbdkit
