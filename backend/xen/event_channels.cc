// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/xen/event_channels.h"

#include <cstring>
#include <string>

namespace vbdkit::xen {

Result<void> EventPort::notify() const {
  if (xenevtchn_notify(owner_->handle_, port_) != 0)
    return Error::from_errno(errno, "event channel: notify port " + std::to_string(port_));
  return {};
}

void EventPort::reset() {
  if (EventChannels* owner = std::exchange(owner_, nullptr)) owner->unbind(port_);
}

Result<std::unique_ptr<EventChannels>> EventChannels::open(io::Reactor& reactor,
                                                           const Logger& log) {
  xenevtchn_handle* handle = xenevtchn_open(nullptr, 0);
  if (!handle) return Error::from_errno(errno, "event channel: open the device");
  return std::unique_ptr<EventChannels>(new EventChannels(reactor, log, handle));
}

EventChannels::EventChannels(io::Reactor& reactor, const Logger& log, xenevtchn_handle* handle)
    : log_(log),
      handle_(handle),
      readable_(reactor.watch(xenevtchn_fd(handle), [this] { dispatch(); })) {}

EventChannels::~EventChannels() {
  readable_.reset();
  xenevtchn_close(handle_);
}

Result<EventPort> EventChannels::bind_interdomain(DomId remote, evtchn_port_t remote_port,
                                                  std::function<void()> handler) {
  int port = xenevtchn_bind_interdomain(handle_, remote, remote_port);
  if (port < 0)
    return Error::from_errno(errno, "event channel: bind port " + std::to_string(remote_port) +
                                        " of domain " + std::to_string(remote));
  auto local = static_cast<evtchn_port_t>(port);
  ports_[local] = {next_generation_++, std::make_shared<std::function<void()>>(std::move(handler))};
  return EventPort(this, local);
}

void EventChannels::unbind(evtchn_port_t port) {
  ports_.erase(port);
  if (xenevtchn_unbind(handle_, port) != 0)
    log_.limited(limit_, LogLevel::kWarning, "event channel: unbind port %u: %s", port,
                 strerror(errno));
}

// The device blocks when nothing is pending, whatever its flags say (xenevtchn.h), so one event is
// taken each time it is readable.
void EventChannels::dispatch() {
  int pending = xenevtchn_pending(handle_);
  if (pending < 0) {
    if (errno != EAGAIN && errno != EINTR)
      log_.limited(limit_, LogLevel::kError, "event channel: read a pending port: %s",
                   strerror(errno));
    return;
  }
  auto port = static_cast<evtchn_port_t>(pending);
  auto it = ports_.find(port);
  if (it == ports_.end()) return;
  uint64_t generation = it->second.generation;
  auto handler = it->second.handler;  // outlives the binding, should it be ended inside
  (*handler)();
  it = ports_.find(port);
  if (it == ports_.end() || it->second.generation != generation) return;
  if (xenevtchn_unmask(handle_, port) != 0)
    log_.limited(limit_, LogLevel::kError, "event channel: unmask port %u: %s", port,
                 strerror(errno));
}

}  // namespace vbdkit::xen
