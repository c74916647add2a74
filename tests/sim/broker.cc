// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/broker.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace vbdkit::sim {
namespace {

constexpr uint32_t kDom0Pages = 4096;
constexpr uint32_t kDom0GrantEntries = 4096;

}  // namespace

Result<std::unique_ptr<Broker>> Broker::create() {
  std::unique_ptr<Broker> broker(new Broker);
  VBDKIT_ASSIGN(broker->hub_fd_, make_memfd("simxen-hub", sizeof(Hub)));
  VBDKIT_ASSIGN(broker->hub_, Mapping::map(broker->hub_fd_, sizeof(Hub)));
  const Answer dom0 = broker->dom_create(0, kDom0Pages, kDom0GrantEntries);
  if (dom0.reply.error != 0) return Error::from_errno(dom0.reply.error, "simxen: create domain 0");
  return broker;
}

Result<void> Broker::write_proc_files(const std::string& directory) {
  VBDKIT_ASSIGN(Fd kva, Fd::open(directory + "/xsd_kva", O_RDWR | O_CREAT, 0600));
  if (::ftruncate(kva.get(), kPageSize) != 0) return Error::from_errno(errno, "xsd_kva");
  VBDKIT_ASSIGN(Fd port_file, Fd::open(directory + "/xsd_port", O_WRONLY | O_CREAT, 0600));
  const std::string port = std::to_string(take_port(PortKind::kUnbound, 0, 0));
  if (::write(port_file.get(), port.data(), port.size()) < 0)
    return Error::from_errno(errno, "xsd_port");
  return {};
}

Result<void> Broker::serve(const Fd& listener, const Fd& stop) {
  std::vector<pollfd> polled;
  std::vector<uint32_t> ids;
  for (;;) {
    polled = {{stop.get(), POLLIN, 0}, {listener.get(), POLLIN, 0}};
    ids.clear();
    for (const auto& [id, peer] : peers_) {
      polled.push_back({peer.socket.get(), POLLIN, 0});
      ids.push_back(id);
    }
    if (::poll(polled.data(), polled.size(), -1) < 0) {
      if (errno == EINTR) continue;
      return Error::from_errno(errno, "simxen-broker: poll");
    }
    if (polled[0].revents != 0) return {};
    for (size_t i = 0; i < ids.size(); ++i) {
      if (polled[i + 2].revents == 0) continue;
      const auto request = receive_request(peers_.at(ids[i]).socket);
      if (!request) {
        drop_peer(ids[i]);
        continue;
      }
      const Answer a = answer(ids[i], *request);
      if (!send_reply(peers_.at(ids[i]).socket, a.reply, a.fds)) drop_peer(ids[i]);
    }
    if (polled[1].revents != 0) {
      Fd socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!socket.valid()) continue;
      ucred credentials{};
      socklen_t size = sizeof credentials;
      ::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &size);
      Peer peer;
      peer.socket = std::move(socket);
      peer.pid = static_cast<uint32_t>(credentials.pid);
      peers_.emplace(next_peer_++, std::move(peer));
    }
  }
}

Broker::Answer Broker::answer(uint32_t peer_id, const Request& request) {
  const auto& arg = request.arg;
  const auto domid = static_cast<DomId>(arg[0]);
  switch (request.op) {
    case Op::kHello:
      return hello(peers_.at(peer_id), domid);
    case Op::kEvtOpen:
      return evt_open(peer_id);
    case Op::kEvtClose: {
      const auto it = handles_.find(arg[0]);
      if (it == handles_.end() || it->second.peer != peer_id) return {{EBADF, {}}, {}};
      close_handle(arg[0]);
      return {};
    }
    case Op::kEvtBindUnbound:
    case Op::kEvtBindRemote:
    case Op::kEvtBindVirq:
      return evt_bind(peer_id, request);
    case Op::kEvtUnbind:
      return evt_unbind(peer_id, arg[0], arg[1]);
    case Op::kEvtStatus:
      return evt_status(domid, arg[1]);
    case Op::kEvtHandleFd: {
      const auto it = handles_.find(arg[0]);
      if (it == handles_.end()) return {{EBADF, {}}, {}};
      return {{}, {it->second.eventfd.get()}};
    }
    case Op::kEvtPeerPid: {
      const EvtPort peer = arg[0] < kMaxPorts ? hub().ports[arg[0]].peer.load() : 0;
      const auto it = handles_.find(peer == 0 ? kNoHandle : hub().ports[peer].handle.load());
      if (it == handles_.end()) return {{ENOTCONN, {}}, {}};
      return {{0, {peers_.at(it->second.peer).pid}}, {}};
    }
    case Op::kDomCreate:
      return dom_create(domid, arg[1], arg[2]);
    case Op::kDomOpen: {
      DomainInfo* domain = live_domain(domid);
      if (domain == nullptr) return {{ESRCH, {}}, {}};
      return {{0, {domain->view.uid(), domain->view.pages(), domain->view.entries()}},
              {domain->view.memory_fd().get(), domain->table_fd.get()}};
    }
    case Op::kDomDestroy:
      return dom_destroy(domid);
    case Op::kDomShutdown: {
      DomainInfo* domain = live_domain(domid);
      if (domain == nullptr) return {{ESRCH, {}}, {}};
      domain->flags |= kDomShutDown;
      domain->shutdown_reason = arg[1];
      raise_virq(VIRQ_DOM_EXC);
      return {};
    }
    case Op::kDomInfo:
      return dom_info(domid);
    case Op::kRaiseVirq:
      raise_virq(arg[0]);
      return {};
    case Op::kUnmapNotify:
      return unmap_notify(peer_id, request);
    case Op::kUnmapNotifyFire: {
      const auto it = notifies_.find(arg[0]);
      if (it == notifies_.end() || it->second.peer != peer_id) return {{ENOENT, {}}, {}};
      fire(it->second);
      notifies_.erase(it);
      return {};
    }
    case Op::kGrantsPinned: {
      uint32_t sum = 0;
      for (const auto& [uid, domain] : domains_)
        if (arg[0] == kAny || domain.view.id() == domid) sum += pins(domain.view, arg[1]);
      return {{0, {sum}}, {}};
    }
    case Op::kPortsOpen: {
      const auto count = std::ranges::count_if(ports_, [&](const PortInfo& p) {
        return p.kind != PortKind::kFree && (arg[0] == kAny || p.owner == domid);
      });
      return {{0, {static_cast<uint32_t>(count)}}, {}};
    }
    case Op::kPeerNext:
      return peer_next(arg[0]);
  }
  return {{ENOSYS, {}}, {}};
}

Broker::Answer Broker::hello(Peer& peer, DomId domid) {
  auto fd = make_memfd("simxen-ledger", sizeof(Ledger));
  if (!fd) return {{fd.error().sys_errno(), {}}, {}};
  auto ledger = Mapping::map(*fd, sizeof(Ledger));
  if (!ledger) return {{ledger.error().sys_errno(), {}}, {}};
  peer.domid = domid;
  peer.ledger_fd = std::move(*fd);
  peer.ledger = std::move(*ledger);
  return {{}, {hub_fd_.get(), peer.ledger_fd.get()}};
}

// ---- event channels ----

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

// ---- domains ----

Broker::DomainInfo* Broker::live_domain(DomId domid) {
  for (auto& [uid, domain] : domains_)
    if (domain.view.id() == domid && !domain.view.dying()) return &domain;
  return nullptr;
}

Broker::DomainInfo* Broker::domain_by_uid(uint32_t uid) {
  const auto it = domains_.find(uid);
  return it == domains_.end() ? nullptr : &it->second;
}

uint32_t Broker::pins(const Domain& domain, GrantRef from) const {
  uint32_t sum = 0;
  for (GrantRef ref = from; ref < domain.entries(); ++ref) sum += domain.pins(ref);
  return sum;
}

// A dying domain stays, as a zombie, while somebody holds one of its pages.
void Broker::bury_zombies() {
  std::erase_if(domains_, [&](const auto& d) {
    return d.second.view.dying() && pins(d.second.view, 0) == 0;
  });
}

Broker::Answer Broker::dom_create(DomId domid, uint32_t pages, uint32_t entries) {
  if (domid == 0 && !domains_.empty()) domid = next_domid_++;
  if (live_domain(domid) != nullptr) return {{EEXIST, {}}, {}};
  const std::string name = "simxen-d" + std::to_string(domid);
  const size_t table_size = Domain::table_size(entries);
  auto memory_fd = make_memfd(name + "-memory", size_t{pages} * kPageSize);
  auto table_fd = make_memfd(name + "-grants", table_size);
  if (!memory_fd || !table_fd) return {{ENOMEM, {}}, {}};
  {
    auto table = Mapping::map(*table_fd, table_size);
    if (!table) return {{ENOMEM, {}}, {}};
    auto* header = table->as<GrantTable>();
    header->uid = next_uid_;
    header->entries = entries;
    header->pages = pages;
  }
  Fd table_for_view(::fcntl(table_fd->get(), F_DUPFD_CLOEXEC, 0));
  auto view = Domain::map(domid, std::move(*memory_fd), std::move(table_for_view));
  if (!view) return {{ENOMEM, {}}, {}};
  domains_.emplace(next_uid_++, DomainInfo{std::move(*view), std::move(*table_fd)});
  return {{0, {domid}}, {}};
}

Broker::Answer Broker::dom_destroy(DomId domid) {
  DomainInfo* domain = live_domain(domid);
  if (domain == nullptr || domid == 0) return {{ESRCH, {}}, {}};
  domain->view.set_dying();
  domain->flags |= kDomDying;
  for (EvtPort port = 1; port < kMaxPorts; ++port)
    if (ports_[port].kind != PortKind::kFree && ports_[port].owner == domid) close_port(port);
  bury_zombies();
  raise_virq(VIRQ_DOM_EXC);
  return {};
}

Broker::Answer Broker::dom_info(DomId first) {
  bury_zombies();
  const DomainInfo* found = nullptr;
  for (const auto& [uid, domain] : domains_)
    if (domain.view.id() >= first && (found == nullptr || domain.view.id() < found->view.id()))
      found = &domain;
  if (found == nullptr) return {{ESRCH, {}}, {}};
  return {{0, {found->view.id(), found->flags, found->shutdown_reason, found->view.pages()}}, {}};
}

// ---- what a process holds ----

Broker::Answer Broker::unmap_notify(uint32_t peer_id, const Request& request) {
  const auto& arg = request.arg;
  if (domain_by_uid(arg[0]) == nullptr) return {{ESRCH, {}}, {}};
  if (arg[3] != kNone && arg[3] >= kMaxPorts) return {{EINVAL, {}}, {}};
  notifies_.emplace(next_notify_, Notify{peer_id, arg[0], arg[1], arg[2], arg[3]});
  return {{0, {next_notify_++}}, {}};
}

void Broker::fire(const Notify& notify) {
  DomainInfo* domain = domain_by_uid(notify.uid);
  if (domain != nullptr && notify.offset < kPageSize && notify.frame < domain->view.pages())
    domain->view.page(notify.frame)[notify.offset] = std::byte{0};
  if (notify.port == kNone) return;
  const EvtPort peer = hub().ports[notify.port].peer.load();
  if (peer != 0) raise(peer);
}

Broker::Answer Broker::peer_next(uint32_t first) {
  for (const auto& [id, peer] : peers_) {
    if (id < first || peer.ledger.size() == 0) continue;
    uint32_t ports = 0;
    for (const auto& [handle, info] : handles_)
      if (info.peer == id)
        ports += static_cast<uint32_t>(
            std::ranges::count_if(info.slots, [](EvtPort p) { return p != 0; }));
    const auto* ledger = peer.ledger.as<Ledger>();
    uint32_t grants = 0;
    for (uint32_t i = 0; i < ledger->maps_high.load(); ++i)
      grants += record_state(ledger->maps[i].load()) == kRecordFree ? 0 : 1;
    return {{0, {id, peer.pid, ports, grants}}, {peer.ledger_fd.get()}};
  }
  return {{ESRCH, {}}, {}};
}

// Unpins what one record of a dead process says. Where the process died between writing the record
// and pinning, or unpinning and clearing it, the other ledgers tell what is left.
void Broker::give_back(std::atomic<GrantRecord>& word) {
  const GrantRecord record = word.load();
  if (record_state(record) == kRecordFree) return;
  word.store(make_record(kRecordFree, false, 0, 0));
  DomainInfo* domain = domain_by_uid(record_uid(record));
  const GrantRef ref = record_ref(record);
  if (domain == nullptr || ref >= domain->view.entries()) return;
  if (record_state(record) == kRecordHeld) {
    domain->view.unpin(ref, record_writable(record));
    return;
  }
  uint32_t readers = 0;
  uint32_t writers = 0;
  const auto count = [&](const std::atomic<GrantRecord>& other) {
    const GrantRecord r = other.load();
    if (record_state(r) != kRecordHeld || record_uid(r) != record_uid(record) ||
        record_ref(r) != ref)
      return;
    (record_writable(r) ? writers : readers) += 1;
  };
  for (const auto& [id, peer] : peers_) {
    if (peer.ledger.size() == 0) continue;
    const auto* ledger = peer.ledger.as<Ledger>();
    for (uint32_t i = 0; i < ledger->maps_high.load(); ++i) count(ledger->maps[i]);
    for (const auto& thread : ledger->threads)
      for (const auto& copying : thread.copying) count(copying);
  }
  domain->view.set_pins(ref, readers, writers);
}

void Broker::drop_peer(uint32_t peer_id) {
  Peer& peer = peers_.at(peer_id);
  for (auto it = notifies_.begin(); it != notifies_.end();) {
    if (it->second.peer == peer_id) {
      fire(it->second);
      it = notifies_.erase(it);
    } else {
      ++it;
    }
  }
  if (peer.ledger.size() != 0) {
    auto* ledger = peer.ledger.as<Ledger>();
    for (auto& thread : ledger->threads) {
      const EvtPort port = thread.delivering.exchange(0);
      if (port != 0 && port < kMaxPorts) {
        const Port& shared = hub().ports[port];
        const auto handle = handles_.find(shared.handle.load());
        if ((shared.latch.load() & kPortMasked) != 0 && handle != handles_.end()) {
          const uint32_t slot = shared.slot.load();
          hub().handles[handle->first].ready[slot / 64].fetch_or(uint64_t{1} << (slot % 64));
          ::eventfd_write(handle->second.eventfd.get(), 1);
        }
      }
      for (auto& copying : thread.copying) give_back(copying);
    }
    for (uint32_t i = 0; i < std::min(ledger->maps_high.load(), kMaxMappedGrants); ++i)
      give_back(ledger->maps[i]);
  }
  std::vector<uint32_t> handles;
  for (const auto& [handle, info] : handles_)
    if (info.peer == peer_id) handles.push_back(handle);
  for (const uint32_t handle : handles) close_handle(handle);
  peers_.erase(peer_id);
  bury_zombies();
}

}  // namespace vbdkit::sim
