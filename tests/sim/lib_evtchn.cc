// SPDX-License-Identifier: LGPL-2.1-or-later
//
// libxenevtchn's calls (<xenevtchn.h>) on the simulated Xen.
#include <fcntl.h>

#include <cerrno>
#include <cstdio>

extern "C" {
#include <xenevtchn.h>
}

#include "tests/sim/event_channels.h"
#include "tests/sim/lib_connection.h"

using vbdkit::Result;
using vbdkit::sim::DomId;
using vbdkit::sim::EventChannels;
using vbdkit::sim::EvtPort;

struct xenevtchn_handle {
  std::unique_ptr<EventChannels> channels;
};

namespace {

int as_return(int error) {
  if (error == 0) return 0;
  errno = error;
  return -1;
}

int as_return(const Result<EvtPort>& port) {
  return port ? static_cast<int>(*port) : as_return(port.error().sys_errno());
}

}  // namespace

SIMXEN_EXPORT xenevtchn_handle* xenevtchn_open(xentoollog_logger*, unsigned int flags) {
  auto connection = vbdkit::sim::process_connection();
  auto channels = connection ? EventChannels::open(*connection)
                             : Result<std::unique_ptr<EventChannels>>(connection.error());
  if (!channels) {
    std::fprintf(stderr, "xenevtchn_open: %s\n", channels.error().message().c_str());
    errno = channels.error().sys_errno();
    return nullptr;
  }
  if ((flags & XENEVTCHN_NO_CLOEXEC) != 0) ::fcntl((*channels)->fd(), F_SETFD, 0);
  return new xenevtchn_handle{std::move(*channels)};
}

SIMXEN_EXPORT int xenevtchn_close(xenevtchn_handle* handle) {
  delete handle;
  return 0;
}

SIMXEN_EXPORT int xenevtchn_fd(xenevtchn_handle* handle) { return handle->channels->fd(); }

SIMXEN_EXPORT int xenevtchn_notify(xenevtchn_handle* handle, evtchn_port_t port) {
  return as_return(handle->channels->notify(port));
}

SIMXEN_EXPORT xenevtchn_port_or_error_t xenevtchn_bind_unbound_port(xenevtchn_handle* handle,
                                                                    uint32_t domid) {
  return as_return(handle->channels->bind_unbound(static_cast<DomId>(domid)));
}

SIMXEN_EXPORT xenevtchn_port_or_error_t xenevtchn_bind_interdomain(xenevtchn_handle* handle,
                                                                   uint32_t domid,
                                                                   evtchn_port_t remote_port) {
  return as_return(handle->channels->bind_interdomain(static_cast<DomId>(domid), remote_port));
}

SIMXEN_EXPORT xenevtchn_port_or_error_t xenevtchn_bind_virq(xenevtchn_handle* handle,
                                                            unsigned int virq) {
  return as_return(handle->channels->bind_virq(virq));
}

SIMXEN_EXPORT int xenevtchn_unbind(xenevtchn_handle* handle, evtchn_port_t port) {
  const auto result = handle->channels->unbind(port);
  return as_return(result ? 0 : result.error().sys_errno());
}

SIMXEN_EXPORT xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle* handle) {
  const auto pending = handle->channels->pending();
  return pending.error == 0 ? static_cast<int>(pending.port) : as_return(pending.error);
}

SIMXEN_EXPORT int xenevtchn_unmask(xenevtchn_handle* handle, evtchn_port_t port) {
  return as_return(handle->channels->unmask(port));
}
