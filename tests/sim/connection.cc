// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/connection.h"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace vbdkit::sim {
namespace {

std::atomic<uint64_t> next_serial{
    1};  // process-wide by nature: it numbers this process's threads' caches

// The ledger slots a thread has taken, given back when it ends.
class ThreadSlots {
 public:
  ~ThreadSlots() {
    for (auto& s : slots_)
      if (auto c = s.connection.lock()) s.slot->taken.store(0, std::memory_order_release);
  }
  ThreadSlot* find(uint64_t serial) const {
    for (const auto& s : slots_)
      if (s.serial == serial) return s.slot;
    return nullptr;
  }
  void add(uint64_t serial, std::weak_ptr<Connection> connection, ThreadSlot* slot) {
    std::erase_if(slots_, [](const Taken& s) { return s.connection.expired(); });
    slots_.push_back({serial, std::move(connection), slot});
  }

 private:
  struct Taken {
    uint64_t serial;
    std::weak_ptr<Connection> connection;
    ThreadSlot* slot;
  };
  std::vector<Taken> slots_;
};

}  // namespace

Connection::Connection(Fd socket, DomId domid)
    : serial_(next_serial.fetch_add(1)), socket_(std::move(socket)), domid_(domid) {
  for (auto& fd : handle_fds_) fd.store(-1, std::memory_order_relaxed);
}

Result<std::shared_ptr<Connection>> Connection::open(const std::string& socket_path, DomId domid) {
  VBDKIT_ASSIGN(Fd socket, connect_socket(socket_path));
  std::shared_ptr<Connection> connection(new Connection(std::move(socket), domid));
  VBDKIT_ASSIGN(ReplyWithFds hello, connection->call(Op::kHello, {domid}));
  if (hello.fds.size() != 2) return Error(ErrorKind::kProtocol, "simxen: no shared memory came");
  VBDKIT_ASSIGN(connection->hub_, Mapping::map(hello.fds[0], sizeof(Hub)));
  VBDKIT_ASSIGN(connection->ledger_, Mapping::map(hello.fds[1], sizeof(Ledger)));
  return connection;
}

Result<std::shared_ptr<Connection>> Connection::open_from_environment() {
  const char* path = std::getenv(kSocketEnv);
  if (path == nullptr)
    return Error(ErrorKind::kNotFound, std::string("simxen: ") + kSocketEnv + " is not set",
                 ENOENT);
  const char* domid = std::getenv(kDomidEnv);
  return open(path, domid == nullptr ? DomId{0} : static_cast<DomId>(std::atoi(domid)));
}

Result<ReplyWithFds> Connection::call(Op op, std::array<uint32_t, 5> arg) {
  const std::lock_guard lock(call_lock_);
  VBDKIT_TRY(send_request(socket_, Request{op, arg}));
  VBDKIT_ASSIGN(ReplyWithFds reply, receive_reply(socket_));
  if (reply.reply.error != 0)
    return Error::from_errno(reply.reply.error,
                             "simxen: operation " + std::to_string(static_cast<uint32_t>(op)));
  return reply;
}

Result<std::shared_ptr<Domain>> Connection::domain(DomId id) {
  const std::lock_guard lock(domains_lock_);
  auto& known = domains_[id];
  if (known != nullptr && !known->dying()) return known;
  VBDKIT_ASSIGN(ReplyWithFds reply, call(Op::kDomOpen, {id}));
  if (reply.fds.size() != 2) return Error(ErrorKind::kProtocol, "simxen: no domain memory came");
  VBDKIT_ASSIGN(Domain opened, Domain::map(id, std::move(reply.fds[0]), std::move(reply.fds[1])));
  known = std::make_shared<Domain>(std::move(opened));
  return known;
}

int Connection::handle_fd(uint32_t handle) {
  if (handle >= kMaxHandles) return -1;
  const int known = handle_fds_[handle].load(std::memory_order_acquire);
  if (known >= 0) return known;
  auto reply = call(Op::kEvtHandleFd, {handle});
  if (!reply || reply->fds.empty()) return -1;
  const std::lock_guard lock(owned_fds_lock_);
  // Another thread may have asked for the same; both descriptors then stay, and either works.
  owned_fds_.push_back(std::move(reply->fds[0]));
  handle_fds_[handle].store(owned_fds_.back().get(), std::memory_order_release);
  return owned_fds_.back().get();
}

void Connection::raise(EvtPort port) {
  ThreadSlot& slot = thread_slot();
  // Were this process killed between latching and telling, the broker would finish the delivery.
  slot.delivering.store(port);
  const uint32_t handle = latch_event(hub(), port);
  const int fd = handle == kNoHandle ? -1 : handle_fd(handle);
  if (fd >= 0) {
    const uint64_t one = 1;
    // Fails only where the peer closed meanwhile: then nobody waits for it.
    (void)!::write(fd, &one, sizeof one);
    counters().deliveries.fetch_add(1, std::memory_order_relaxed);
  }
  slot.delivering.store(0);
}

Result<uint32_t> Connection::take_record() {
  const std::lock_guard lock(records_lock_);
  if (!free_records_.empty()) {
    const uint32_t record = free_records_.back();
    free_records_.pop_back();
    return record;
  }
  const uint32_t record = ledger().maps_high.load();
  if (record == kMaxMappedGrants)
    return Error(ErrorKind::kNoSpace, "simxen: too many mapped grants", ENOMEM);
  ledger().maps_high.store(record + 1);
  return record;
}

void Connection::give_back_record(uint32_t record) {
  ledger().maps[record].store(make_record(kRecordFree, false, 0, 0));
  const std::lock_guard lock(records_lock_);
  free_records_.push_back(record);
}

ThreadSlot& Connection::thread_slot() {
  thread_local ThreadSlots slots;
  if (ThreadSlot* slot = slots.find(serial_)) return *slot;
  for (auto& slot : ledger().threads) {
    uint32_t free = 0;
    if (!slot.taken.compare_exchange_strong(free, 1)) continue;
    slots.add(serial_, weak_from_this(), &slot);
    return slot;
  }
  // More threads than slots: what the last slot records is then only as good as its last user.
  return ledger().threads.back();
}

}  // namespace vbdkit::sim
