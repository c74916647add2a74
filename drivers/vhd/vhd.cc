// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vhd: a VHD and all that it stands on. A parent that is no VHD must be allowed by the spec, as an
// image could otherwise make us read any file.
#include "drivers/chain/open_chain.h"
#include "drivers/drivers.h"

namespace vbdkit::drivers {
namespace {

Result<NodePtr> open_vhd(const NodeSpec& spec, NodePtr, const OpenContext& context) {
  return open_chain(spec, ChainPolicy{.raw_parent = false}, context);
}

}  // namespace

DriverEntry vhd_driver() {
  return {"vhd",      "a VHD image (fixed, dynamic or differencing) with its parents",
          false,      true,
          kChainKeys, open_vhd};
}

}  // namespace vbdkit::drivers
