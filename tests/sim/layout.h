// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Memory that the processes of one simulated Xen share, and which therefore works without asking
// the broker: the event-channel ports (Hub), a domain's grant table (GrantTable) and what one
// process holds (Ledger). The broker creates each of them as a memfd and hands it out; any thread
// of any process may touch them, so every field that changes is atomic. The grant entries are those
// of <xen/grant_table.h> version 1, the domain's own words for Xen to read.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace vbdkit::sim {

using DomId = uint16_t;
using GrantRef = uint32_t;
using EvtPort = uint32_t;
using Gfn = uint32_t;

inline constexpr size_t kPageSize = 4096;

// ---- event channels ----

inline constexpr uint32_t kMaxPorts = 16384;
inline constexpr uint32_t kMaxHandles = 16384;
inline constexpr uint32_t kPortsPerHandle = 4096;

// A port is delivered masked, and stays so until its owner unmasks it; what arrives in between is
// remembered in one bit, as the Linux evtchn device does it.
inline constexpr uint32_t kPortPending = 1;
inline constexpr uint32_t kPortMasked = 2;

struct Port {
  std::atomic<uint32_t> latch;   // kPortPending | kPortMasked
  std::atomic<uint32_t> peer;    // the port at the other end; 0: none, so a notify is dropped
  std::atomic<uint32_t> handle;  // who is told
  std::atomic<uint32_t> slot;    // which bit of that handle
};

// One opened event-channel handle. Its eventfd counts (EFD_SEMAPHORE) the bits set here.
struct Handle {
  std::array<std::atomic<uint64_t>, kPortsPerHandle / 64> ready;
};

struct Hub {
  std::array<Port, kMaxPorts> ports;
  std::array<Handle, kMaxHandles> handles;
};

inline constexpr uint32_t kNoHandle = 0xffffffff;

// Makes an event pending on a port. Returns the handle whose eventfd must now be counted up, or
// kNoHandle: the port is masked, or nobody has it.
inline uint32_t latch_event(Hub& hub, EvtPort number) {
  Port& port = hub.ports[number];
  uint32_t latch = port.latch.load();
  do {
    if (latch == (kPortMasked | kPortPending)) return kNoHandle;
  } while (!port.latch.compare_exchange_weak(
      latch, (latch & kPortMasked) != 0 ? latch | kPortPending : kPortMasked));
  if ((latch & kPortMasked) != 0) return kNoHandle;
  const uint32_t handle = port.handle.load();
  const uint32_t slot = port.slot.load();
  if (handle >= kMaxHandles || slot >= kPortsPerHandle) return kNoHandle;
  const uint64_t mask = uint64_t{1} << (slot % 64);
  // The bit still stands where the owner unmasked before it took the event: it is queued already.
  const bool queued = (hub.handles[handle].ready[slot / 64].fetch_or(mask) & mask) != 0;
  return queued ? kNoHandle : handle;
}

// ---- grants ----

// The head of a domain's grant-table memory: `entries` v1 entries (8 bytes each) follow at
// kGrantEntriesOffset, and behind them one pin word per entry.
struct GrantTable {
  std::atomic<uint32_t> dying;  // set once; the domain answers no new map or copy
  uint32_t uid;                 // never used again, unlike the domid
  uint32_t entries;
  uint32_t pages;
};
inline constexpr size_t kGrantEntriesOffset = kPageSize;

// A pin word: mappings and copies in progress, readers in the low half, writers in the high half.
inline constexpr uint32_t kPinReader = 1;
inline constexpr uint32_t kPinWriter = 1U << 16;

// ---- what a process holds ----

inline constexpr uint32_t kMaxMappedGrants = 65536;  // gntdev's own default limit
inline constexpr uint32_t kMaxThreads = 256;

// One pinned grant: | state:2 | writable:1 | domain uid:29 | ref:32 |. It is written before the pin
// and cleared after, so that the broker can give back what a killed process held.
using GrantRecord = uint64_t;
inline constexpr uint64_t kRecordFree = 0;
inline constexpr uint64_t kRecordPinning = 1;  // the pin may or may not have happened
inline constexpr uint64_t kRecordHeld = 2;

constexpr GrantRecord make_record(uint64_t state, bool writable, uint32_t uid, GrantRef ref) {
  return state << 62 | uint64_t{writable} << 61 | uint64_t{uid & 0x1fffffff} << 32 | ref;
}
constexpr uint64_t record_state(GrantRecord r) { return r >> 62; }
constexpr bool record_writable(GrantRecord r) { return (r >> 61 & 1) != 0; }
constexpr uint32_t record_uid(GrantRecord r) { return static_cast<uint32_t>(r >> 32) & 0x1fffffff; }
constexpr GrantRef record_ref(GrantRecord r) { return static_cast<GrantRef>(r); }

// What this process asked of Xen. On real Xen each *_calls, notify, pending and unmask is at least
// one system call; here most need none, so tests count these instead.
struct Counters {
  std::atomic<uint64_t> map_calls, maps, map_failures;
  std::atomic<uint64_t> unmap_calls, unmaps;
  std::atomic<uint64_t> copy_calls, copies, copy_bytes, copy_failures;
  std::atomic<uint64_t> notifies, deliveries;  // deliveries: notifies that woke somebody
  std::atomic<uint64_t> pendings, unmasks;
};

struct ThreadSlot {
  std::atomic<uint32_t> taken;
  std::atomic<uint32_t> delivering;     // port whose event is on its way
  std::atomic<GrantRecord> copying[2];  // source and destination of the copy in progress
};

struct Ledger {
  Counters counters;
  std::array<ThreadSlot, kMaxThreads> threads;
  std::atomic<uint32_t> maps_high;  // records at and above are unused
  std::array<std::atomic<GrantRecord>, kMaxMappedGrants> maps;
};

static_assert(std::atomic<uint64_t>::is_always_lock_free);

}  // namespace vbdkit::sim
