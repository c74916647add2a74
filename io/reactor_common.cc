// SPDX-License-Identifier: LGPL-2.1-or-later
#include "io/reactor_common.h"

#include <unistd.h>

namespace vbdkit::io {
namespace {

// A consumer whose disk never waits (ram, null) defers itself for ever; the loop must look at its
// descriptors and timers now and then all the same.
constexpr unsigned kDeferredPerTurn = 64;

}  // namespace

class ReactorCommon::TimerImpl final : public Timer {
 public:
  TimerImpl(ReactorCommon& reactor, std::function<void()> expired)
      : reactor_(reactor), expired_(std::move(expired)) {}
  ~TimerImpl() override { cancel(); }

  void arm(Clock::time_point deadline) override {
    cancel();
    where_ = reactor_.timers_.emplace(deadline, this);
    armed_ = true;
  }

  void cancel() override {
    if (!armed_) return;
    reactor_.timers_.erase(where_);
    armed_ = false;
  }

  // The callback may destroy this timer, so nothing of it is touched afterwards.
  void fire() {
    cancel();
    auto expired = expired_;
    expired();
  }

 private:
  ReactorCommon& reactor_;
  std::function<void()> expired_;
  TimerQueue::iterator where_;
  bool armed_ = false;
};

void ReactorCommon::defer(Deferred& d) {
  if (d.queued) return;
  d.queued = true;
  d.next = nullptr;
  *deferred_tail_ = &d;
  deferred_tail_ = &d.next;
}

void ReactorCommon::run_turn_end() {
  for (unsigned left = kDeferredPerTurn; left > 0 && deferred_head_ != nullptr; --left) {
    Deferred* d = deferred_head_;
    deferred_head_ = d->next;
    if (deferred_head_ == nullptr) deferred_tail_ = &deferred_head_;
    d->queued = false;
    d->run(*d);
  }
}

std::unique_ptr<Timer> ReactorCommon::timer(std::function<void()> expired) {
  return std::make_unique<TimerImpl>(*this, std::move(expired));
}

std::optional<Timer::Clock::time_point> ReactorCommon::next_deadline() const {
  if (timers_.empty()) return std::nullopt;
  return timers_.begin()->first;
}

void ReactorCommon::fire_timers() {
  if (timers_.empty()) return;
  const auto now = Timer::Clock::now();
  // A timer that rearms itself for a time already past waits for the next turn: `now` is fixed, and
  // the bound keeps an always-late one from starving the I/O.
  for (size_t n = timers_.size(); n > 0 && !timers_.empty(); --n) {
    auto first = timers_.begin();
    if (first->first > now) return;
    first->second->fire();
  }
}

void ReactorCommon::post(std::function<void()> task) {
  {
    std::lock_guard lock(posted_mutex_);
    posted_.push_back(std::move(task));
  }
  // Only the first of several posts needs to wake the loop.
  if (!posted_any_.exchange(true, std::memory_order_acq_rel)) wake();
}

void ReactorCommon::stop() {
  stop_.store(true, std::memory_order_release);
  wake();
}

void ReactorCommon::wake() {
  const uint64_t one = 1;
  // EAGAIN means that the counter is full, hence the loop awake already.
  [[maybe_unused]] ssize_t n = ::write(wake_.get(), &one, sizeof one);
}

void ReactorCommon::drain_posted() {
  uint64_t count;
  [[maybe_unused]] ssize_t n = ::read(wake_.get(), &count, sizeof count);
  ++counters_.kernel_entries;
  posted_any_.store(false, std::memory_order_release);
  std::vector<std::function<void()>> tasks;
  {
    std::lock_guard lock(posted_mutex_);
    tasks.swap(posted_);
  }
  for (auto& task : tasks) task();
}

}  // namespace vbdkit::io
