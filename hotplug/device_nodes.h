// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A disk's backend directory as libxl wrote it (libxl_disk.c device_disk_add), and the little that
// the daemon itself writes there: an answer in an instance's place.
//
// Thread: that of the XenStore. Nothing here is written by guests.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "backend/xen/xenstore.h"
#include "base/result.h"

namespace vbdkit::hotplug {

// "vbd/1/51712": the part of the path that names the device below …/backend.
struct DeviceName {
  std::string type;    // "vbd" or "vbd3"
  uint16_t domid = 0;  // the frontend's domain
  std::string devid;

  static std::optional<DeviceName> parse(std::string_view text);
  std::string to_string() const { return type + "/" + std::to_string(domid) + "/" + devid; }
  // As the kernel's xenbus names it in sysfs: "vbd-1-51712".
  std::string bus_id() const { return type + "-" + std::to_string(domid) + "-" + devid; }
  friend auto operator<=>(const DeviceName&, const DeviceName&) = default;
};

// What changes while a device lives.
struct DeviceState {
  bool online = false;
  unsigned state = 0;  // XenbusState
};

// What the toolstack said at its beginning.
struct DeviceNodes {
  std::string script;
  std::string params;
  std::string mode;  // "r", "w", "w!"
  // Of a libxl with disk plugins; empty: served through a script.
  std::string plugin;
  std::string format;
};

// Nothing where there is no such device (any more).
std::optional<DeviceState> read_state(const xen::StoreView& store, const std::string& backend);
DeviceNodes read_device(const xen::StoreView& store, const std::string& backend);

// The uuid of the VM that a domain belongs to; a stub domain belongs to its guest's.
std::string machine_of(const xen::StoreView& store, uint16_t domid);

// Answers a new device with InitWait, so that libxl goes on to the hotplug script; with nodes for
// frontends that read them then. Does nothing where somebody has answered.
Result<void> answer_init_wait(const xen::XenStore& store, const std::string& backend);

// Leaves `message` in vbdkit/error for the hotplug script and the admin.
Result<void> record_error(const xen::XenStore& store, const std::string& backend,
                          std::string_view message);

// For a device without an instance: the toolstack waits for Closed before it removes a device.
Result<void> answer_closed(const xen::XenStore& store, const std::string& backend);

}  // namespace vbdkit::hotplug
