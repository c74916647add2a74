// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Xen's C headers, which neither declare C linkage nor agree on an interface version unless told:
// include them through here only. __XEN_TOOLS__ selects the version the headers were released with.
#pragma once

#include <cstdarg>
#include <cstddef>
#include <cstdint>

#ifndef __XEN_TOOLS__
#define __XEN_TOOLS__ 1
#endif

extern "C" {
#include <xen/grant_table.h>
#include <xen/io/blkif.h>
#include <xen/io/protocols.h>
#include <xen/io/xenbus.h>
#include <xenevtchn.h>
#include <xengnttab.h>
#include <xenstore.h>
#include <xentoollog.h>
}

namespace vbdkit::xen {

using DomId = uint16_t;

// The unit of grants and rings, whatever the page size of the machine is (xen/io/ring.h).
inline constexpr size_t kPageSize = 4096;

}  // namespace vbdkit::xen
