// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The few calls of libxenctrl, libxenforeignmemory and libxendevicemodel that xenstored and QEMU
// make for a paravirtual disk; every other one is a generated stub that says ENOSYS.
#include <cerrno>
#include <cstring>

extern "C" {
#include <xenctrl.h>
#include <xendevicemodel.h>
#include <xenforeignmemory.h>
}

#include "tests/sim/lib_connection.h"

using vbdkit::sim::Op;

struct xc_interface_core {
  std::shared_ptr<vbdkit::sim::Connection> connection;
};
struct xenforeignmemory_handle {};
struct xendevicemodel_handle {};

SIMXEN_EXPORT xc_interface* xc_interface_open(xentoollog_logger*, xentoollog_logger*, unsigned) {
  auto connection = vbdkit::sim::process_connection();
  if (connection) return new xc_interface_core{*connection};
  errno = connection.error().sys_errno();
  return nullptr;
}

SIMXEN_EXPORT int xc_interface_close(xc_interface* xch) {
  delete xch;
  return 0;
}

SIMXEN_EXPORT int xc_domain_getinfo(xc_interface* xch, uint32_t first_domid, unsigned int max_doms,
                                    xc_dominfo_t* info) {
  unsigned int count = 0;
  while (count < max_doms) {
    auto reply = xch->connection->call(Op::kDomInfo, {first_domid});
    if (!reply) break;
    const auto& value = reply->reply.value;
    std::memset(&info[count], 0, sizeof info[count]);
    info[count].domid = value[0];
    info[count].dying = (value[1] & vbdkit::sim::kDomDying) != 0;
    info[count].shutdown = (value[1] & vbdkit::sim::kDomShutDown) != 0;
    info[count].shutdown_reason = value[2];
    info[count].crashed = info[count].shutdown && value[2] == SHUTDOWN_crash;
    info[count].nr_pages = value[3];
    first_domid = value[0] + 1;
    ++count;
  }
  if (count != 0 || max_doms == 0) return static_cast<int>(count);
  errno = ESRCH;
  return -1;
}

SIMXEN_EXPORT int xc_domain_destroy(xc_interface* xch, uint32_t domid) {
  auto reply = xch->connection->call(Op::kDomDestroy, {domid});
  if (reply) return 0;
  errno = reply.error().sys_errno();
  return -1;
}

SIMXEN_EXPORT int xc_domain_shutdown(xc_interface* xch, uint32_t domid, int reason) {
  auto reply = xch->connection->call(Op::kDomShutdown, {domid, static_cast<uint32_t>(reason)});
  if (reply) return 0;
  errno = reply.error().sys_errno();
  return -1;
}

SIMXEN_EXPORT int xc_evtchn_status(xc_interface* xch, xc_evtchn_status_t* status) {
  auto reply = xch->connection->call(Op::kEvtStatus, {status->dom, status->port});
  if (!reply) {
    errno = reply.error().sys_errno();
    return -1;
  }
  const auto& value = reply->reply.value;
  status->status = value[0];
  if (value[0] == EVTCHNSTAT_unbound)
    status->u.unbound.dom = static_cast<domid_t>(value[1]);
  else if (value[0] == EVTCHNSTAT_interdomain)
    status->u.interdomain = {static_cast<domid_t>(value[1]), value[2]};
  else if (value[0] == EVTCHNSTAT_virq)
    status->u.virq = value[1];
  return 0;
}

SIMXEN_EXPORT xenforeignmemory_handle* xenforeignmemory_open(xentoollog_logger*, unsigned) {
  return new xenforeignmemory_handle;
}

SIMXEN_EXPORT int xenforeignmemory_close(xenforeignmemory_handle* handle) {
  delete handle;
  return 0;
}

SIMXEN_EXPORT xendevicemodel_handle* xendevicemodel_open(xentoollog_logger*, unsigned) {
  return new xendevicemodel_handle;
}

SIMXEN_EXPORT int xendevicemodel_close(xendevicemodel_handle* handle) {
  delete handle;
  return 0;
}
