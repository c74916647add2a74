// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Beside: a thread for what blocks (files are made and renamed), so that a slow file system does
// not hold up guests. One piece of work at a time; the owner's next waits for it.
// Thread: the reactor's. Destroyed, it waits for what runs, whose `done` is dropped with the loop.
#pragma once

#include <functional>
#include <memory>
#include <thread>

#include "base/result.h"
#include "io/reactor.h"

namespace vbdkit {

class Beside {
 public:
  explicit Beside(io::Reactor& reactor) : reactor_(reactor) {}
  ~Beside() { wait(); }
  Beside(const Beside&) = delete;
  Beside& operator=(const Beside&) = delete;

  // `work` on the thread, then `done` with its result in the loop.
  void run(std::function<Result<void>()> work, std::function<void(Result<void>)> done) {
    wait();
    thread_ = std::thread([this, work = std::move(work), done = std::move(done)] {
      auto result = std::make_shared<Result<void>>(work());
      reactor_.post([result, done] { done(std::move(*result)); });
    });
  }

 private:
  void wait() {
    if (thread_.joinable()) thread_.join();
  }

  io::Reactor& reactor_;
  std::thread thread_;
};

}  // namespace vbdkit
