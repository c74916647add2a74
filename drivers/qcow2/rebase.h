// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The backing file as an image's header records it: where it is, and how to record another one.
// Blocks; any thread.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "drivers/chain/layer.h"
#include "drivers/image_format.h"
#include "drivers/qcow2/layout.h"

namespace vbdkit::drivers::qcow2 {

// Nothing where there is none. A relative name counts from the directory of the image.
Result<std::optional<ParentReference>> backing_reference(const std::string& path,
                                                         const Header& header);

// The writes that record another backing file in an image that has one. The new name goes beside
// the old one, and the header's first sector, which points at it and names its format, is the last
// write: a power cut leaves the old name or the new one.
Result<std::vector<FilePatch>> plan_backing_file(const std::string& path, const std::string& name,
                                                 const std::string& format);
// The one write that makes an image stand alone.
Result<std::vector<FilePatch>> plan_no_backing_file(const std::string& path);

}  // namespace vbdkit::drivers::qcow2
