// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The simulated hypervisor's book-keeping: which domains exist, who has which port and handle, and
// what a process that went away must give back. One thread; it sleeps while the data path runs.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "tests/sim/grant_table.h"
#include "tests/sim/layout.h"
#include "tests/sim/memory.h"
#include "tests/sim/socket.h"

namespace vbdkit::sim {

class Broker {
 public:
  // With domain 0 in it.
  static Result<std::unique_ptr<Broker>> create();

  // Where Linux has /proc/xen: xsd_port and xsd_kva, through which xenstored finds its dom0 ring.
  Result<void> write_proc_files(const std::string& directory);

  // Serves until `stop` becomes readable.
  Result<void> serve(const Fd& listener, const Fd& stop);

 private:
  enum class PortKind { kFree, kUnbound, kInterdomain, kVirq };
  struct PortInfo {
    PortKind kind = PortKind::kFree;
    DomId owner = 0;
    DomId remote = 0;
    uint32_t virq = 0;
  };
  struct HandleInfo {
    uint32_t peer;  // the connection's id
    Fd eventfd;
    std::vector<EvtPort> slots;  // 0: free
  };
  struct DomainInfo {
    Domain view;
    Fd table_fd;
    uint32_t flags = 0;
    uint32_t shutdown_reason = 0;
  };
  struct Notify {
    uint32_t peer;
    uint32_t uid;
    Gfn frame;
    uint32_t offset;
    EvtPort port;
  };
  struct Peer {
    Fd socket;
    DomId domid = 0;
    uint32_t pid = 0;
    Fd ledger_fd;
    Mapping ledger;
  };
  struct Answer {
    Reply reply;
    std::vector<int> fds;
  };

  Broker() = default;
  Answer answer(uint32_t peer_id, const Request& request);
  Answer hello(Peer& peer, DomId domid);
  Answer evt_open(uint32_t peer_id);
  Answer evt_bind(uint32_t peer_id, const Request& request);
  Answer evt_unbind(uint32_t peer_id, uint32_t handle, EvtPort port);
  Answer evt_status(DomId domid, EvtPort port);
  Answer dom_create(DomId domid, uint32_t pages, uint32_t entries);
  Answer dom_destroy(DomId domid);
  Answer dom_info(DomId first);
  Answer unmap_notify(uint32_t peer_id, const Request& request);
  Answer peer_next(uint32_t first);

  DomainInfo* live_domain(DomId domid);
  DomainInfo* domain_by_uid(uint32_t uid);
  void bury_zombies();
  uint32_t pins(const Domain& domain, GrantRef from) const;

  uint32_t take_port(PortKind kind, DomId owner, DomId remote);
  bool attach(EvtPort port, uint32_t handle);
  void detach(EvtPort port);
  void close_port(EvtPort port);
  void close_handle(uint32_t handle);
  void raise(EvtPort port);
  void raise_virq(uint32_t virq);
  void fire(const Notify& notify);
  void drop_peer(uint32_t peer_id);
  void give_back(std::atomic<GrantRecord>& word);

  Hub& hub() const { return *hub_.as<Hub>(); }

  Fd hub_fd_;
  Mapping hub_;
  std::vector<PortInfo> ports_{kMaxPorts};
  std::map<uint32_t, HandleInfo> handles_;
  uint32_t next_handle_ = 1;
  std::map<uint32_t, DomainInfo> domains_;  // by uid; dying ones stay while a grant is pinned
  uint32_t next_uid_ = 1;
  DomId next_domid_ = 1;
  std::map<uint32_t, Peer> peers_;
  uint32_t next_peer_ = 1;
  std::map<uint32_t, Notify> notifies_;
  uint32_t next_notify_ = 1;
};

}  // namespace vbdkit::sim
