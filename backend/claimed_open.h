// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A graph whose images are claimed before they are opened, where other hosts can reach them too
// (image_claims.h). Blocks, for those whose loop does not run yet; the reactor's thread.
#pragma once

#include <vector>

#include "backend/image_claims.h"
#include "drivers/registry.h"

namespace vbdkit {

// Without claims (nullptr): drivers::open_graph().
[[gnu::cold]] Result<drivers::NodePtr> open_claimed(const drivers::GraphSpec& spec,
                                                    const drivers::OpenContext& context,
                                                    ImageClaims* claims);

// The files that the graph has open. `shared`: as it was opened.
[[gnu::cold]] std::vector<ImageClaims::Use> uses_of(drivers::Node& top, bool shared);

}  // namespace vbdkit
