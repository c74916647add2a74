// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/blkif/features.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "base/units.h"

namespace vbdkit::blkif {
namespace {

// A node of the backend's directory, where `fallback` stands in for one that is absent.
Result<unsigned> read_unsigned(const xen::StoreView& store, const std::string& path,
                               unsigned fallback) {
  VBDKIT_ASSIGN(auto text, store.find(path));
  if (!text) return fallback;
  unsigned value = 0;
  const char* end = text->data() + text->size();
  auto [stop, error] = std::from_chars(text->data(), end, value);
  if (error != std::errc() || stop != end)
    return Error(ErrorKind::kProtocol, "blkif: " + path + ": not a number: " + *text);
  return value;
}

}  // namespace

Result<void> publish_limits(const xen::StoreView& store, const std::string& backend,
                            const Limits& limits) {
  const auto put = [&](const char* node, unsigned value) {
    return store.write(backend + "/" + node, std::to_string(value));
  };
  VBDKIT_TRY(put("max-ring-page-order", limits.ring_page_order));
  VBDKIT_TRY(put("multi-queue-max-queues", limits.queues));
  // A backend that takes no indirect requests must not have the node at all.
  if (limits.indirect_segments > 0)
    VBDKIT_TRY(put("feature-max-indirect-segments", limits.indirect_segments));
  else
    VBDKIT_TRY(store.remove(backend + "/feature-max-indirect-segments"));
  return put("feature-persistent", limits.persistent_grants ? 1 : 0);
}

Result<Limits> read_limits(const xen::StoreView& store, const std::string& backend,
                           const Limits& ours) {
  Limits l = ours;
  // A frontend may have read these two already, and their absence as well.
  VBDKIT_ASSIGN(unsigned order, read_unsigned(store, backend + "/max-ring-page-order", 0));
  VBDKIT_ASSIGN(unsigned queues, read_unsigned(store, backend + "/multi-queue-max-queues", 1));
  // These are read when we are connected.
  VBDKIT_ASSIGN(unsigned segments, read_unsigned(store, backend + "/feature-max-indirect-segments",
                                                 ours.indirect_segments));
  l.ring_page_order = std::min(order, ours.ring_page_order);
  l.queues = std::max(1u, std::min(queues, ours.queues));
  l.indirect_segments = std::min(segments, ours.indirect_segments);
  return l;
}

PropertyNodes property_nodes(const DiskProperties& disk) {
  const drivers::NodeInfo& n = disk.node;
  const uint64_t bytes = align_down(n.size.v, n.logical_block);
  // The whole must be a multiple of what is called the physical sector.
  const uint32_t physical = bytes % n.physical_block == 0 ? n.physical_block : n.logical_block;
  const unsigned info = (disk.cdrom ? VDISK_CDROM : 0u) | (disk.removable ? VDISK_REMOVABLE : 0u) |
                        (disk.read_only ? VDISK_READONLY : 0u);
  const bool discard = offers_discard(disk);
  PropertyNodes nodes = {
      {"sectors", bytes / kSectorSize},  // of 512 bytes whatever sector-size says
      {"sector-size", n.logical_block},
      {"physical-sector-size", physical},
      {"info", info},
      {"feature-flush-cache", 1},
      {"feature-barrier", 1},
      {"feature-discard", discard ? 1 : 0},
  };
  if (discard) {
    nodes.emplace_back("discard-granularity", std::max(n.discard_granularity, n.logical_block));
    nodes.emplace_back("discard-alignment", 0);
    nodes.emplace_back("discard-secure", 0);
  }
  return nodes;
}

Result<void> publish_properties(const xen::StoreView& store, const std::string& backend,
                                const PropertyNodes& nodes, const PropertyNodes& published) {
  for (const auto& [name, value] : nodes) {
    const auto same = [&](const auto& p) {
      return p.second == value && name == std::string_view(p.first);
    };
    if (std::ranges::any_of(published, same)) continue;
    VBDKIT_TRY(store.write(backend + "/" + name, std::to_string(value)));
  }
  return {};
}

bool offers_discard(const DiskProperties& disk) {
  return disk.discard && disk.node.can_discard && !disk.read_only;
}

}  // namespace vbdkit::blkif
