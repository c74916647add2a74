// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/registry.h"

#include "drivers/drivers.h"

namespace vbdkit::drivers {

std::span<const DriverEntry> driver_table() {
  static const DriverEntry table[] = {
      cache_driver(), cbt_driver(),      delay_driver(),    log_driver(),
      nbd_driver(),   nbd_unix_driver(), null_driver(),     qcow2_driver(),
      ram_driver(),   raw_driver(),      throttle_driver(), vhd_driver(),
  };
  return table;
}

Result<NodePtr> open_graph(const GraphSpec& spec, const OpenContext& context) {
  NodePtr node;
  for (auto it = spec.nodes.rbegin(); it != spec.nodes.rend(); ++it) {
    const DriverEntry* entry = find_driver(it->driver);
    if (entry == nullptr) return Error(ErrorKind::kInvalid, "unknown driver '" + it->driver + "'");
    VBDKIT_ASSIGN(node, entry->open(*it, std::move(node), context));
  }
  return node;
}

}  // namespace vbdkit::drivers
