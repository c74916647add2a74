// SPDX-License-Identifier: LGPL-2.1-or-later
//
// VHD as a format of chains (drivers/chain/layer.h): picks the layer for the disk's type and
// access. Blocks; the reactor's thread.
#pragma once

#include "drivers/chain/layer.h"

namespace vbdkit::drivers::vhd {

Result<std::unique_ptr<Layer>> open_layer(LayerSource source, const LayerContext& context);

}  // namespace vbdkit::drivers::vhd
