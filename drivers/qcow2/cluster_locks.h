// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Order among requests that touch the same cluster: each holds its range of the disk's clusters
// while it works. Requests elsewhere do not wait. First come, first served: a range waits only for
// earlier ones that it conflicts with. Thread: the reactor of the layer.
#pragma once

#include <cstdint>

#include "drivers/qcow2/async.h"

namespace vbdkit::drivers::qcow2 {

class ClusterLocks {
 public:
  explicit ClusterLocks(ReadyQueue& ready) : ready_(ready) {}
  ClusterLocks(const ClusterLocks&) = delete;
  ClusterLocks& operator=(const ClusterLocks&) = delete;

  // A range from `co_await lock.acquire()` to the destructor. Clusters first to last, both
  // included.
  class Lock {
   public:
    Lock(ClusterLocks& locks, uint64_t first, uint64_t last, bool shared)
        : locks_(locks), first_(first), last_(last), shared_(shared) {
      previous_ = locks.newest_;
      (previous_ != nullptr ? previous_->next_ : locks.oldest_) = this;
      locks.newest_ = this;
    }
    ~Lock() {
      (previous_ != nullptr ? previous_->next_ : locks_.oldest_) = next_;
      (next_ != nullptr ? next_->previous_ : locks_.newest_) = previous_;
      if (locks_.waiting_ > 0) locks_.grant(next_);
    }
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;

    struct Awaiter {
      Lock& lock;
      bool await_ready() const noexcept { return !lock.must_wait(); }
      void await_suspend(std::coroutine_handle<> h) {
        lock.handle_ = h;
        ++lock.locks_.waiting_;
      }
      void await_resume() const noexcept {}
    };
    Awaiter acquire() { return Awaiter{*this}; }

   private:
    friend class ClusterLocks;

    bool must_wait() const {
      for (const Lock* other = previous_; other != nullptr; other = other->previous_) {
        if (other->first_ <= last_ && first_ <= other->last_ && !(shared_ && other->shared_))
          return true;
      }
      return false;
    }

    ClusterLocks& locks_;
    const uint64_t first_;
    const uint64_t last_;
    const bool shared_;
    Lock* previous_ = nullptr;
    Lock* next_ = nullptr;
    std::coroutine_handle<> handle_;  // while it waits
  };

 private:
  void grant(Lock* from) {
    for (Lock* lock = from; lock != nullptr; lock = lock->next_) {
      if (!lock->handle_ || lock->must_wait()) continue;
      --waiting_;
      ready_.push(std::exchange(lock->handle_, nullptr));
    }
  }

  ReadyQueue& ready_;
  Lock* oldest_ = nullptr;
  Lock* newest_ = nullptr;
  unsigned waiting_ = 0;
};

}  // namespace vbdkit::drivers::qcow2
