// SPDX-License-Identifier: LGPL-2.1-or-later
#include "hotplug/sharing.h"

namespace vbdkit::hotplug {

Result<void> may_join(const OpenImage& open, std::span<const ImageUser> users,
                      const std::string& spec, const ImageUser& newcomer) {
  if (spec != open.spec)
    return Error(ErrorKind::kBusy, "the image of " + spec + " is in use as " + open.spec +
                                       ": all users of an image need the same target");
  if (newcomer.writer && open.read_only)
    return Error(ErrorKind::kBusy,
                 open.spec + " is in use read-only; a writer cannot join its readers");
  for (const ImageUser& user : users) {
    const bool readers = !user.writer && !newcomer.writer;
    const bool agreed = user.shared && newcomer.shared;
    const bool same_machine = !user.machine.empty() && user.machine == newcomer.machine;
    if (readers || agreed || same_machine) continue;
    return Error(ErrorKind::kBusy,
                 open.spec + " is in use " + (user.writer ? "read-write" : "read-only") + " by " +
                     user.device +
                     "; to share it with writers, all targets must begin with shared|");
  }
  return {};
}

}  // namespace vbdkit::hotplug
