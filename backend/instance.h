// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Instance: one open disk and all who use it: the graph of nodes, the scheduler on top of it, the
// VBDs, the NBD export and the control socket. main.cc makes one and runs its reactor until it is
// done.
//
// Thread: the reactor's, for everything. Ownership: the instance owns its parts and takes them down
// in the order requests flow: consumers first, then the scheduler, then the nodes.
//
// Failure: an image that cannot be opened is create()'s error. Afterwards a consumer's fault stays
// with that consumer. Losing the daemon changes nothing: it finds the instance again through the
// runtime directory.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/blkif/vbd.h"
#include "backend/control/qmp_server.h"
#include "backend/disk_settings.h"
#include "backend/group_commands.h"
#include "backend/hook_link.h"
#include "backend/image_claims.h"
#include "backend/jobs/job_table.h"
#include "backend/live_commands.h"
#include "backend/live_graph.h"
#include "backend/nbd/server.h"
#include "backend/queue_thread.h"
#include "backend/runtime_dir.h"
#include "backend/scheduler.h"
#include "backend/xen/event_channels.h"
#include "backend/xen/grant_table.h"
#include "backend/xen/xenstore.h"
#include "base/fd.h"
#include "base/log.h"
#include "drivers/registry.h"
#include "io/reactor.h"

namespace vbdkit {

struct InstanceOptions {
  std::string spec;
  std::string uuid;
  std::string runtime_dir;  // this instance's own: …/instances/<uuid>
  std::string xentop_dir = "/dev/shm";
  bool read_only = false;
  bool shared = false;  // others that also share may have the image open
  bool nbd = true;
  bool managed = false;  // a daemon has started us and ends us, unless we are activated
  blkif::GrantPolicy grants = blkif::GrantPolicy::kAuto;
  unsigned threads = 1;  // that queues are spread over; the image is on the first
  io::EngineKind engine = io::EngineKind::kAuto;  // of the further ones
  std::optional<HookLink> hooks;                  // to be told of our record
  ImageClaims* claims = nullptr;  // where other hosts may have images too; outlives the instance
};

class Instance {
 public:
  // Opens the image and creates the sockets. `control` may be invalid: a connected socket on which
  // the one who started us speaks QMP.
  [[gnu::cold]] static Result<std::unique_ptr<Instance>> create(io::Reactor& reactor,
                                                                const Logger& log,
                                                                InstanceOptions options,
                                                                Fd control);
  ~Instance();  // when the loop no longer runs

  // Opens what a VBD needs of Xen. Done by the first attach; before it where privileges are
  // dropped.
  [[gnu::cold]] Result<void> open_xen();
  // Gives the files we have to remove later to the user we are going to be.
  [[gnu::cold]] Result<void> change_owner(uid_t uid, gid_t gid) {
    return runtime_->change_owner(uid, gid);
  }

  // `backend` is the VBD's absolute backend directory. Attaching it again does nothing.
  [[gnu::cold]] Result<void> attach(const std::string& backend);

  // Lets go of the guests without telling them (a successor or a reconnect finds the rings as they
  // are), answers what is in flight, flushes, and stops the reactor. Idempotent.
  void quit();

 private:
  struct VbdSlot {
    std::unique_ptr<blkif::Vbd> vbd;
    std::vector<control::Reply> detaching;  // answered when it is gone
  };

  struct FinalFlush : drivers::Request {
    Instance* instance = nullptr;
  };

  Instance(io::Reactor& reactor, const Logger& log, InstanceOptions options);
  [[gnu::cold]] Result<void> open(Fd control);

  // Commands of the control socket (instance_commands.cc).
  void add_commands();
  void query_block(control::Reply reply) const;
  void query_blockstats(control::Reply reply) const;
  void query_named_block_nodes(control::Reply reply) const;
  void attach_vbd(const control::Json& arguments, control::Reply reply);
  void detach_vbd(const control::Json& arguments, control::Reply reply);
  void query_instance(control::Reply reply) const;
  void disk_resized();

  void let_go(blkif::Vbd& vbd);
  void vbd_gone(const std::string& backend);
  void settle();
  void drop_vbd(const std::string& backend);
  void vbd_event(std::string_view name, const std::string& backend,
                 std::optional<XenbusState> state);
  blkif::Stats vbd_totals() const;
  void graph_changed();

  // The registry record (instance_record.cc).
  void write_chain(control::JsonWriter& w) const;
  const char* state_name() const;
  void write_identity(control::JsonWriter& w) const;
  void write_consumers(control::JsonWriter& w) const;
  Result<void> write_record();
  void update_record();  // after a change

  // Images that other hosts may have too (instance_claims.cc).
  void settle_claims();
  void claim_new_file(const std::string& path, LiveGraph::Done done);
  void watch_claims();
  void add_claiming();
  void refuse_while_held(std::string_view command);
  void claim_first(std::string_view command,
                   std::function<std::string(const control::Json& arguments)> target);

  // Who decides about our end (instance_lifetime.cc).
  void activate(control::Reply reply);
  void deactivate(control::Reply reply);
  void tell_lifetime();
  void nbd_clients_changed();
  void job_event(std::string_view name, std::string_view data);
  void quit_if_unused();
  uint64_t nbd_clients() const { return nbd_ ? nbd_->stats().connections : 0; }
  void finish_quit();
  void flush_and_stop();

  io::Reactor& reactor_;
  const Logger& log_;
  const InstanceOptions options_;

  std::optional<RuntimeDir> runtime_;
  std::unique_ptr<LiveGraph> graph_;
  std::optional<LiveCommands> live_;
  std::optional<GroupCommands> group_;
  std::optional<nbd::SchedulerStatus> nbd_status_;
  std::unique_ptr<nbd::Server> nbd_;
  std::unique_ptr<xen::XenStore> store_;
  std::unique_ptr<xen::EventChannels> events_;
  std::unique_ptr<xen::GrantTable> grants_;
  std::vector<std::unique_ptr<QueueThread>> threads_;
  std::map<std::string, VbdSlot> vbds_;  // by backend path
  blkif::Stats past_;                    // of VBDs that are gone
  std::unique_ptr<jobs::JobTable> jobs_;
  std::unique_ptr<io::Timer> settled_;  // since the last connection
  std::unique_ptr<DiskSettings> settings_;
  control::CommandTable commands_;
  std::unique_ptr<control::QmpServer> qmp_;

  std::optional<size_t> told_record_;  // a hash of the record that the hooks know
  bool managed_;                       // the daemon ends us with our last disk
  bool ends_when_unused_ = false;      // we do it ourselves
  bool quitting_ = false;
  size_t quit_waits_ = 0;  // parts that are still closing
  FinalFlush final_flush_;
};

}  // namespace vbdkit
