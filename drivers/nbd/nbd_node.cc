// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/nbd/nbd_node.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "drivers/iov.h"

namespace vbdkit::drivers::nbd {
namespace {

// What remembering a write costs beside its data.
constexpr uint64_t kCommandCost = sizeof(Command);

uint64_t cost_of(const Command& c) {
  return kCommandCost + (c.op == Op::kWrite ? align_up(c.length, 4096) : 0);
}

}  // namespace

NbdNode::NbdNode(const LibNbd& api, NodeSpec spec, Target target, NbdOptions options,
                 const OpenContext& context)
    : api_(api),
      spec_(std::move(spec)),
      target_(std::move(target)),
      options_(options),
      patience_(options.reconnect_timeout),
      reactor_(context.reactor),
      log_(context.log),
      label_("nbd: " + target_.uri),
      writable_(!context.options.read_only),
      retry_(reactor_.timer([this] {
        if (phase_ == Phase::kConnecting)
          lost("no answer within " + std::to_string(options_.handshake_timeout.count() / 1000) +
               " s");
        else
          connect();
        pump();
      })),
      give_up_(reactor_.timer([this] { give_up(); })),
      trim_(reactor_.timer([this] {
        trim_armed_ = false;
        if (held_ == 0 && waiting_.empty() && connection_ && connection_->in_flight.empty())
          pool_.trim();
        else
          trim_later();
      })) {}

NbdNode::~NbdNode() {
  // A flush of the node's own may be in flight; without the connection nobody answers it.
  connection_.reset();
  replacement_.reset();
  if (zeroes_ != nullptr) munmap(zeroes_, BufferPool::kMaxBytes);
}

void NbdNode::submit(Request& request) {
  const bool data = request.op != Op::kFlush;
  int error = 0;
  if (data && request.op != Op::kRead && info_.read_only)
    error = EROFS;
  else if (data && (!range_inside(request.offset, request.length, info_.size.v) ||
                    (request.offset | request.length) % info_.request_alignment != 0 ||
                    request.length > info_.max_transfer))
    error = EINVAL;
  else if (request.op == Op::kCopy || (request.op == Op::kDiscard && !info_.can_discard))
    error = EOPNOTSUPP;
  else if (given_up_)
    error = EIO;
  if (error != 0 || (data && request.length == 0)) {
    request.done(request, error);
    return;
  }
  Command& command = take(Command::Kind::kRequest, request.op, request.offset, request.length);
  command.flags = request.flags;
  command.request = &request;
  waiting_.push_back(command);
  pump();
}

void NbdNode::block_status(StatusRequest& request) {
  if (request.length == 0 || !range_inside(request.offset, request.length, info_.size.v)) {
    request.done(EINVAL);
    return;
  }
  if (given_up_) {
    request.done(EIO);
    return;
  }
  Command& command = take(Command::Kind::kStatus, Op::kRead, request.offset, request.length);
  command.status = &request;
  waiting_.push_back(command);
  pump();
}

// A request may be submitted, and a connection may call, while this runs.
void NbdNode::pump() {
  if (std::exchange(pumping_, true)) return;
  while (step()) {
  }
  if (connection_) connection_->update_watch();
  pumping_ = false;
}

// False where there was nothing to do.
bool NbdNode::step() {
  bool busy = finish_done();
  look_at_connection();
  if (phase_ == Phase::kReplaying) busy |= issue_replays();
  if (phase_ == Phase::kReady) busy |= issue_waiting();
  return busy || (connection_ &&
                  (!connection_->done.empty() || connection_->state() == Connection::State::kLost));
}

Command& NbdNode::take(Command::Kind kind, Op op, uint64_t offset, uint64_t length) {
  if (idle_ == nullptr) {
    commands_.push_back(std::make_unique<Command>());
    idle_ = commands_.back().get();
    idle_->next = nullptr;
  }
  Command& c = *idle_;
  idle_ = c.next;
  c.kind = kind;
  c.op = op;
  c.flags = 0;
  c.error = 0;
  c.offset = offset;
  c.length = length;
  return c;
}

void NbdNode::release(Command& c) {
  c.buffer.reset();
  held_ -= std::exchange(c.cost, 0);
  c.data = nullptr;
  c.prepared = false;
  c.request = nullptr;
  c.status = nullptr;
  c.replayed = nullptr;
  c.next = idle_;
  idle_ = &c;
}

bool NbdNode::keeps_unflushed() const {
  return options_.replay_memory != 0 && facts_.can_flush && !info_.read_only;
}

// Never read from or written to, so it takes no memory: these are the system's zero page.
void* NbdNode::zeroes() {
  if (zeroes_ != nullptr) return zeroes_;
  void* const p =
      mmap(nullptr, BufferPool::kMaxBytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p != MAP_FAILED) zeroes_ = p;
  return zeroes_;
}

// Gets it what it needs to be sent. False where it has to wait, or is done already.
bool NbdNode::prepare(Command& c) {
  if (c.kind == Command::Kind::kStatus) {
    c.status->extents.clear();
    if (facts_.can_status) return true;
    c.status->extents.push_back({c.length, true, false});
    answer(c, 0);
    return false;
  }
  if (c.op == Op::kFlush && !facts_.can_flush) {
    c.sequence = sequence_;
    flush_done(c);
    return false;
  }
  if (c.prepared) return true;
  const bool keep = c.changes() && keeps_unflushed();
  if (keep) {
    const uint64_t cost = cost_of(c);
    if (held_ != 0 && held_ + cost > options_.replay_memory) {
      wants_sync_ = true;
      waiting_.push_front(c);
      return false;
    }
    c.cost = cost;
    held_ += cost;
  }
  if (c.op == Op::kWriteZeroes && !facts_.can_zero) {
    c.op = Op::kWrite;
    c.data = zeroes();
  } else if (c.op == Op::kRead || c.op == Op::kWrite) {
    const Request& r = *c.request;
    if (r.iov_count == 1 && !keep) {
      c.data = r.iov[0].iov_base;
    } else {
      c.buffer = pool_.take(c.length);
      c.data = c.buffer ? c.buffer.data() : nullptr;
      if (c.data != nullptr && c.op == Op::kWrite)
        copy_from_iov(r.iov, 0, static_cast<char*>(c.data), c.length);
      trim_later();
    }
  }
  if (c.data == nullptr && (c.op == Op::kRead || c.op == Op::kWrite)) {
    answer(c, ENOMEM);
    return false;
  }
  c.prepared = true;
  return true;
}

bool NbdNode::issue_waiting() {
  if (replacement_) {
    if (!connection_->in_flight.empty()) return false;
    switch_connection();
    return true;
  }
  bool issued = false;
  while (!waiting_.empty() && connection_->state() == Connection::State::kReady) {
    Command& c = waiting_.pop_front();
    if (!prepare(c)) {
      if (wants_sync_) break;
      issued = true;  // it was answered, which may have brought others
      continue;
    }
    if (c.op == Op::kFlush) c.sequence = sequence_;
    connection_->send(c);
    issued = true;
  }
  if (std::exchange(wants_sync_, false)) sync();
  return issued;
}

// Makes the server hold what we hold. What is not completed yet will ask again.
void NbdNode::sync() {
  if (syncing_ || unflushed_.empty() || connection_->state() != Connection::State::kReady) return;
  syncing_ = true;
  ++counters_.own_flushes;
  Command& c = take(Command::Kind::kSync, Op::kFlush, 0, 0);
  c.sequence = sequence_;
  connection_->send(c);
}

bool NbdNode::finish_done() {
  bool any = false;
  while (connection_ && !connection_->done.empty()) {
    finish(connection_->done.pop_front());
    any = true;
  }
  return any;
}

void NbdNode::finish(Command& c) {
  if (c.error == 0) failures_ = 0;  // this server is of use
  switch (c.kind) {
    case Command::Kind::kStatus:
      // A server that covers nothing would have its client ask for ever.
      answer(c, c.error == 0 && c.status->extents.empty() ? EIO : c.error);
      return;
    case Command::Kind::kReplay:
      replay_done(c);
      return;
    case Command::Kind::kSync:
      syncing_ = false;
      if (c.error != 0) {
        // The server may have dropped what it could not write. It is too late to fail the writes.
        lost_error_ = c.error;
        log_.limited(data_limit_, LogLevel::kError, "%s: a flush failed: %s", label_.c_str(),
                     strerror(c.error));
      }
      forget_unflushed(c.sequence);
      release(c);
      return;
    case Command::Kind::kRequest:
      break;
  }
  if (c.op == Op::kFlush) {
    flush_done(c);
  } else if (c.op == Op::kRead) {
    if (c.error == 0 && c.buffer)
      copy_to_iov(c.request->iov, 0, static_cast<const char*>(c.data), c.length);
    answer(c, c.error);
  } else {
    write_done(c);
  }
}

void NbdNode::write_done(Command& c) {
  if (c.error != 0) {
    answer(c, c.error);
    return;
  }
  Request& request = *c.request;
  // Without an older one that would be repeated before it, a durable write is safe.
  const bool durable = (c.flags & kFua) && facts_.can_fua && unflushed_.empty();
  const bool flush_after = (c.flags & kFua) && !facts_.can_fua && facts_.can_flush;
  if (c.cost != 0 && !durable) {
    c.request = nullptr;
    c.sequence = ++sequence_;
    unflushed_.push_back(c);
    // Half of the memory is for what comes while the flush is under way.
    if (held_ > options_.replay_memory / 2 && phase_ == Phase::kReady) sync();
  } else {
    if (!durable && facts_.can_flush) ++sequence_;
    release(c);
  }
  if (flush_after) {
    Command& flush = take(Command::Kind::kRequest, Op::kFlush, 0, 0);
    flush.request = &request;
    waiting_.push_front(flush);
    return;
  }
  request.done(request, 0);
}

void NbdNode::flush_done(Command& c) {
  if (c.error == 0) {
    forget_unflushed(c.sequence);
    c.error = std::exchange(lost_error_, 0);
  }
  answer(c, c.error);
}

void NbdNode::forget_unflushed(uint64_t last) {
  flushed_ = std::max(flushed_, last);
  while (!unflushed_.empty() && unflushed_.front()->sequence <= last)
    release(unflushed_.pop_front());
}

void NbdNode::answer(Command& c, int error) {
  Request* const request = c.request;
  StatusRequest* const status = c.status;
  release(c);
  if (status != nullptr)
    status->done(error);
  else
    request->done(*request, error);
}

void NbdNode::trim_later() {
  if (std::exchange(trim_armed_, true)) return;
  trim_->arm(std::chrono::steady_clock::now() + std::chrono::seconds(2));
}

Result<void> NbdNode::resize(Bytes) {
  return Error(ErrorKind::kUnsupported, label_ + ": resize: its server decides about the size",
               EOPNOTSUPP);
}

Result<void> NbdNode::reopen(bool read_only) {
  if (!read_only && facts_.read_only)
    return Error(ErrorKind::kPermission, label_ + ": the server exports it read-only", EROFS);
  writable_ = !read_only;
  describe(facts_);
  return {};
}

}  // namespace vbdkit::drivers::nbd
