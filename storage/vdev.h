// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A guest's names for its disks and the numbers they have in xenstore, as xen-vbd-interface(7)
// defines them: "xvda" is 51712. Pure; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace vbdkit::storage {

// Of "xvda", "xvdb1", "hda", "sda", "d0p1", or a number as it is.
std::optional<uint64_t> parse_vdev(std::string_view name);

// "xvda"; where the number has no such name, the number.
std::string vdev_name(uint64_t number);

}  // namespace vbdkit::storage
