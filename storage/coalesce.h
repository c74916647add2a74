// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Merges an image into its parent, for the commands coalesce and gc. Blocks; one thread.
#pragma once

#include <string>

#include "base/log.h"
#include "drivers/jobs/coalesce_job.h"
#include "io/reactor.h"
#include "storage/registry.h"

namespace vbdkit::storage {

struct CoalesceOutcome {
  std::string content;  // the file that has it now; empty where only the end was left to do
  size_t children = 0;  // that were put on it
};

// Instances that use the images are asked for what is theirs to do.
Result<CoalesceOutcome> merge_into_parent(const drivers::NodeSpec& image,
                                          drivers::CoalesceOptions options,
                                          const Registry& registry, io::EngineKind engine,
                                          const Logger& log);

}  // namespace vbdkit::storage
