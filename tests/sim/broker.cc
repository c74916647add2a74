// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/broker.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

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

}  // namespace vbdkit::sim
