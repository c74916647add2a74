// SPDX-License-Identifier: LGPL-2.1-or-later
#include "io/gated_reactor.h"

#include <cerrno>
#include <string_view>

namespace vbdkit::io {

namespace {

// Far below the queues of the engines. Plain system calls are made one after the other, and each
// may take its time.
constexpr size_t kMostInFlight = 128;

}  // namespace

GatedReactor::GatedReactor(Reactor& inner)
    : inner_(inner),
      most_in_flight_(std::string_view(inner.engine_name()) == "sync" ? 1 : kMostInFlight) {
  pump_.owner = this;
  pump_.run = [](Deferred& d) { static_cast<Pump&>(d).owner->pump(); };
}

GatedReactor::~GatedReactor() = default;

void GatedReactor::set_gate(FileGate* gate) {
  gate_ = gate;
  look_again();
}

void GatedReactor::look_again() {
  if (held_.size() > 0) inner_.defer(pump_);
}

void GatedReactor::submit(FileOp& op) {
  if (gate_ == nullptr && held_.size() == 0) return inner_.submit(op);
  held_.push(op);
  inner_.defer(pump_);
}

void GatedReactor::pump() {
  const FileGate::State state = gate_ == nullptr ? FileGate::State::kOpen : gate_->state();
  if (state == FileGate::State::kClosed) return gate_->holding();
  // Whoever is called back may submit more, which waits for the next look.
  for (size_t left = held_.size(); left > 0 && held_.size() > 0; --left) {
    if (state == FileGate::State::kFailed) {
      FileOp& op = held_.pop();
      op.done(op, -EIO);
    } else if (in_flight_ < most_in_flight_) {
      pass(held_.pop());
    } else {
      return;
    }
  }
}

void GatedReactor::pass(FileOp& op) {
  if (free_ == nullptr) {
    pool_.push_back(std::make_unique<Passed>());
    free_ = pool_.back().get();
  }
  Passed& passed = *free_;
  free_ = passed.next_free;
  static_cast<FileOp&>(passed) = op;
  passed.owner = this;
  passed.origin = &op;
  passed.done = [](FileOp& done, int64_t result) {
    auto& p = static_cast<Passed&>(done);
    p.owner->ended(p, result);
  };
  ++in_flight_;
  inner_.submit(passed);
}

void GatedReactor::ended(Passed& passed, int64_t result) {
  FileOp& op = *passed.origin;
  passed.next_free = free_;
  free_ = &passed;
  --in_flight_;
  look_again();
  op.done(op, result);
}

}  // namespace vbdkit::io
