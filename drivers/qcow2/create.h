// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Makes new qcow2 images. Blocks; any thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/result.h"
#include "base/units.h"
#include "drivers/qcow2/layout.h"

namespace vbdkit::drivers::qcow2 {

enum class Preallocation {
  kOff,
  kMetadata,  // every cluster has its place, nothing is written there
  kFalloc,    // and the space is reserved
  kFull,      // and written with zeroes
};

struct CreateOptions {
  Bytes size;  // virtual; a multiple of 512
  uint32_t version = 3;
  uint32_t cluster_size = 65536;
  uint32_t refcount_bits = 16;
  bool lazy_refcounts = false;
  bool extended_l2 = false;
  Compression compression = Compression::kDeflate;
  Preallocation preallocation = Preallocation::kOff;
  std::string backing_file;    // as it is to be recorded; "" for a base image
  std::string backing_format;  // "raw", "qcow2", …: never left to guessing where there is a file
};

// The options by the names that qemu-img gives them: cluster_size, compat (0.10, 1.1, v2, v3),
// refcount_bits, lazy_refcounts, extended_l2, compression_type, preallocation, backing_file,
// backing_fmt. The error names the option.
Result<CreateOptions> parse_create_options(Bytes size,
                                           const std::map<std::string, std::string>& options);

// A file that exists is refused; a block device is overwritten.
Result<void> create_image(const std::string& path, const CreateOptions& options);

}  // namespace vbdkit::drivers::qcow2
