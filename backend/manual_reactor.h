// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For tests: a loop that the test turns by hand, for what needs deferral alone. One thread.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <memory>

#include "io/reactor.h"

namespace vbdkit {

class ManualReactor final : public io::Reactor {
 public:
  Result<void> run() override { return {}; }
  void submit(io::FileOp&) override { FAIL(); }
  void submit(io::SocketOp&) override { FAIL(); }
  void defer(io::Deferred& d) override {
    if (d.queued) return;
    d.queued = true;
    queue_.push_back(&d);
  }
  std::unique_ptr<io::FdWatch> watch(int, std::function<void()>) override { return nullptr; }
  std::unique_ptr<io::Timer> timer(std::function<void()>) override { return nullptr; }
  void post(std::function<void()>) override {}
  void stop() override {}
  const char* engine_name() const override { return "manual"; }
  const io::ReactorCounters& counters() const override { return counters_; }

  void turn() {
    while (!queue_.empty()) {
      io::Deferred* d = queue_.front();
      queue_.pop_front();
      d->queued = false;
      d->run(*d);
    }
  }

 private:
  std::deque<io::Deferred*> queue_;
  io::ReactorCounters counters_;
};

}  // namespace vbdkit
