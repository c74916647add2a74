// SPDX-License-Identifier: LGPL-2.1-or-later
//
// LeaseKeeper: a thread that keeps this host's lease at etcd and the host's key that is bound to
// it, and says in the lease page until when that is certain.
//
// Certain is only what was confirmed: etcd ends a lease no earlier than its time after it has had
// the keepalive, and so no earlier than that after the keepalive was sent. After each one the
// host's key is read, by a quorum of the members, so that a leader that is none any more cannot
// confirm. From that point in time are taken a margin, for clocks that do not go alike, and a
// reserve, in which what the kernel has of an instance's writes may end.
//
// Thread: its own; `changed` is called on it.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "backend/lease_page.h"
#include "base/log.h"
#include "registryd/etcd_client.h"

namespace vbdkit::registryd {

class LeaseKeeper {
 public:
  struct State {
    bool held = false;
    int64_t lease = 0;
    int64_t epoch = 0;   // the create revision of the host's key
    std::string reason;  // why it is not held
    friend bool operator==(const State&, const State&) = default;
  };
  struct Options {
    std::string key;    // PREFIXhosts/HOST
    std::string value;  // JSON with "machine"; another machine's key is not taken over
    std::string machine;
    std::chrono::seconds ttl;
  };

  LeaseKeeper(EtcdClient etcd, LeasePage page, Options options, const Logger& log,
              std::function<void(const State&)> changed);
  // The lease stays, and ends in its time: instances go on meanwhile.
  ~LeaseKeeper();
  LeaseKeeper(const LeaseKeeper&) = delete;
  LeaseKeeper& operator=(const LeaseKeeper&) = delete;

 private:
  void loop();
  Result<void> turn();
  Result<void> begin();
  Result<void> take_key();
  void lost(const std::string& reason);
  void publish(BootClock::time_point sent, std::chrono::seconds ttl);
  void tell(State state);

  EtcdClient etcd_;
  LeasePage page_;
  const Options options_;
  const Logger& log_;
  const std::function<void(const State&)> changed_;
  State state_;
  BootClock::time_point certain_until_{};
  std::string told_reason_;
  int64_t lease_ = 0;
  int64_t epoch_ = 0;

  std::mutex mutex_;
  std::condition_variable ending_changed_;
  bool ending_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace vbdkit::registryd
