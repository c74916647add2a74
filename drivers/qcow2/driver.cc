// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/chain/open_chain.h"
#include "drivers/drivers.h"

namespace vbdkit::drivers {
namespace {

Result<NodePtr> open_qcow2(const NodeSpec& spec, NodePtr, const OpenContext& context) {
  // qcow2 images on raw base images are usual, and an image names the format of its backing file.
  return open_chain(spec, ChainPolicy{.raw_parent = true}, context);
}

}  // namespace

DriverEntry qcow2_driver() {
  return {"qcow2", "a qcow2 image, with its backing files", false, true, kChainKeys, open_qcow2};
}

}  // namespace vbdkit::drivers
