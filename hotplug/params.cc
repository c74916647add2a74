// SPDX-License-Identifier: LGPL-2.1-or-later
#include "hotplug/params.h"

#include <array>

namespace vbdkit::hotplug {

namespace {

constexpr std::string_view kShared = "shared|";

struct FormatPrefix {
  std::string_view prefix;  // libxl_device.c libxl__device_disk_string_of_format
  std::string_view driver;
};
constexpr std::array kFormats = {FormatPrefix{"aio:", "raw"}, FormatPrefix{"vhd:", "vhd"}};

}  // namespace

Result<DiskParams> parse_params(std::string_view type, std::string_view params) {
  std::string_view driver_of_path = "raw";
  if (type == "vbd3") {
    for (const FormatPrefix& format : kFormats) {
      if (!params.starts_with(format.prefix)) continue;
      params.remove_prefix(format.prefix.size());
      driver_of_path = format.driver;
      break;
    }
  }
  DiskParams disk;
  if (params.starts_with(kShared)) {
    disk.shared = true;
    params.remove_prefix(kShared.size());
  }
  if (params.empty())
    return Error(ErrorKind::kInvalid,
                 "the disk's target is empty (expected a node spec, e.g. target=raw:/srv/a.img)");
  if (params.front() == '/') disk.spec = std::string(driver_of_path) + ":";
  disk.spec += params;
  return disk;
}

bool is_our_script(std::string_view script) {
  return script.substr(script.rfind('/') + 1) == "block-vbdkit";
}

}  // namespace vbdkit::hotplug
