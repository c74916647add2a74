// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Fuzzes a qcow2 disk in use (disk_in_use.h). The input is an image file. Besides what holds for
// every format: an image that checks clean does so after it was used.
#include "drivers/qcow2/check.h"
#include "drivers/qcow2/qcow2_layer.h"
#include "tests/fuzz/disk_in_use.h"

using namespace vbdkit::fuzz;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const MemoryFile file({data, size}, size);
  DiskInUse::run(file, qcow2::Qcow2Layer::open, true);
  const auto before = qcow2::check_image(file.path(), qcow2::Repair::kNone);
  const bool used = DiskInUse::run(file, qcow2::Qcow2Layer::open, false);
  if (!used || !before || !before->clean()) return 0;
  const auto after = qcow2::check_image(file.path(), qcow2::Repair::kNone);
  require(after.ok() && after->clean());
  return 0;
}
