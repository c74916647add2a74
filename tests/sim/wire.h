// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What a process asks of the broker, over a SOCK_SEQPACKET unix socket: one Request, one Reply, in
// order; descriptors ride on the reply. Only opening, binding and life-cycle go this way, never a
// notify, a map or a copy. Closing the socket gives back everything its process held.
#pragma once

#include <array>
#include <cstdint>

namespace vbdkit::sim {

inline constexpr char kSocketEnv[] = "SIMXEN_SOCKET";
inline constexpr char kDomidEnv[] = "SIMXEN_DOMID";  // the domain a process runs in; default 0

enum class Op : uint32_t {
  kHello,            // domid -> fds: hub, ledger
  kEvtOpen,          // -> handle; fd: eventfd
  kEvtClose,         // handle
  kEvtBindUnbound,   // handle, remote domid, local domid (kSelf: own) -> port, slot
  kEvtBindRemote,    // handle, remote domid, remote port -> port, slot
  kEvtBindVirq,      // handle, virq -> port, slot
  kEvtUnbind,        // handle, port
  kEvtStatus,        // domid, port -> EVTCHNSTAT_*, remote domid, remote port
  kEvtHandleFd,      // handle -> fd: its eventfd, for one who notifies it
  kEvtPeerPid,       // port -> pid of the process that has the other end
  kDomCreate,        // domid (0: next free), pages, grant entries -> domid
  kDomOpen,          // domid -> uid, pages, entries; fds: memory, grant table
  kDomDestroy,       // domid
  kDomShutdown,      // domid, SHUTDOWN_* reason
  kDomInfo,          // first domid -> domid, DomFlag bits, shutdown reason, pages
  kRaiseVirq,        // virq
  kUnmapNotify,      // domain uid, ref, byte offset, local port (each ~0: none) -> cookie
  kUnmapNotifyFire,  // cookie
  kGrantsPinned,     // domid (kAny: all, the dead too), first ref to count -> pins
  kPortsOpen,        // domid (kAny) -> count
  kPeerNext,         // first connection id -> id, pid, ports open, grants held; fd: ledger
};

inline constexpr uint32_t kNone = 0xffffffff;
inline constexpr uint32_t kAny = 0xffffffff;

enum DomFlag : uint32_t { kDomDying = 1, kDomShutDown = 2 };

struct Request {
  Op op = Op::kHello;
  std::array<uint32_t, 5> arg{};
};

struct Reply {
  int32_t error = 0;  // an errno
  std::array<uint32_t, 5> value{};
};

inline constexpr unsigned kMaxReplyFds = 2;

}  // namespace vbdkit::sim
