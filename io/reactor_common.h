// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What every reactor needs besides its kernel interface: the deferred list, timers, and tasks
// posted by other threads. The implementations derive from ReactorCommon and call run_turn_end(),
// next_deadline(), fire_timers() and drain_posted() from their loops.
//
// Thread: the reactor's, but for post() and stop().
#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "io/reactor.h"

namespace vbdkit::io {

class ReactorCommon : public Reactor {
 public:
  void defer(Deferred& d) override;
  std::unique_ptr<Timer> timer(std::function<void()> expired) override;
  void post(std::function<void()> task) override;
  void stop() override;
  const ReactorCounters& counters() const override { return counters_; }

 protected:
  explicit ReactorCommon(Fd wake) : wake_(std::move(wake)) {}

  // Runs what is deferred, also what that defers, within a bound: where has_deferred() remains, the
  // loop must not wait.
  void run_turn_end();
  bool has_deferred() const { return deferred_head_ != nullptr; }

  std::optional<Timer::Clock::time_point> next_deadline() const;
  void fire_timers();

  // Empties the wake descriptor and runs what other threads posted.
  void drain_posted();
  bool stopping() const { return stop_.load(std::memory_order_acquire); }
  // run() has seen the stop and returns; the next run() waits for another one.
  void stop_seen() { stop_.store(false, std::memory_order_release); }
  int wake_fd() const { return wake_.get(); }

  ReactorCounters counters_;

 private:
  class TimerImpl;
  using TimerQueue = std::multimap<Timer::Clock::time_point, TimerImpl*>;

  void wake();

  Deferred* deferred_head_ = nullptr;
  Deferred** deferred_tail_ = &deferred_head_;
  TimerQueue timers_;

  Fd wake_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> posted_any_{false};
  std::mutex posted_mutex_;  // guards posted_
  std::vector<std::function<void()>> posted_;
};

}  // namespace vbdkit::io
