// SPDX-License-Identifier: LGPL-2.1-or-later
#include "hotplug/identity.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

namespace vbdkit::hotplug {

std::string image_identity(const drivers::GraphSpec& spec) {
  const std::string& path = spec.leaf().path;
  if (path.empty()) return {};
  struct stat st;
  if (path.front() != '/' || ::stat(path.c_str(), &st) < 0)
    return "name:" + spec.leaf().driver + ":" + path;
  const auto pair = [](dev_t device) {
    return std::to_string(major(device)) + ":" + std::to_string(minor(device));
  };
  if (S_ISBLK(st.st_mode)) return "block:" + pair(st.st_rdev);
  return "file:" + pair(st.st_dev) + ":" + std::to_string(st.st_ino);
}

}  // namespace vbdkit::hotplug
