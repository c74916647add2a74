// SPDX-License-Identifier: LGPL-2.1-or-later
//
// EtcdWorker: a thread with a client of its own, which does what is given to it one after the
// other, so that no loop waits for etcd. What a piece of work has to tell it posts to a reactor.
// run() from any thread.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "registryd/etcd_client.h"

namespace vbdkit::registryd {

class EtcdWorker {
 public:
  using Work = std::function<void(EtcdClient& etcd)>;

  explicit EtcdWorker(EtcdClient etcd) : etcd_(std::move(etcd)), thread_([this] { loop(); }) {}
  // Waits for what is being done; the rest is dropped.
  ~EtcdWorker() {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }
  EtcdWorker(const EtcdWorker&) = delete;
  EtcdWorker& operator=(const EtcdWorker&) = delete;

  void run(Work work) {
    {
      const std::lock_guard lock(mutex_);
      waiting_.push_back(std::move(work));
    }
    changed_.notify_one();
  }

 private:
  void loop() {
    for (std::unique_lock lock(mutex_);;) {
      changed_.wait(lock, [this] { return ending_ || !waiting_.empty(); });
      if (ending_) return;
      const Work work = std::move(waiting_.front());
      waiting_.pop_front();
      lock.unlock();
      work(etcd_);
      lock.lock();
    }
  }

  EtcdClient etcd_;   // the thread's
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<Work> waiting_;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace vbdkit::registryd
