// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The image formats that chains know, one a line.
#include <algorithm>

#include "drivers/chain/layer.h"
#include "drivers/chain/raw_layer.h"
#include "drivers/qcow2/qcow2_layer.h"
#include "drivers/vhd/open.h"

namespace vbdkit::drivers {

std::span<const LayerFormat> layer_formats() {
  static constexpr LayerFormat table[] = {
      {"qcow2", qcow2::Qcow2Layer::open},
      {"raw", RawLayer::open},
      {"vhd", vhd::open_layer},
  };
  return table;
}

const LayerFormat* find_layer_format(std::string_view name) {
  const auto table = layer_formats();
  const auto it = std::find_if(table.begin(), table.end(),
                               [&](const LayerFormat& f) { return name == f.name; });
  return it == table.end() ? nullptr : &*it;
}

}  // namespace vbdkit::drivers
