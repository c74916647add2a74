// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Fuzzes a VHD in use (disk_in_use.h). The input is the start of an image file: copy of the footer,
// header, tables; room for a few blocks follows. Besides what holds for every format: an image
// without errors has none after it was used.
#include "drivers/vhd/check.h"
#include "drivers/vhd/layout.h"
#include "drivers/vhd/open.h"
#include "tests/fuzz/disk_in_use.h"

using namespace vbdkit::fuzz;

namespace {

constexpr size_t kRoom = 5 << 20;  // bytes

// Checksums would keep nearly all inputs from going further.
void fix_checksum(std::span<uint8_t> bytes, size_t field) {
  vhd::store_be<uint32_t>(reinterpret_cast<std::byte*>(&bytes[field]), 0);
  uint32_t sum = 0;
  for (const uint8_t b : bytes) sum += b;
  vhd::store_be<uint32_t>(reinterpret_cast<std::byte*>(&bytes[field]), ~sum);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<uint8_t> content(data, data + size);
  if (size < vhd::kFooterSize) return 0;
  fix_checksum(std::span(content).first(vhd::kFooterSize), 64);
  const auto footer =
      vhd::parse_footer(std::as_bytes(std::span(content)).first<vhd::kFooterSize>());
  if (footer && footer->type != vhd::DiskType::kFixed &&
      vbdkit::range_inside(footer->data_offset, vhd::kHeaderSize, size))
    fix_checksum(std::span(content).subspan(footer->data_offset, vhd::kHeaderSize), 36);
  const MemoryFile file(content, size + kRoom);
  DiskInUse::run(file, vhd::open_layer, true);
  const auto before = vhd::check(file.path(), false);
  const bool used = DiskInUse::run(file, vhd::open_layer, false);
  if (!used || !before || !before->errors.empty()) return 0;
  const auto after = vhd::check(file.path(), false);
  require(after.ok() && after->errors.empty() && after->remains.empty());
  return 0;
}
