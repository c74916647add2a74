// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Keeps the present content of an image under another name, for the commands snapshot and clone.
// Blocks; one thread.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>

#include "base/log.h"
#include "base/result.h"
#include "drivers/image_format.h"
#include "drivers/registry.h"
#include "storage/offline_claims.h"
#include "storage/registry.h"

namespace vbdkit::storage {

// The file of `image` gets the name `name`, which must be in the same directory, and is not written
// any more; under the old name there is a new image that stands on it. A power cut leaves the old
// state or the new one; what was interrupted can be repeated. Where an instance has the image open,
// it does that for its guests not to notice.
Result<void> take_snapshot(const drivers::NodeSpec& image, const std::string& name,
                           const std::map<std::string, std::string>& options,
                           const Registry& registry, const Logger& log);

// An image that nobody has open, kept so: claimed, locked, and nobody's parent.
class ImageHold {
 public:
  static Result<ImageHold> take(const drivers::NodeSpec& image, const Logger& log);
  // Before a step that cannot be undone.
  Result<void> may_write() const { return claims_.may_write(); }

 private:
  ImageHold(OfflineClaims claims, drivers::ImageLock lock)
      : claims_(std::move(claims)), lock_(std::move(lock)) {}
  OfflineClaims claims_;
  drivers::ImageLock lock_;
  std::optional<drivers::ImageLock> parent_lock_;
};

}  // namespace vbdkit::storage
