// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Checks a qcow2 image that nobody has open, and repairs its refcounts. A leak is a cluster that is
// counted more often than used: lost space. A corruption is anything else that is wrong: writing to
// such an image may destroy data. Blocks; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "drivers/qcow2/metadata_file.h"
#include "drivers/qcow2/reference_map.h"

namespace vbdkit::drivers::qcow2 {

enum class Repair { kNone, kLeaks, kAll };

struct CheckResult {
  uint64_t corruptions = 0;  // that are still there
  uint64_t leaks = 0;        // clusters; likewise
  uint64_t corruptions_fixed = 0;
  uint64_t leaks_fixed = 0;
  uint64_t total_clusters = 0;  // of the disk
  uint64_t allocated_clusters = 0;
  uint64_t compressed_clusters = 0;
  uint64_t fragmented_clusters = 0;
  uint64_t image_end = 0;             // file offset behind the last cluster in use
  std::vector<std::string> messages;  // the first few of what was found

  bool clean() const { return corruptions == 0 && leaks == 0; }
};

Result<CheckResult> check_image(const std::string& path, Repair repair);
// The same on a file that is open already, for writing if something is to be repaired.
Result<CheckResult> check_image(MetadataFile& file, Repair repair, const WalkLimits& limits = {});

}  // namespace vbdkit::drivers::qcow2
