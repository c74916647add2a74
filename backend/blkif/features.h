// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The backend's nodes in xenstore: what we offer a frontend, and the properties of the disk
// (xen/io/blkif.h, "Backend XenBus Nodes").
//
// Whoever answers a new device with InitWait must have published everything a frontend may read
// there: some read it at InitWait, some at Connected. Used by the VBD and by the daemon that
// answers in its place before an instance exists.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "backend/blkif/abi.h"
#include "backend/xen/xenstore.h"
#include "base/result.h"
#include "drivers/node.h"

namespace vbdkit::blkif {

// What a frontend may ask for.
struct Limits {
  unsigned ring_page_order = kMaxRingPageOrder;
  unsigned queues = 4;
  unsigned indirect_segments = kMaxIndirectSegments;  // 0: none
  bool persistent_grants = true;
};

// What the disk is.
struct DiskProperties {
  drivers::NodeInfo node;
  bool read_only = false;
  bool cdrom = false;
  bool removable = false;
  bool discard = true;  // "discard-enable" of the toolstack
};

bool offers_discard(const DiskProperties& disk);

// Writes the nodes that say how a frontend may connect.
[[gnu::cold]] Result<void> publish_limits(const xen::StoreView& store, const std::string& backend,
                                          const Limits& limits);
// As published before, by whomever; a missing node stands for its default. Never more than `ours`.
[[gnu::cold]] Result<Limits> read_limits(const xen::StoreView& store, const std::string& backend,
                                         const Limits& ours);
// Size, sector sizes, flags, flush, barrier, discard: nodes of the backend's directory.
using PropertyNodes = std::vector<std::pair<const char*, uint64_t>>;
PropertyNodes property_nodes(const DiskProperties& disk);
// Writes those that are not among `published` already: each costs a trip to xenstored.
[[gnu::cold]] Result<void> publish_properties(const xen::StoreView& store,
                                              const std::string& backend,
                                              const PropertyNodes& nodes,
                                              const PropertyNodes& published);

}  // namespace vbdkit::blkif
