// SPDX-License-Identifier: LGPL-2.1-or-later
//
// NbdNode's connections: opening, loss, attempts, and what is sent again.
#include <algorithm>
#include <cinttypes>
#include <cstring>

#include "drivers/nbd/nbd_node.h"

namespace vbdkit::drivers::nbd {
namespace {

constexpr size_t kReplaysInFlight = 16;

using Clock = std::chrono::steady_clock;

}  // namespace

Result<void> NbdNode::open() {
  auto connection = Connection::begin(api_, reactor_, target_, *this);
  if (!connection) return std::move(connection).error().context(label_);
  auto waited = (*connection)->wait(options_.handshake_timeout);
  if (!waited) return std::move(waited).error().context(label_);
  facts_ = (*connection)->facts();
  if (usable(facts_.size).v == 0)
    return Error(ErrorKind::kInvalid,
                 label_ + ": smaller than one sector (" + std::to_string(facts_.size) + " bytes)");
  if (facts_.read_only && writable_)
    return Error(ErrorKind::kPermission, label_ + ": the server exports it read-only", EROFS);
  describe(facts_);
  target_ = (*connection)->settled(target_);
  connection_ = std::move(connection).value();
  phase_ = Phase::kReady;
  return {};
}

Bytes NbdNode::usable(uint64_t bytes) const {
  return Bytes{align_down(bytes, std::max<uint64_t>(facts_.minimum_block, kSectorSize))};
}

void NbdNode::describe(const ExportFacts& facts) {
  const bool read_only = !writable_;
  info_.size = usable(facts.size);
  info_.request_alignment = std::max<uint32_t>(facts.minimum_block, kSectorSize);
  info_.logical_block = info_.request_alignment;
  info_.physical_block = std::max(info_.logical_block, std::min(facts.preferred_block, 1u << 16));
  info_.max_transfer = align_down(facts.maximum_payload, info_.request_alignment);
  info_.read_only = read_only;
  info_.can_discard = facts.can_trim && !read_only;
  info_.discard_granularity = info_.can_discard ? info_.physical_block : 0;
  info_.can_write_zeroes = facts.can_zero && !read_only;
  info_.volatile_cache = facts.can_flush && !read_only;
  info_.rotational = facts.rotational;
}

void NbdNode::look_at_connection() {
  if (!connection_) return;
  switch (connection_->state()) {
    case Connection::State::kLost:
      lost(connection_->why_lost());
      return;
    case Connection::State::kReady:
      if (phase_ == Phase::kConnecting) connected();
      return;
    case Connection::State::kConnecting:
      return;
  }
}

void NbdNode::lost(const std::string& why) {
  if (phase_ == Phase::kReady || phase_ == Phase::kReplaying) {
    ++counters_.losses;
    lost_at_ = Clock::now();
    log_.limited(loss_limit_, LogLevel::kWarning,
                 "%s: connection lost (%s); the disk waits for the server", label_.c_str(),
                 why.c_str());
    if (patience_.count() != 0) give_up_->arm(lost_at_ + patience_);
    if (options_.replay_memory == 0 && sequence_ > flushed_) {
      flushed_ = sequence_;
      lost_error_ = EIO;
      log_.limited(data_limit_, LogLevel::kError,
                   "%s: writes that were not flushed may be lost; the next flush will fail",
                   label_.c_str());
    }
  }
  take_back_in_flight();
  connection_.reset();
  retry_later(why);
}

void NbdNode::take_back_in_flight() {
  replaying_.clear();
  next_replay_ = nullptr;
  syncing_ = false;
  while (!connection_->in_flight.empty()) {
    Command& c = connection_->in_flight.pop_back();
    if (c.kind == Command::Kind::kRequest || c.kind == Command::Kind::kStatus) {
      ++counters_.resent;
      waiting_.push_front(c);
    } else {
      release(c);
    }
  }
}

// At once after the loss of a server that was of use, then at growing distances.
void NbdNode::retry_later(const std::string& why) {
  phase_ = Phase::kWaiting;
  std::chrono::milliseconds delay{0};
  if (failures_ > 0) {
    log_.limited(attempt_limit_, LogLevel::kWarning, "%s: no connection yet: %s", label_.c_str(),
                 why.c_str());
    delay =
        std::min(options_.last_retry, options_.first_retry * (1 << std::min(failures_ - 1, 16u)));
  }
  ++failures_;
  retry_->arm(Clock::now() + delay);
}

void NbdNode::connect() {
  ++counters_.attempts;
  auto connection = Connection::begin(api_, reactor_, target_, *this);
  if (!connection) {
    retry_later(connection.error().message());
    return;
  }
  connection_ = std::move(connection).value();
  phase_ = Phase::kConnecting;
  retry_->arm(Clock::now() + options_.handshake_timeout);
}

// Why this is not the disk that we had; empty where it is.
std::string NbdNode::unfit(const ExportFacts& facts) const {
  if (facts.size != facts_.size)
    return "it has " + std::to_string(facts.size) + " bytes now, expected " +
           std::to_string(facts_.size);
  if (facts.read_only && writable_) return "it is read-only now";
  if (facts.minimum_block > info_.request_alignment)
    return "it wants blocks of " + std::to_string(facts.minimum_block) + " bytes now, expected " +
           std::to_string(info_.request_alignment);
  return {};
}

void NbdNode::connected() {
  retry_->cancel();
  const std::string why = unfit(connection_->facts());
  if (!why.empty()) {
    ++counters_.refused;
    log_.limited(attempt_limit_, LogLevel::kError, "%s: the server is back, but not used: %s",
                 label_.c_str(), why.c_str());
    connection_.reset();
    retry_later(why);
    return;
  }
  const uint32_t payload = std::min(facts_.maximum_payload, connection_->facts().maximum_payload);
  facts_ = connection_->facts();
  facts_.maximum_payload = payload;
  if (given_up_ || failures_ > 0) {
    const double seconds = std::chrono::duration<double>(Clock::now() - lost_at_).count();
    log_.limited(return_limit_, LogLevel::kNotice, "%s: connected again after %.1f s",
                 label_.c_str(), seconds);
  }
  given_up_ = false;
  give_up_->cancel();
  phase_ = Phase::kReplaying;
  next_replay_ = unflushed_.front();
}

void NbdNode::set_patience(std::chrono::milliseconds patience) {
  patience_ = patience;
  const bool away = phase_ == Phase::kWaiting || phase_ == Phase::kConnecting;
  if (patience_.count() == 0)
    give_up_->cancel();
  else if (away && !given_up_)
    give_up_->arm(std::max(Clock::now(), lost_at_ + patience_));
}

void NbdNode::give_up() {
  given_up_ = true;
  log_.error("%s: no connection within %.1f s; requests fail until there is one", label_.c_str(),
             std::chrono::duration<double>(patience_).count());
  // Answers may bring new requests, which fail as well.
  while (!waiting_.empty()) answer(waiting_.pop_front(), EIO);
}

bool NbdNode::may_replay(const Command& command) const {
  return replaying_.size() < kReplaysInFlight &&
         std::ranges::none_of(replaying_,
                              [&](const Command* other) { return command.overlaps(*other); });
}

bool NbdNode::issue_replays() {
  bool issued = false;
  while (next_replay_ != nullptr && may_replay(*next_replay_) &&
         connection_->state() == Connection::State::kReady) {
    Command& original = *next_replay_;
    next_replay_ = original.next;
    Command& c = take(Command::Kind::kReplay, original.op, original.offset, original.length);
    c.flags = original.flags;
    c.data = original.data;
    c.replayed = &original;
    replaying_.push_back(&c);
    ++counters_.replayed;
    connection_->send(c);
    issued = true;
  }
  if (next_replay_ == nullptr && replaying_.empty()) {
    phase_ = Phase::kReady;
    return true;
  }
  return issued;
}

void NbdNode::replay_done(Command& c) {
  std::erase(replaying_, &c);
  // A discard is a hint, and the server may have changed its mind.
  if (c.error != 0 && c.op != Op::kDiscard) {
    lost_error_ = c.error;
    log_.limited(data_limit_, LogLevel::kError,
                 "%s: repeating a write at %" PRIu64 " failed: %s; the next flush will fail",
                 label_.c_str(), c.offset, strerror(c.error));
  }
  release(c);
}

Result<void> NbdNode::refresh_size() {
  auto connection = Connection::begin(api_, reactor_, target_, *this);
  if (!connection) return std::move(connection).error().context(label_);
  auto waited = (*connection)->wait(options_.handshake_timeout);
  if (!waited) return std::move(waited).error().context(label_);
  const uint64_t size = (*connection)->facts().size;
  if (size == facts_.size) return {};
  if (usable(size).v == 0)
    return Error(ErrorKind::kInvalid,
                 label_ + ": smaller than one sector (" + std::to_string(size) + " bytes)");
  facts_.size = size;
  info_.size = usable(size);
  replacement_ = std::move(connection).value();
  if (phase_ == Phase::kWaiting || phase_ == Phase::kConnecting) switch_connection();
  pump();
  return {};
}

void NbdNode::switch_connection() {
  retry_->cancel();
  connection_ = std::move(replacement_);
  phase_ = Phase::kConnecting;
}

}  // namespace vbdkit::drivers::nbd
