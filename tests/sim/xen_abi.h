// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Xen's own interface headers (libxen-dev), made fit for C++: they have no extern "C", and refuse
// some structures to those who do not say which interface version they were written for.
#pragma once

#ifndef __XEN_INTERFACE_VERSION__
#define __XEN_INTERFACE_VERSION__ 0x00040e00
#endif

extern "C" {
#include <xen/xen.h>

#include <xen/event_channel.h>
#include <xen/grant_table.h>
#include <xen/io/blkif.h>
#include <xen/io/protocols.h>
#include <xen/io/xenbus.h>
#include <xen/io/xs_wire.h>
#include <xen/sched.h>
}
