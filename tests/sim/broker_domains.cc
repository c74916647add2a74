// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The broker's domains, and what a process that went away must give back.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "tests/sim/broker.h"

namespace vbdkit::sim {

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
