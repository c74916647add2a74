// SPDX-License-Identifier: LGPL-2.1-or-later
//
// EventChannels: the event-channel device of one reactor, and EventPort: one port bound to a guest.
//
// Thread: the reactor's. A port is delivered masked; it is unmasked only when its handler has
// returned, so that a guest cannot make us run more often than we finish (XSA-332). A port number
// may come back for another guest while an old event is still queued (XSA-331): such an event runs
// the new handler once for nothing, and one whose port is unbound is dropped.
#pragma once

#include <functional>
#include <memory>
#include <unordered_map>
#include <utility>

#include "backend/xen/headers.h"
#include "base/log.h"
#include "base/result.h"
#include "io/reactor.h"

namespace vbdkit::xen {

class EventChannels;

// Unbinds on destruction, also from inside of its handler. Must not outlive its EventChannels.
class EventPort {
 public:
  EventPort() = default;
  EventPort(EventPort&& o) noexcept
      : owner_(std::exchange(o.owner_, nullptr)), port_(std::exchange(o.port_, 0)) {}
  EventPort& operator=(EventPort&& o) noexcept {
    if (this != &o) {
      reset();
      owner_ = std::exchange(o.owner_, nullptr);
      port_ = std::exchange(o.port_, 0);
    }
    return *this;
  }
  EventPort(const EventPort&) = delete;
  EventPort& operator=(const EventPort&) = delete;
  ~EventPort() { reset(); }

  bool bound() const { return owner_ != nullptr; }
  evtchn_port_t number() const { return port_; }
  Result<void> notify() const;
  void reset();

 private:
  friend class EventChannels;
  EventPort(EventChannels* owner, evtchn_port_t port) : owner_(owner), port_(port) {}

  EventChannels* owner_ = nullptr;
  evtchn_port_t port_ = 0;
};

class EventChannels {
 public:
  [[gnu::cold]] static Result<std::unique_ptr<EventChannels>> open(io::Reactor& reactor,
                                                                   const Logger& log);
  ~EventChannels();
  EventChannels(const EventChannels&) = delete;
  EventChannels& operator=(const EventChannels&) = delete;

  // `handler` runs for each event. Binding raises one by itself: a guest may have notified before.
  [[gnu::cold]] Result<EventPort> bind_interdomain(DomId remote, evtchn_port_t remote_port,
                                                   std::function<void()> handler);

 private:
  friend class EventPort;
  struct Bound {
    uint64_t generation;
    std::shared_ptr<std::function<void()>> handler;
  };

  EventChannels(io::Reactor& reactor, const Logger& log, xenevtchn_handle* handle);
  void dispatch();
  void unbind(evtchn_port_t port);

  const Logger& log_;
  xenevtchn_handle* handle_;
  uint64_t next_generation_ = 0;
  std::unordered_map<evtchn_port_t, Bound> ports_;
  RateLimit limit_;
  std::unique_ptr<io::FdWatch> readable_;
};

}  // namespace vbdkit::xen
