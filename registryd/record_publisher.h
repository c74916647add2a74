// SPDX-License-Identifier: LGPL-2.1-or-later
//
// RecordPublisher: shows this host's instances to others: what their records say
// (storage/registry.h) stands in etcd under PREFIXinstances/UUID, bound to the host's lease, so
// that with the host its records disappear; and where this host has its shares, for those who look
// for the same files elsewhere. It watches the runtime directory; instances need not
// know of it.
//
// What could not be told is told later, in its newest form. Thread: the reactor's; what is written
// to etcd a worker writes.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "backend/registry_config.h"
#include "base/fd.h"
#include "base/log.h"
#include "io/reactor.h"
#include "registryd/etcd_worker.h"
#include "storage/registry.h"

namespace vbdkit::registryd {

class RecordPublisher {
 public:
  struct Place {
    std::string prefix;
    std::string host;
    std::vector<RegistryConfig::Share> shares;  // RegistryConfig::roots()
  };

  static Result<std::unique_ptr<RecordPublisher>> create(io::Reactor& reactor, EtcdClient etcd,
                                                         std::string runtime_dir, Place place,
                                                         const Logger& log);
  ~RecordPublisher() { *self_ = nullptr; }

  // 0: there is none. With a new one all is told again.
  void set_lease(int64_t lease);

 private:
  struct Instance {
    int watch = -1;  // on its directory
    Fd process;
    std::unique_ptr<io::FdWatch> end;
    bool told = false;
  };
  struct Update {
    std::string uuid;
    std::string value;  // empty: it is gone
  };

  RecordPublisher(io::Reactor& reactor, EtcdClient etcd, std::string runtime_dir, Place place,
                  const Logger& log, Fd inotify);
  Result<void> start();
  void read_events();
  void scan();
  void look_at(const std::string& uuid);
  void changed(const std::string& uuid);
  void tell();
  Update update_of(const std::string& uuid);
  void told(const std::vector<Update>& updates, int64_t lease, const Result<void>& result);

  io::Reactor& reactor_;
  const Logger& log_;
  const storage::Registry registry_;
  const std::string instances_dir_;
  const Place place_;
  const Fd inotify_;
  std::unique_ptr<io::FdWatch> events_;
  std::unique_ptr<io::Timer> later_;
  std::map<std::string, Instance> instances_;  // by UUID
  std::map<int, std::string> watches_;
  std::set<std::string> changed_;
  int64_t lease_ = 0;
  bool telling_ = false;
  // What comes back from the worker finds this gone.
  const std::shared_ptr<RecordPublisher*> self_;
  EtcdWorker worker_;  // last: it ends first
};

}  // namespace vbdkit::registryd
