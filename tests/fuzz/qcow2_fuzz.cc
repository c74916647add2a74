// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Fuzzes qcow2 metadata: the input is an image file. Its header is parsed, its tables are walked
// and checked, and it is repaired. Besides not crashing: what was repaired without a remainder must
// check clean, and a header that parses must parse the same after it was written again.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <span>
#include <string>

#include "base/fd.h"
#include "drivers/qcow2/check.h"
#include "drivers/qcow2/decompress.h"
#include "drivers/qcow2/info.h"

namespace {

using namespace vbdkit::drivers::qcow2;

void require(bool condition) {
  if (!condition) std::abort();
}

void fuzz_header(std::span<const uint8_t> data) {
  const auto header = parse_header(data, data.size());
  if (!header) return;
  const auto again = encode_header(*header);
  if (!again) return;  // the name of the backing file and the extensions may have shared bytes
  const auto parsed = parse_header(*again, data.size());
  require(parsed.ok());
  require(parsed->size == header->size && parsed->l1_offset == header->l1_offset);
  require(parsed->backing_file == header->backing_file);
  require(parsed->extensions.size() == header->extensions.size());
}

void fuzz_decompression(std::span<const uint8_t> data) {
  uint8_t cluster[4096];
  decompress(Compression::kDeflate, data, cluster);
  decompress(Compression::kZstd, data, cluster);
}

void fuzz_image(std::span<const uint8_t> data) {
  const vbdkit::Fd file(memfd_create("image", MFD_CLOEXEC));
  require(file.valid());
  require(write(file.get(), data.data(), data.size()) == static_cast<ssize_t>(data.size()));
  const std::string path = "/proc/self/fd/" + std::to_string(file.get());
  (void)read_info(path);
  (void)check_image(path, Repair::kNone);
  const auto repaired = check_image(path, Repair::kAll);
  if (!repaired || !repaired->clean()) return;
  const auto checked = check_image(path, Repair::kNone);
  require(checked.ok() && checked->clean());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const uint8_t> input(data, size);
  fuzz_header(input);
  fuzz_decompression(input);
  fuzz_image(input);
  return 0;
}
