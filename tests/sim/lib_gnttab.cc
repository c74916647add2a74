// SPDX-License-Identifier: LGPL-2.1-or-later
//
// libxengnttab's calls (<xengnttab.h>) on the simulated Xen. Copies follow gntdev: an argument that
// the kernel would refuse fails the call with EINVAL, what Xen refuses is a segment's status.
#include <cerrno>
#include <cstdio>

extern "C" {
#include <xengnttab.h>
}

#include "tests/sim/grant_mapper.h"
#include "tests/sim/lib_connection.h"

using vbdkit::sim::DomId;
using vbdkit::sim::GrantMapper;
using vbdkit::sim::UnmapNotify;

struct xengntdev_handle {
  std::shared_ptr<vbdkit::sim::Connection> connection;
  GrantMapper mapper;
};

namespace {

void* map(xengnttab_handle* handle, const std::vector<GrantMapper::Grant>& grants, int prot,
          UnmapNotify notify = {}) {
  auto start = handle->mapper.map(grants, prot, notify);
  if (start) return *start;
  errno = start.error().sys_errno();
  return nullptr;
}

bool crosses_page(const xengnttab_grant_copy_segment_t& segment) {
  const auto crosses = [&](uint32_t offset) {
    return offset + segment.len > vbdkit::sim::kPageSize;
  };
  return ((segment.flags & GNTCOPY_source_gref) != 0 && crosses(segment.source.foreign.offset)) ||
         ((segment.flags & GNTCOPY_dest_gref) != 0 && crosses(segment.dest.foreign.offset));
}

GrantMapper::CopySide side(const xengnttab_grant_copy_segment::xengnttab_copy_ptr& ptr,
                           bool foreign) {
  if (!foreign) return {false, ptr.virt, {}, 0};
  return {true, nullptr, {ptr.foreign.domid, ptr.foreign.ref}, ptr.foreign.offset};
}

}  // namespace

SIMXEN_EXPORT xengnttab_handle* xengnttab_open(xentoollog_logger*, unsigned) {
  auto connection = vbdkit::sim::process_connection();
  if (!connection) {
    std::fprintf(stderr, "xengnttab_open: %s\n", connection.error().message().c_str());
    errno = connection.error().sys_errno();
    return nullptr;
  }
  return new xengntdev_handle{*connection, GrantMapper(*connection)};
}

SIMXEN_EXPORT int xengnttab_close(xengnttab_handle* handle) {
  delete handle;
  return 0;
}

SIMXEN_EXPORT int xengnttab_set_max_grants(xengnttab_handle*, uint32_t) { return 0; }

SIMXEN_EXPORT void* xengnttab_map_grant_refs(xengnttab_handle* handle, uint32_t count,
                                             uint32_t* domids, uint32_t* refs, int prot) {
  std::vector<GrantMapper::Grant> grants;
  for (uint32_t i = 0; i < count; ++i) grants.push_back({static_cast<DomId>(domids[i]), refs[i]});
  return map(handle, grants, prot);
}

SIMXEN_EXPORT void* xengnttab_map_domain_grant_refs(xengnttab_handle* handle, uint32_t count,
                                                    uint32_t domid, uint32_t* refs, int prot) {
  std::vector<GrantMapper::Grant> grants;
  for (uint32_t i = 0; i < count; ++i) grants.push_back({static_cast<DomId>(domid), refs[i]});
  return map(handle, grants, prot);
}

SIMXEN_EXPORT void* xengnttab_map_grant_ref(xengnttab_handle* handle, uint32_t domid, uint32_t ref,
                                            int prot) {
  return map(handle, {{static_cast<DomId>(domid), ref}}, prot);
}

SIMXEN_EXPORT void* xengnttab_map_grant_ref_notify(xengnttab_handle* handle, uint32_t domid,
                                                   uint32_t ref, int prot, uint32_t notify_offset,
                                                   evtchn_port_t notify_port) {
  return map(handle, {{static_cast<DomId>(domid), ref}}, prot, {notify_offset, notify_port});
}

SIMXEN_EXPORT int xengnttab_unmap(xengnttab_handle* handle, void* start, uint32_t count) {
  const int error = handle->mapper.unmap(start, count);
  if (error == 0) return 0;
  errno = error;
  return -1;
}

SIMXEN_EXPORT int xengnttab_grant_copy(xengnttab_handle* handle, uint32_t count,
                                       xengnttab_grant_copy_segment_t* segments) {
  auto& counters = handle->connection->counters();
  counters.copy_calls.fetch_add(1, std::memory_order_relaxed);
  uint64_t bytes = 0;
  uint64_t failures = 0;
  for (uint32_t i = 0; i < count; ++i) {
    auto& segment = segments[i];
    const bool from_grant = (segment.flags & GNTCOPY_source_gref) != 0;
    const bool to_grant = (segment.flags & GNTCOPY_dest_gref) != 0;
    if ((!from_grant && !to_grant) || crosses_page(segment)) {
      errno = EINVAL;
      return -1;
    }
    segment.status = handle->mapper.copy(side(segment.source, from_grant),
                                         side(segment.dest, to_grant), segment.len);
    (segment.status == GNTST_okay ? bytes : failures) +=
        segment.status == GNTST_okay ? segment.len : 1;
  }
  counters.copies.fetch_add(count, std::memory_order_relaxed);
  counters.copy_bytes.fetch_add(bytes, std::memory_order_relaxed);
  if (failures != 0) counters.copy_failures.fetch_add(failures, std::memory_order_relaxed);
  return 0;
}
