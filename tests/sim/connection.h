// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A domain's way to the simulated hypervisor: one Connection per process, or per simulated guest;
// EventChannels and GrantMapper work through it and keep it alive. Opening and binding ask the
// broker; the data path works on shared memory. Thread-safe throughout, as a kernel's devices are.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "tests/sim/grant_table.h"
#include "tests/sim/layout.h"
#include "tests/sim/memory.h"
#include "tests/sim/socket.h"

namespace vbdkit::sim {

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  static Result<std::shared_ptr<Connection>> open(const std::string& socket_path, DomId domid);
  // From SIMXEN_SOCKET and SIMXEN_DOMID.
  static Result<std::shared_ptr<Connection>> open_from_environment();

  DomId domid() const { return domid_; }
  // One question to the broker; a refusal is an Error with Xen's errno.
  Result<ReplyWithFds> call(Op op, std::array<uint32_t, 5> arg = {});

  Hub& hub() const { return *hub_.as<Hub>(); }
  Ledger& ledger() const { return *ledger_.as<Ledger>(); }
  Counters& counters() const { return ledger().counters; }

  // The domain that has this id now.
  Result<std::shared_ptr<Domain>> domain(DomId id);

  // Makes an event pending on `port` and tells its owner unless the port is masked.
  void raise(EvtPort port);

  // A free place in ledger().maps, or an error once kMaxMappedGrants are taken.
  Result<uint32_t> take_record();
  void give_back_record(uint32_t record);

  // The calling thread's place in the ledger.
  ThreadSlot& thread_slot();

 private:
  Connection(Fd socket, DomId domid);
  int handle_fd(uint32_t handle);

  const uint64_t serial_;  // tells thread_slot() this connection from one that had its address
  Fd socket_;
  DomId domid_;
  Mapping hub_;
  Mapping ledger_;
  std::mutex call_lock_;  // one request at a time on socket_
  std::mutex domains_lock_;
  std::unordered_map<DomId, std::shared_ptr<Domain>> domains_;  // guarded by domains_lock_
  std::mutex records_lock_;
  std::vector<uint32_t> free_records_;  // guarded by records_lock_
  // Handle numbers are never used twice, so what is cached stays right. -1: not asked yet.
  std::array<std::atomic<int>, kMaxHandles> handle_fds_;
  std::mutex owned_fds_lock_;
  std::vector<Fd> owned_fds_;  // guarded by owned_fds_lock_
};

}  // namespace vbdkit::sim
