// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What a disk's `params` node, written by libxl from the user's `target=`, says: pure text work.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace vbdkit::hotplug {

struct DiskParams {
  std::string spec;  // a node spec (drivers/registry.h)
  // "shared|SPEC": other guests may use the image too, writers included. xl's grammar has no `w!`,
  // so it is said in the target.
  bool shared = false;
};

// `type` is the backend's: for "vbd" libxl writes the target as it stands; for "vbd3" it puts
// "aio:" or "vhd:" (the format) before it. A target that is only a path means a raw image, or one
// of that format.
Result<DiskParams> parse_params(std::string_view type, std::string_view params);

// Whether a `script` node names our hotplug script.
bool is_our_script(std::string_view script);

}  // namespace vbdkit::hotplug
