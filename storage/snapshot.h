// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Keeps the present content of an image under another name, for the commands snapshot and clone.
// Blocks; one thread.
#pragma once

#include <map>
#include <string>

#include "base/log.h"
#include "base/result.h"
#include "drivers/registry.h"
#include "storage/registry.h"

namespace vbdkit::storage {

// The file of `image` gets the name `name`, which must be in the same directory, and is not written
// any more; under the old name there is a new image that stands on it. A power cut leaves the old
// state or the new one; what was interrupted can be repeated. Where an instance has the image open,
// it does that for its guests not to notice.
Result<void> take_snapshot(const drivers::NodeSpec& image, const std::string& name,
                           const std::map<std::string, std::string>& options,
                           const Registry& registry, const Logger& log);

}  // namespace vbdkit::storage
