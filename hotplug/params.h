// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What a disk's `params` node, written by libxl from the user's `target=`, says: pure text work.
#pragma once

#include <span>
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

// The same for a disk with backendtype=vbdkit, of a libxl that has disk plugins: its format is
// known, one of plugin_formats(), and its target is a path, or a node spec where the format is
// "spec", or where it is "raw" because the user has not said any.
Result<DiskParams> parse_plugin_disk(std::string_view format, std::string_view target);
// Ended by a null pointer, as libxl's plugin interface has it.
std::span<const char* const> plugin_formats();

// Whether a `script` node names our hotplug script.
bool is_our_script(std::string_view script);

}  // namespace vbdkit::hotplug
