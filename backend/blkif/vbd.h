// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Vbd: one virtual disk of one guest, as xenbus knows it: the two directories in xenstore, the
// state machine between them (xen/io/blkif.h "STATE DIAGRAMS"; reconnect, kexec and detach as
// Linux' frontends walk them), and the queues while it is connected.
//
// Thread: its reactor's. Owner: the instance; callbacks run from the reactor's loop and may not
// destroy the Vbd themselves (post() it). The guest writes its own directory as it likes: only its
// `state` is watched, paths and domain id come from our own nodes, and every change of state first
// looks where both sides stand now, so that missed or repeated steps do no harm (XSA-350, XSA-175).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backend/blkif/features.h"
#include "backend/blkif/queue.h"
#include "backend/blkif/stats.h"
#include "backend/xen/xenstore.h"
#include "base/log.h"
#include "base/result.h"

namespace vbdkit::blkif {

// How guest pages are reached. Mapping per request takes four system calls (and on real Xen a TLB
// flush) for each: measured, four times the CPU time of a copy, which a whole batch does with one.
enum class GrantPolicy {
  kAuto,        // persistent where the guest offers it, else copy
  kPersistent,  // as kAuto, but map per request where the guest does not offer it
  kMap,         // map and unmap per request
  kCopy,        // copy through our own buffers
};
[[gnu::cold]] Result<GrantPolicy> parse_grant_policy(
    std::string_view name);  // "auto", "persistent", "map", "copy"

struct VbdContext {
  xen::XenStore& store;
  // Where queues live: queue i on hosts[i % hosts.size()]. The first is the Vbd's own.
  std::vector<QueueHost> hosts;
  const Logger& log;
  Limits limits;
  GrantPolicy policy = GrantPolicy::kAuto;
  bool read_only = false;  // the image was opened so; the VBD's own "mode" adds to it
  // Directory for xentop's file, "/dev/shm" on a real system; empty: none.
  std::string xentop_dir;
};

struct VbdCallbacks {
  // The backend's state was written.
  std::function<void(XenbusState)> on_state;
  // The frontend can start to send requests, or has stopped (all its requests are done).
  std::function<void(bool connected)> on_connected;
  // Closed for good: detached by the toolstack (online=0), or its directory is gone. Nothing is
  // mapped, nothing is in flight. Called once.
  std::function<void()> on_gone;
};

class Vbd {
 public:
  // `backend` is absolute: "/local/domain/0/backend/vbd/1/51712". Reads the identity of the device.
  [[gnu::cold]] static Result<std::unique_ptr<Vbd>> create(VbdContext context,
                                                           const std::string& backend,
                                                           VbdCallbacks callbacks);
  virtual ~Vbd() = default;  // only when gone or after shutdown() called back

  // Publishes everything and answers InitWait, then follows the frontend. Where another (the
  // daemon, the kernel's blkback) has answered already, its limits are kept.
  virtual Result<void> start() = 0;

  // Asks the frontend to close, as a toolstack does; on_gone does not follow while online=1.
  virtual void close() = 0;
  // Lets go of the guest without telling it: finishes requests in flight, unmaps everything; the
  // state nodes stay as they are. For a successor, or when the process ends.
  virtual void shutdown(std::function<void()> done) = 0;

  // Takes no new requests; `drained` is called when none is in flight. The guest only waits.
  virtual void pause(std::function<void()> drained) = 0;
  virtual void resume() = 0;

  // The disk's size has changed: tells the guest.
  virtual void resized() = 0;

  virtual const std::string& backend_path() const = 0;
  virtual xen::DomId domid() const = 0;
  virtual const std::string& device_id() const = 0;  // "51712"
  virtual XenbusState state() const = 0;             // ours
  virtual bool connected() const = 0;
  virtual Stats stats() const = 0;

 protected:
  Vbd() = default;
  Vbd(const Vbd&) = delete;
  Vbd& operator=(const Vbd&) = delete;
};

}  // namespace vbdkit::blkif
