// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The broker's event channels: handles, ports, virtual interrupts.
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>

#include "tests/sim/broker.h"

namespace vbdkit::sim {

Broker::Answer Broker::evt_open(uint32_t peer_id) {
  if (next_handle_ == kMaxHandles) return {{ENOSPC, {}}, {}};
  Fd fd(::eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE));
  if (!fd.valid()) return {{errno, {}}, {}};
  const uint32_t handle = next_handle_++;
  const int raw = fd.get();
  handles_.emplace(handle, HandleInfo{peer_id, std::move(fd), {}});
  return {{0, {handle}}, {raw}};
}

Broker::Answer Broker::evt_bind(uint32_t peer_id, const Request& request) {
  const uint32_t handle = request.arg[0];
  const auto it = handles_.find(handle);
  if (it == handles_.end() || it->second.peer != peer_id) return {{EBADF, {}}, {}};
  const DomId own = peers_.at(peer_id).domid;
  EvtPort port = 0;
  if (request.op == Op::kEvtBindUnbound) {
    const auto remote = static_cast<DomId>(request.arg[1]);
    port = take_port(PortKind::kUnbound, own, remote == DOMID_SELF ? own : remote);
  } else if (request.op == Op::kEvtBindVirq) {
    port = take_port(PortKind::kVirq, own, own);
    if (port != 0) ports_[port].virq = request.arg[1];
  } else {
    const auto remote = static_cast<DomId>(request.arg[1]);
    const EvtPort remote_port = request.arg[2];
    if (live_domain(remote) == nullptr) return {{ESRCH, {}}, {}};
    if (remote_port == 0 || remote_port >= kMaxPorts) return {{EINVAL, {}}, {}};
    PortInfo& other = ports_[remote_port];
    if (other.kind != PortKind::kUnbound || other.owner != remote || other.remote != own)
      return {{EINVAL, {}}, {}};
    port = take_port(PortKind::kInterdomain, own, remote);
    if (port != 0) {
      other.kind = PortKind::kInterdomain;
      hub().ports[port].peer.store(remote_port);
      hub().ports[remote_port].peer.store(port);
    }
  }
  if (port == 0) return {{ENOSPC, {}}, {}};
  if (!attach(port, handle)) {
    close_port(port);
    return {{ENOSPC, {}}, {}};
  }
  return {{0, {port, hub().ports[port].slot.load()}}, {}};
}

Broker::Answer Broker::evt_unbind(uint32_t peer_id, uint32_t handle, EvtPort port) {
  const auto it = handles_.find(handle);
  if (it == handles_.end() || it->second.peer != peer_id) return {{EBADF, {}}, {}};
  if (port == 0 || port >= kMaxPorts || hub().ports[port].handle.load() != handle)
    return {{ENOTCONN, {}}, {}};
  close_port(port);
  return {};
}

Broker::Answer Broker::evt_status(DomId domid, EvtPort port) {
  if (port >= kMaxPorts) return {{EINVAL, {}}, {}};
  const PortInfo& p = ports_[port];
  if (p.kind == PortKind::kFree || p.owner != domid) return {{0, {EVTCHNSTAT_closed}}, {}};
  const uint32_t peer = hub().ports[port].peer.load();
  switch (p.kind) {
    case PortKind::kUnbound:
      return {{0, {EVTCHNSTAT_unbound, p.remote}}, {}};
    case PortKind::kInterdomain:
      return {{0, {EVTCHNSTAT_interdomain, p.remote, peer}}, {}};
    default:
      return {{0, {EVTCHNSTAT_virq, p.virq}}, {}};
  }
}

uint32_t Broker::take_port(PortKind kind, DomId owner, DomId remote) {
  // The lowest free number, as Xen does: so ports are soon used again.
  for (EvtPort port = 1; port < kMaxPorts; ++port) {
    if (ports_[port].kind != PortKind::kFree) continue;
    ports_[port] = {kind, owner, remote, 0};
    Port& shared = hub().ports[port];
    shared.peer.store(0);
    shared.handle.store(kNoHandle);
    shared.latch.store(0);
    return port;
  }
  return 0;
}

bool Broker::attach(EvtPort port, uint32_t handle) {
  auto& slots = handles_.at(handle).slots;
  // A bit that is still set belongs to an event of the port that had the slot before.
  auto& ready = hub().handles[handle].ready;
  uint32_t slot = 0;
  while (slot < slots.size() &&
         (slots[slot] != 0 || (ready[slot / 64].load() >> (slot % 64) & 1) != 0))
    ++slot;
  if (slot >= kPortsPerHandle) return false;
  if (slot == slots.size()) slots.push_back(0);
  slots[slot] = port;
  hub().ports[port].slot.store(slot);
  hub().ports[port].handle.store(handle);
  return true;
}

void Broker::detach(EvtPort port) {
  Port& shared = hub().ports[port];
  const uint32_t handle = shared.handle.exchange(kNoHandle);
  const auto it = handles_.find(handle);
  if (it != handles_.end()) it->second.slots[shared.slot.load()] = 0;
}

// The other end becomes unbound again and may be bound anew: what lets a backend be replaced.
void Broker::close_port(EvtPort port) {
  Port& shared = hub().ports[port];
  const EvtPort peer = shared.peer.exchange(0);
  if (peer != 0) {
    hub().ports[peer].peer.store(0);
    ports_[peer].kind = PortKind::kUnbound;
  }
  detach(port);
  shared.latch.store(0);
  ports_[port] = {};
}

void Broker::close_handle(uint32_t handle) {
  const std::vector<EvtPort> slots = handles_.at(handle).slots;
  for (const EvtPort port : slots)
    if (port != 0) close_port(port);
  handles_.erase(handle);
}

void Broker::raise(EvtPort port) {
  const uint32_t handle = latch_event(hub(), port);
  const auto it = handles_.find(handle);
  if (it != handles_.end()) ::eventfd_write(it->second.eventfd.get(), 1);
}

void Broker::raise_virq(uint32_t virq) {
  for (EvtPort port = 1; port < kMaxPorts; ++port)
    if (ports_[port].kind == PortKind::kVirq && ports_[port].virq == virq) raise(port);
}

}  // namespace vbdkit::sim
