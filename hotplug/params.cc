// SPDX-License-Identifier: LGPL-2.1-or-later
#include "hotplug/params.h"

#include <algorithm>
#include <array>

namespace vbdkit::hotplug {

namespace {

constexpr std::string_view kShared = "shared|";

struct FormatPrefix {
  std::string_view prefix;  // libxl_device.c libxl__device_disk_string_of_format
  std::string_view driver;
};
constexpr std::array kFormats = {FormatPrefix{"aio:", "raw"}, FormatPrefix{"vhd:", "vhd"}};

constexpr std::array kPluginFormats = {"raw", "qcow2", "vhd", "spec",
                                       static_cast<const char*>(nullptr)};

Result<DiskParams> disk_of(std::string_view driver_of_path, std::string_view target) {
  DiskParams disk;
  if (target.starts_with(kShared)) {
    disk.shared = true;
    target.remove_prefix(kShared.size());
  }
  if (target.empty())
    return Error(ErrorKind::kInvalid,
                 "the disk's target is empty (expected a node spec, e.g. target=raw:/srv/a.img)");
  if (target.front() == '/') disk.spec = std::string(driver_of_path) + ":";
  disk.spec += target;
  return disk;
}

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
  return disk_of(driver_of_path, params);
}

Result<DiskParams> parse_plugin_disk(std::string_view format, std::string_view target) {
  const auto known = plugin_formats();
  if (std::none_of(known.begin(), known.end(),
                   [&](const char* name) { return name != nullptr && format == name; }))
    return Error(ErrorKind::kInvalid, "format=" + std::string(format) + " is unknown");
  const bool spec = format == "spec";
  auto disk = disk_of(spec ? "raw" : format, target);
  if (!disk || spec || format == "raw") return disk;
  const std::string path = std::string(format) + ":/";
  if (!disk->spec.starts_with(path))
    return Error(ErrorKind::kInvalid, "target=" + disk->spec +
                                          ": with format=" + std::string(format) +
                                          " it is the image's path, and begins with /");
  return disk;
}

std::span<const char* const> plugin_formats() { return kPluginFormats; }

bool is_our_script(std::string_view script) {
  return script.substr(script.rfind('/') + 1) == "block-vbdkit";
}

}  // namespace vbdkit::hotplug
