// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The drivers' entries, one function each, defined in the driver's own .cc and listed by
// registry.cc. Everybody else goes through driver_table().
#pragma once

#include "drivers/registry.h"

namespace vbdkit::drivers {

DriverEntry cache_driver();
DriverEntry cbt_driver();
DriverEntry delay_driver();
DriverEntry log_driver();
DriverEntry nbd_driver();
DriverEntry nbd_unix_driver();
DriverEntry null_driver();
DriverEntry qcow2_driver();
DriverEntry ram_driver();
DriverEntry raw_driver();
DriverEntry throttle_driver();
DriverEntry vhd_driver();

// The entry of that name, or nullptr.
const DriverEntry* find_driver(std::string_view name);

}  // namespace vbdkit::drivers
