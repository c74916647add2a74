// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/blkif/queue.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "base/units.h"

namespace vbdkit::blkif {
namespace {

constexpr size_t kInflightPerChunk = 32;
// Rounds of one turn: a guest that never stops adding requests must not keep the loop.
constexpr unsigned kRoundsPerTurn = 4;
constexpr auto kTrimAfter = std::chrono::seconds(1);

uint64_t microseconds_now() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(
                                   std::chrono::steady_clock::now().time_since_epoch())
                                   .count());
}

int16_t status_of(const drivers::Request& r, int error) {
  if (error == 0) return BLKIF_RSP_OKAY;
  const bool optional = r.op == drivers::Op::kFlush || r.op == drivers::Op::kDiscard;
  return optional && error == EOPNOTSUPP ? BLKIF_RSP_EOPNOTSUPP : BLKIF_RSP_ERROR;
}

}  // namespace

// Room for the segments of an indirect request; most guests' requests don't need it.
struct Queue::Large {
  blkif_request_segment segments[kMaxIndirectSegments];
  iovec iov[kMaxIndirectSegments];
  uint32_t slots[kMaxIndirectSegments];
  Large* next = nullptr;
};

// A request from its slot to its response.
struct Queue::Inflight : drivers::Request {
  Queue* owner = nullptr;
  Inflight* link = nullptr;  // in one of the queue's lists
  Large* large = nullptr;
  uint64_t id = 0;
  uint64_t arrived_us = 0;
  uint8_t response_operation = 0;
  int16_t status = BLKIF_RSP_OKAY;
  bool attached = false;  // transfer has pages
  Command command;
  Transfer transfer;
  blkif_request_segment segments[BLKIF_MAX_SEGMENTS_PER_REQUEST];
  iovec inline_iov[BLKIF_MAX_SEGMENTS_PER_REQUEST];
  uint32_t slots[BLKIF_MAX_SEGMENTS_PER_REQUEST];
};

void Queue::List::push(Inflight& r) {
  r.link = nullptr;
  (tail != nullptr ? tail->link : head) = &r;
  tail = &r;
}

Queue::Inflight* Queue::List::pop() {
  Inflight* r = head;
  if (r != nullptr && (head = r->link) == nullptr) tail = nullptr;
  return r;
}

Result<std::unique_ptr<Queue>> Queue::create(const QueueHost& host, const QueueParams& params,
                                             const Logger& log, XentopPage* xentop,
                                             std::function<void(const std::string&)> halted) {
  auto pages = host.grants.map(params.domid, params.ring_refs, true);
  if (!pages) return std::move(pages).error().context("blkif: ring");
  std::unique_ptr<Queue> queue(
      new Queue(host, params, log, xentop, std::move(pages).value(), std::move(halted)));
  Queue* self = queue.get();
  auto port = host.events.bind_interdomain(params.domid, params.event_channel, [self] {
    ++self->stats_.events;
    self->serve();
  });
  if (!port) return std::move(port).error().context("blkif: ring");
  queue->port_ = std::move(port).value();
  return queue;
}

Queue::Queue(const QueueHost& host, const QueueParams& params, const Logger& log,
             XentopPage* xentop, xen::GrantMapping ring,
             std::function<void(const std::string&)> halted)
    : host_(host),
      params_(params),
      log_(log),
      xentop_(xentop),
      halted_callback_(std::move(halted)),
      ring_pages_(std::move(ring)),
      ring_(ring_pages_.data(), ring_pages_.pages() * xen::kPageSize, *params.layout),
      pages_(host.grants, params.domid, params.access, log, stats_) {
  turn_.self = this;
  turn_.run = [](io::Deferred& d) { static_cast<Turn&>(d).self->serve(); };
}

Queue::~Queue() = default;

Queue::Inflight& Queue::allocate() {
  if (free_ == nullptr) {
    chunks_.push_back(std::make_unique<Inflight[]>(kInflightPerChunk));
    for (size_t i = 0; i < kInflightPerChunk; ++i) {
      Inflight& r = chunks_.back()[i];
      r.owner = this;
      r.done = [](drivers::Request& done, int error) {
        auto& mine = static_cast<Inflight&>(done);
        mine.owner->request_done(mine, error);
      };
      r.link = free_;
      free_ = &r;
    }
  }
  return *std::exchange(free_, free_->link);
}

void Queue::recycle(Inflight& r) {
  if (r.large != nullptr) {
    r.large->next = free_large_;
    free_large_ = std::exchange(r.large, nullptr);
  }
  r.link = free_;
  free_ = &r;
}

DiskLimits Queue::disk_limits() const {
  const drivers::NodeInfo& node = host_.sink.info();
  DiskLimits disk;
  disk.bytes = node.size.v;
  disk.alignment = std::max(node.request_alignment, node.logical_block);
  disk.read_only = params_.read_only;
  disk.discard = params_.discard;
  disk.indirect_segments = params_.indirect_segments;
  return disk;
}

// One turn: answer what is done, take what has come, push, and go to sleep if nothing is left.
void Queue::serve() {
  for (unsigned round = 1;; ++round) {
    answer_completed();
    admit_waiting();
    const bool look_again = take_requests();
    submit_prepared();
    answer_completed();  // what was refused
    push();
    if (!look_again || !ring_.ask_for_event()) break;
    if (round == kRoundsPerTurn) {
      host_.reactor.defer(turn_);
      break;
    }
  }
  trim_when_idle();
  if (quiescing_ && unanswered_ == 0 && !turn_.queued) {
    // The last of them may destroy this queue.
    auto callbacks = std::exchange(quiet_callbacks_, {});
    for (auto& quiet : callbacks) quiet();
  }
}

void Queue::push() {
  if (!ring_.has_responses_to_push()) return;
  if (xentop_ != nullptr) xentop_->add(stats_, published_);
  if (!ring_.push()) return;
  ++stats_.notifies;
  if (auto r = port_.notify(); !r)
    log_.limited(limit_, LogLevel::kWarning, "blkif: %s", r.error().message().c_str());
}

// Takes all there is. False where nothing more can be taken now whatever the guest adds.
bool Queue::take_requests() {
  if (halted_ || quiescing_ || !waiting_.empty()) return false;
  if (!ring_.look()) {
    halt("the frontend claims more requests than its ring holds");
    return false;
  }
  if (!ring_.has_request()) return true;
  const uint64_t now = microseconds_now();
  const DiskLimits disk = disk_limits();
  SlotCopy copy;
  while (ring_.has_request()) {
    ring_.take(copy);
    const SlotRequest slot = decode(copy, *params_.layout);
    take(slot, check_request(slot, disk), now);
  }
  pages_.run_copies();  // of segments
  while (Inflight* r = taken_.pop()) {
    if (r->command.indirect) check_fetched(*r, disk);
    prepare(*r);
  }
  return waiting_.empty();
}

void Queue::take(const SlotRequest& slot, const Command& command, uint64_t now_us) {
  Inflight& r = allocate();
  ++unanswered_;
  r.id = slot.id;
  r.response_operation = slot.response_operation();
  r.arrived_us = now_us;
  r.command = command;
  r.status = command.refusal;
  r.attached = false;
  taken_.push(r);
  if (!command.ok()) return;

  Transfer& t = r.transfer;
  t.failed = false;
  t.to_guest = command.op == drivers::Op::kRead;
  t.segment_count = command.segment_count;
  if (!command.indirect) {
    memcpy(r.segments, slot.segments.data(), t.segment_count * sizeof r.segments[0]);
    t.segments = r.segments;
    t.iov = r.inline_iov;
    t.slots = r.slots;
    return;
  }
  if (free_large_ == nullptr) {
    larges_.push_back(std::make_unique<Large>());
    free_large_ = larges_.back().get();
  }
  r.large = std::exchange(free_large_, free_large_->next);
  t.segments = r.large->segments;
  t.iov = r.large->iov;
  t.slots = r.large->slots;
  pages_.fetch_segments(slot.indirect_refs, {r.large->segments, t.segment_count}, t);
}

// The segments of an indirect request are here now, and nowhere else: judge them.
void Queue::check_fetched(Inflight& r, const DiskLimits& disk) {
  if (!r.transfer.failed)
    check_segments(r.command, {r.transfer.segments, r.transfer.segment_count}, disk);
  r.status = r.transfer.failed ? int16_t{BLKIF_RSP_ERROR} : r.command.refusal;
}

// Brings the data within reach. In the ring's order, because a barrier counts on it: where one has
// to wait, all behind it do.
void Queue::prepare(Inflight& r) {
  if (r.status != BLKIF_RSP_OKAY) {
    completed_.push(r);
    return;
  }
  if (!waiting_.empty()) {
    waiting_.push(r);
    return;
  }
  attach(r);
}

void Queue::attach(Inflight& r) {
  if (r.transfer.segment_count > 0) {
    switch (pages_.attach(r.transfer)) {
      case GuestPages::Attached::kYes:
        r.attached = true;
        if (!r.transfer.to_guest) pages_.queue_copies(r.transfer);
        break;
      case GuestPages::Attached::kNoRoom:
        waiting_.push(r);
        return;
      case GuestPages::Attached::kBadGrant:
        r.status = BLKIF_RSP_ERROR;
        completed_.push(r);
        return;
    }
  }
  prepared_.push(r);
}

void Queue::admit_waiting() {
  List again = std::exchange(waiting_, {});
  while (Inflight* r = again.pop()) prepare(*r);
}

void Queue::submit_prepared() {
  pages_.run_copies();  // of what is to be written
  while (Inflight* r = prepared_.pop()) {
    if (r->transfer.failed && r->attached) {
      r->status = BLKIF_RSP_ERROR;
      completed_.push(*r);
      continue;
    }
    r->op = r->command.op;
    r->flags = r->command.flags;
    r->offset = r->command.offset;
    r->length = r->command.length;
    r->iov = r->attached ? r->transfer.iov : nullptr;
    r->iov_count = r->attached ? r->transfer.iov_count : 0;
    count_submitted(*r);
    host_.sink.submit(*r);
  }
}

void Queue::request_done(Inflight& r, int error) {
  r.status = status_of(r, error);
  completed_.push(r);
  host_.reactor.defer(turn_);
}

void Queue::answer_completed() {
  if (completed_.empty()) return;
  for (Inflight* r = completed_.head; r != nullptr; r = r->link)
    if (r->status == BLKIF_RSP_OKAY && r->attached && r->transfer.to_guest)
      pages_.queue_copies(r->transfer);
  pages_.run_copies();  // of what was read
  const uint64_t now = microseconds_now();
  while (Inflight* r = completed_.pop()) {
    if (r->attached) {
      if (r->transfer.failed) r->status = BLKIF_RSP_ERROR;
      pages_.detach(r->transfer);
    }
    ring_.respond(r->id, r->response_operation, r->status);
    count_answered(*r, now);
    recycle(*r);
    --unanswered_;
  }
}

void Queue::count_submitted(const Inflight& r) {
  if (r.op == drivers::Op::kRead) ++stats_.reads.submitted;
  if (r.op == drivers::Op::kWrite) ++stats_.writes.submitted;
}

void Queue::count_answered(const Inflight& r, uint64_t now_us) {
  if (r.status != BLKIF_RSP_OKAY) {
    ++stats_.errors;
    if (r.command.refusal != BLKIF_RSP_OKAY) return;
  }
  if (r.command.op == drivers::Op::kFlush || (r.command.flags & (kPreflush | kBarrier)) != 0)
    ++stats_.flushes;
  if (r.command.op == drivers::Op::kDiscard) ++stats_.discards;
  if (r.command.op != drivers::Op::kRead && r.command.op != drivers::Op::kWrite) return;
  DirectionStats& d = r.command.op == drivers::Op::kRead ? stats_.reads : stats_.writes;
  ++d.completed;
  d.ticks_us += now_us - r.arrived_us;
  if (r.status == BLKIF_RSP_OKAY) d.sectors += r.command.length / kSectorSize;
}

void Queue::halt(const std::string& why) {
  halted_ = true;
  halted_callback_(why);
}

void Queue::quiesce(std::function<void()> quiet) {
  quiescing_ = true;
  quiet_callbacks_.push_back(std::move(quiet));
  host_.reactor.defer(turn_);
}

void Queue::resume() {
  quiescing_ = false;
  host_.reactor.defer(turn_);
}

void Queue::trim_when_idle() {
  if (trim_armed_ || unanswered_ > 0 || !pages_.trimmable()) return;
  if (!trim_timer_)
    trim_timer_ = host_.reactor.timer([this] {
      trim_armed_ = false;
      if (unanswered_ == 0) pages_.trim();
    });
  trim_armed_ = true;
  trim_timer_->arm(io::Timer::Clock::now() + kTrimAfter);
}

}  // namespace vbdkit::blkif
