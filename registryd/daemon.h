// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Daemon: vbdkit-registryd. It speaks with etcd for this host: keeps the host's lease
// (LeaseKeeper), claims shared images for those who work on them here (ClaimStore), shows the
// instances to other hosts (RecordPublisher), and answers the command line's questions. It is asked
// over RUNTIME-DIR/registry.sock, in QMP:
//     registry-claim    {holder, images: [{image, mode, path}]}  -> {epoch, revisions}
//     registry-resume   {holder, images: [{image, revision}]}    -> {epoch, missing}
//     registry-release  {holder, images: [image]}
//     registry-image    {image}    -> [{host, holder, mode, path}]
//     registry-instance {uuid}     -> {host, record}; a part of the UUID will do
//     registry-instances {after}   -> [{host, record}], a page of those behind that UUID
//     registry-status
// A holder is the process that has asked: what it has claimed is given up when it has ended.
//
// Thread: the reactor's; whatever asks etcd is done by workers.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "backend/control/qmp_server.h"
#include "backend/registry_config.h"
#include "base/log.h"
#include "io/reactor.h"
#include "registryd/claim_store.h"
#include "registryd/etcd_worker.h"
#include "registryd/lease_keeper.h"
#include "registryd/record_publisher.h"

namespace vbdkit::registryd {

class Daemon {
 public:
  static Result<std::unique_ptr<Daemon>> create(io::Reactor& reactor, const Logger& log,
                                                RegistryConfig config, std::string runtime_dir);
  ~Daemon();

 private:
  struct Holder {
    ClaimStore::Holder who;
    std::set<std::string> images;
    Fd process;
    std::unique_ptr<io::FdWatch> end;
  };
  using SharedReply = std::shared_ptr<control::Reply>;

  Daemon(io::Reactor& reactor, const Logger& log, RegistryConfig config, std::string runtime_dir);
  Result<void> start();
  Result<EtcdClient> client();
  Result<LeaseKeeper::Options> lease_options() const;
  void add_commands();

  void claim(const control::Json& arguments, control::Reply reply);
  void resume(const control::Json& arguments, control::Reply reply);
  void release(const control::Json& arguments, control::Reply reply);
  void image(const control::Json& arguments, control::Reply reply);
  void instance(const control::Json& arguments, control::Reply reply);
  void instances(const control::Json& arguments, control::Reply reply);
  void status(control::Reply reply) const;

  // Runs `ask` beside the loop and `then` with its result in the loop.
  template <typename T>
  void ask_etcd(std::function<Result<T>(EtcdClient&)> ask, std::function<void(Result<T>)> then);
  Result<void> held() const;
  Result<Holder*> holder_of(const std::string& name, pid_t pid);
  Result<void> watch_process(Holder& holder);
  void lease_changed(const LeaseKeeper::State& state);
  void adopt(const std::vector<Claim>& own);
  void ended(const std::string& name);
  void give_up(const std::string& holder, std::set<std::string> images);
  void give_up_rest();
  ClaimStore::Place place() const { return {config_.prefix, config_.host}; }

  io::Reactor& reactor_;
  const Logger& log_;
  const RegistryConfig config_;
  const std::string runtime_dir_;
  Fd lock_;  // one per runtime directory
  EtcdCounters counters_;
  LeaseKeeper::State lease_;
  bool adopted_ = false;
  std::map<std::string, Holder> holders_;
  std::map<std::string, std::set<std::string>> unwanted_;  // by holder; to be given up at etcd
  bool giving_up_ = false;
  std::unique_ptr<io::Timer> later_;
  control::CommandTable commands_;
  std::unique_ptr<control::QmpServer> server_;
  std::unique_ptr<RecordPublisher> publisher_;
  const std::shared_ptr<Daemon*> self_;  // what comes back from threads finds this gone
  std::unique_ptr<EtcdWorker> claims_;
  std::unique_ptr<EtcdWorker> questions_;
  std::unique_ptr<LeaseKeeper> keeper_;
};

}  // namespace vbdkit::registryd
