// SPDX-License-Identifier: LGPL-2.1-or-later
//
// VHDs are made by whoever owns the disk. The input is a file: its footers, headers, batmap and
// locators are parsed wherever they are said to be, and what is accepted keeps its promises.
#include <cstdlib>

#include "drivers/vhd/layout.h"
#include "drivers/vhd/locator.h"

using namespace vbdkit::drivers::vhd;

namespace {

std::span<const std::byte> file;

template <size_t N>
bool read(uint64_t offset, std::array<std::byte, N>& to) {
  if (!vbdkit::range_inside(offset, N, file.size())) return false;
  memcpy(to.data(), file.data() + offset, N);
  return true;
}

// Checksums would keep nearly all inputs from going further.
template <size_t N>
void fix_checksum(std::array<std::byte, N>& bytes, size_t field) {
  store_be<uint32_t>(bytes.data() + field, 0);
  uint32_t sum = 0;
  for (const std::byte b : bytes) sum += std::to_integer<uint32_t>(b);
  store_be<uint32_t>(bytes.data() + field, ~sum);
}

void require(bool condition) {
  if (!condition) abort();
}

void look_at_header(const Footer& footer) {
  std::array<std::byte, kHeaderSize> bytes;
  if (!read(footer.data_offset, bytes)) return;
  fix_checksum(bytes, 36);
  const auto header = parse_header(bytes);
  if (!header) return;
  require(header->table_end() >= header->table_offset);
  require(header->blocks <= kMaxBlocks && header->bitmap_bytes() % 512 == 0);
  require(parse_header(encode_header(*header)).ok());
  std::vector<std::string> texts;
  for (const Locator& locator : header->locators)
    if (vbdkit::range_inside(locator.offset, locator.length, file.size()))
      if (auto text = decode_locator(locator.code, file.subspan(locator.offset, locator.length)))
        texts.push_back(*text);
  if (auto name = decode_parent_name(header->parent_name)) texts.push_back(*name);
  for (const std::string& path : parent_candidates("/srv/leaf.vhd", texts))
    require(path.front() == '/' && path.find('\0') == std::string::npos);
  std::array<std::byte, 512> map;
  if (!read(header->table_end(), map)) return;
  if (const auto batmap = parse_batmap_header(map)) require(batmap->sectors > 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  file = {reinterpret_cast<const std::byte*>(data), size};
  std::array<std::byte, kFooterSize> bytes;
  for (const uint64_t at : {uint64_t{0}, size < kFooterSize ? 0 : size - kFooterSize}) {
    if (!read(at, bytes)) continue;
    fix_checksum(bytes, 64);
    const auto footer = parse_footer(bytes);
    if (!footer) continue;
    require(footer->disk_size() > 0 && footer->disk_size() % 512 == 0);
    require(parse_footer(encode_footer(*footer)).ok());
    if (footer->type != DiskType::kFixed) look_at_header(*footer);
  }
  return 0;
}
