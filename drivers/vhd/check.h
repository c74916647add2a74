// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Looks whether a VHD contradicts itself, and puts right what can be without guessing. Only the
// image itself, not its parents. Blocking I/O on an image that nobody writes; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace vbdkit::drivers::vhd {

struct CheckReport {
  uint32_t blocks = 0;     // of the disk
  uint32_t allocated = 0;  // of them, in the file
  uint64_t leaked = 0;     // bytes of the file that belong to nothing
  // What a power cut can leave: the image reads right, and the next writer mends it.
  std::vector<std::string> remains;
  // What is lost or contradicts itself.
  std::vector<std::string> errors;
};

// `repair`: mends what is among `remains`; it is then reported as it was before. An image that
// cannot be read at all is an error.
Result<CheckReport> check(const std::string& path, bool repair);

}  // namespace vbdkit::drivers::vhd
