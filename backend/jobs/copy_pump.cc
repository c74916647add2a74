// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/jobs/copy_pump.h"

#include <algorithm>
#include <utility>

namespace vbdkit::jobs {
namespace {

// What need not be moved is only looked at: more of it at once.
constexpr uint64_t kMostQuiet = 16 << 20;  // bytes

auto now() { return std::chrono::steady_clock::now(); }

}  // namespace

CopyPump::CopyPump(io::Reactor& reactor, RequestSink& disk, drivers::MirrorFilter& filter,
                   Events events)
    : disk_(disk),
      filter_(filter),
      events_(std::move(events)),
      timer_(reactor.timer([this] { pump(); })) {
  for (Slot& slot : slots_) slot.pump = this;
}

void CopyPump::go() {
  running_ = true;
  pump();
}

void CopyPump::set_speed(uint64_t speed) {
  // A rest earns no more than one copy.
  bucket_.set(speed, kCopy, now());
  pump();
}

void CopyPump::pause(bool paused) {
  paused_ = paused;
  pump();
}

void CopyPump::stop(std::function<void()> stopped) {
  running_ = false;
  timer_->cancel();
  if (in_flight_ == 0)
    stopped();
  else
    stopped_ = std::move(stopped);
}

void CopyPump::pump() {
  while (running_ && !paused_ && in_flight_ < (bucket_.limited() ? 1 : kSlots)) {
    const auto run = filter_.todo().next(cursor_, bucket_.limited() ? kLimitedCopy : kCopy);
    if (run) {
      if (!copy(run->offset, run->length)) return;
    } else if (in_flight_ > 0) {
      return;  // it is marked still
    } else if (!filter_.todo().none()) {
      cursor_ = 0;
    } else {
      running_ = false;
      events_.clean();
      return;
    }
  }
}

// False where it has to wait for its time.
bool CopyPump::copy(uint64_t offset, uint64_t length) {
  const auto time = now();
  uint64_t moved = length;
  if (const uint64_t quiet = filter_.quiet_from(offset); quiet >= length) {
    const uint64_t chunks = align_down(std::min(quiet, kMostQuiet), filter_.todo().chunk());
    length = std::max(length, chunks);
    moved = 0;
  }
  if (const auto ready = bucket_.ready_at(moved, time); ready > time) {
    timer_->arm(ready);
    return false;
  }
  bucket_.take(moved, time);
  Slot& slot = *std::find_if(slots_.begin(), slots_.end(), [](const Slot& s) { return !s.busy; });
  slot.op = drivers::Op::kCopy;
  slot.flags = 0;
  slot.iov = nullptr;
  slot.iov_count = 0;
  slot.offset = offset;
  slot.length = length;
  slot.done = [](drivers::Request& request, int error) {
    Slot& self = static_cast<Slot&>(request);
    self.pump->done(self, error);
  };
  slot.busy = true;
  ++in_flight_;
  cursor_ = offset + length;
  disk_.submit(slot);
  return true;
}

void CopyPump::done(Slot& slot, int error) {
  slot.busy = false;
  --in_flight_;
  if (error == 0)
    copied_ += slot.length;
  else
    running_ = false;
  if (in_flight_ == 0 && stopped_) {
    std::exchange(stopped_, nullptr)();
    return;
  }
  // What the target did not take is the filter's to tell.
  if (error != 0 && !filter_.failure())
    events_.failed(error, slot.offset);
  else
    pump();
}

}  // namespace vbdkit::jobs
