// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Who may use one image at the same time. Pure policy: the daemon asks before a VBD joins an
// instance. Two writers that don't know of each other destroy a file system, so it takes a reason:
// all are readers, or all said "shared|", or they are one virtual machine (an HVM guest and its
// stub domain; the two ends of a migration on one host).
#pragma once

#include <span>
#include <string>

#include "base/result.h"

namespace vbdkit::hotplug {

struct ImageUser {
  std::string device;  // for messages: "vbd/1/51712"
  bool writer = false;
  bool shared = false;
  std::string machine;  // the VM's uuid; of a stub domain: its guest's; empty: unknown
};

// How an instance has the image open.
struct OpenImage {
  std::string spec;  // canonical
  bool read_only = false;
};

// The error says who is in the way.
Result<void> may_join(const OpenImage& open, std::span<const ImageUser> users,
                      const std::string& spec, const ImageUser& newcomer);

}  // namespace vbdkit::hotplug
