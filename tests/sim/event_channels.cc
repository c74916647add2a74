// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/event_channels.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>

namespace vbdkit::sim {

Result<std::unique_ptr<EventChannels>> EventChannels::open(std::shared_ptr<Connection> connection) {
  VBDKIT_ASSIGN(ReplyWithFds reply, connection->call(Op::kEvtOpen));
  if (reply.fds.size() != 1) return Error(ErrorKind::kProtocol, "simxen: no eventfd came");
  return std::unique_ptr<EventChannels>(
      new EventChannels(std::move(connection), reply.reply.value[0], std::move(reply.fds[0])));
}

EventChannels::~EventChannels() {
  // A broker that has gone has closed the handle already.
  (void)connection_->call(Op::kEvtClose, {handle_}).ok();
}

Result<EvtPort> EventChannels::bind(Op op, uint32_t arg1, uint32_t arg2) {
  VBDKIT_ASSIGN(ReplyWithFds reply, connection_->call(op, {handle_, arg1, arg2}));
  const EvtPort port = reply.reply.value[0];
  const uint32_t slot = reply.reply.value[1];
  slot_port_[slot].store(port);
  slot_bound_[slot].store(true);
  uint32_t used = words_used_.load();
  while (used < slot / 64 + 1 && !words_used_.compare_exchange_weak(used, slot / 64 + 1)) {
  }
  // Only now is there a port behind the bit: a new binding to an existing channel is pending.
  if (op == Op::kEvtBindRemote) connection_->raise(port);
  return port;
}

Result<EvtPort> EventChannels::bind_unbound(DomId remote) {
  return bind(Op::kEvtBindUnbound, remote, connection_->domid());
}

Result<EvtPort> EventChannels::bind_interdomain(DomId remote, EvtPort remote_port) {
  return bind(Op::kEvtBindRemote, remote, remote_port);
}

Result<EvtPort> EventChannels::bind_virq(uint32_t virq) { return bind(Op::kEvtBindVirq, virq, 0); }

Result<void> EventChannels::unbind(EvtPort port) {
  if (!owns(port)) return Error::from_errno(ENOTCONN, "simxen: unbind");
  const uint32_t slot = connection_->hub().ports[port].slot.load();
  VBDKIT_TRY([&]() -> Result<void> {
    VBDKIT_ASSIGN([[maybe_unused]] auto reply, connection_->call(Op::kEvtUnbind, {handle_, port}));
    return {};
  }());
  slot_bound_[slot].store(false);
  return {};
}

bool EventChannels::owns(EvtPort port) const {
  if (port == 0 || port >= kMaxPorts) return false;
  const Port& p = connection_->hub().ports[port];
  const uint32_t slot = p.slot.load(std::memory_order_relaxed);
  return p.handle.load(std::memory_order_relaxed) == handle_ && slot < kPortsPerHandle &&
         slot_bound_[slot].load(std::memory_order_relaxed) &&
         slot_port_[slot].load(std::memory_order_relaxed) == port;
}

int EventChannels::notify(EvtPort port) {
  if (!owns(port)) return ENOTCONN;
  connection_->counters().notifies.fetch_add(1, std::memory_order_relaxed);
  const EvtPort peer = connection_->hub().ports[port].peer.load();
  if (peer != 0) connection_->raise(peer);
  return 0;
}

int EventChannels::unmask(EvtPort port) {
  // The kernel ignores ports that are not (or no longer) bound here, too.
  if (!owns(port)) return 0;
  connection_->counters().unmasks.fetch_add(1, std::memory_order_relaxed);
  const uint32_t latch = connection_->hub().ports[port].latch.exchange(0);
  if ((latch & kPortPending) != 0) connection_->raise(port);
  return 0;
}

EventChannels::Pending EventChannels::pending() {
  connection_->counters().pendings.fetch_add(1, std::memory_order_relaxed);
  uint64_t count;
  ssize_t n;
  do {
    n = ::read(fd_.get(), &count, sizeof count);
  } while (n < 0 && errno == EINTR);
  if (n != sizeof count) return {n < 0 ? errno : EIO, 0};
  auto& ready = connection_->hub().handles[handle_].ready;
  // There is a bit for each count taken, but another thread may take "ours" and leave us one that a
  // pass has gone by.
  for (int pass = 0; pass < 16; ++pass) {
    for (uint32_t word = 0; word < words_used_.load(); ++word) {
      uint64_t bits = ready[word].load();
      while (bits != 0) {
        const auto bit = static_cast<uint32_t>(std::countr_zero(bits));
        const uint64_t mask = uint64_t{1} << bit;
        if ((ready[word].fetch_and(~mask) & mask) != 0) return {0, slot_port_[word * 64 + bit]};
        bits = ready[word].load();
      }
    }
  }
  return {EAGAIN, 0};  // a delivery that the broker finished twice for a killed notifier
}

bool EventChannels::wait(Deadline deadline) const {
  pollfd p{fd_.get(), POLLIN, 0};
  for (;;) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    const int n = ::poll(&p, 1, static_cast<int>(std::max<int64_t>(0, left.count())));
    if (n > 0) return true;
    if (n == 0 || errno != EINTR) return false;
  }
}

}  // namespace vbdkit::sim
