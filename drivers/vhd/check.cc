// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/vhd/check.h"

#include <algorithm>

#include "drivers/vhd/metadata.h"

namespace vbdkit::drivers::vhd {
namespace {

// A smaller gap is no leak.
constexpr uint64_t kLargestGap = kWideAlignment;
constexpr size_t kMostErrors = 100;  // that are told one by one

class Checker {
 public:
  Checker(ImageFile& file, Metadata metadata) : file_(file), metadata_(std::move(metadata)) {}

  Result<CheckReport> run();
  Result<void> repair();

 private:
  void error(std::string text) {
    if (report_.errors.size() < kMostErrors) report_.errors.push_back(std::move(text));
  }
  void check_places(const std::vector<uint32_t>& table);
  Result<void> check_batmap(const std::vector<uint32_t>& table);

  ImageFile& file_;
  const Metadata metadata_;
  CheckReport report_;
  bool batmap_wrong_ = false;
};

Result<CheckReport> Checker::run() {
  if (!metadata_.tail_valid)
    report_.remains.push_back("the footer at the end of the file is not valid; its copy is");
  if (metadata_.fixed()) return report_;
  if (metadata_.tail_valid && !metadata_.copy_valid)
    report_.remains.push_back("the copy of the footer at the start of the file is not valid");
  if (!metadata_.locators_inside) error("a parent locator reaches beyond the end of the file");
  VBDKIT_ASSIGN(const auto table, read_table(file_, metadata_));
  report_.blocks = metadata_.blocks();
  check_places(table);
  VBDKIT_TRY(check_batmap(table));
  return report_;
}

void Checker::check_places(const std::vector<uint32_t>& table) {
  const DynamicHeader& header = metadata_.header;
  const uint64_t length = uint64_t{header.bitmap_bytes()} + header.block_size;
  std::vector<std::pair<uint32_t, uint32_t>> places;  // sector, block
  for (uint32_t block = 0; block < table.size(); ++block) {
    if (table[block] == kUnused) continue;
    if (!metadata_.valid_entry(table[block])) {
      error("block " + std::to_string(block) + " would be at sector " +
            std::to_string(table[block]) + ", outside the file or inside its tables");
      continue;
    }
    places.emplace_back(table[block], block);
  }
  report_.allocated = static_cast<uint32_t>(places.size());
  std::sort(places.begin(), places.end());
  uint64_t end = metadata_.blocks_begin();
  for (size_t i = 0; i < places.size(); ++i) {
    const uint64_t start = uint64_t{places[i].first} * kSectorSize;
    if (i > 0 && start < uint64_t{places[i - 1].first} * kSectorSize + length)
      error("blocks " + std::to_string(places[i - 1].second) + " and " +
            std::to_string(places[i].second) + " overlap");
    else if (start >= end + kLargestGap)
      report_.leaked += start - end;
    end = std::max(end, start + length);
  }
  const uint64_t footer = align_down(metadata_.file_size, kSectorSize) - kFooterSize;
  if (!file_.block_device() && footer >= end + kLargestGap) report_.leaked += footer - end;
}

Result<void> Checker::check_batmap(const std::vector<uint32_t>& table) {
  if (!metadata_.batmap) return {};
  const auto batmap = read_batmap(file_, metadata_);
  if (!batmap) {
    batmap_wrong_ = true;
    report_.remains.push_back("the batmap's checksum does not match, so it is not used");
    return {};
  }
  const DynamicHeader& header = metadata_.header;
  std::vector<std::byte> bitmap(header.bitmap_bytes());
  for (uint32_t block = 0; block < metadata_.blocks(); ++block) {
    if (!test_bit(batmap->data(), block)) continue;
    if (table[block] == kUnused) {
      batmap_wrong_ = true;
      report_.remains.push_back("the batmap calls block " + std::to_string(block) +
                                " full, which is not allocated");
      continue;
    }
    if (!metadata_.valid_entry(table[block])) continue;
    VBDKIT_TRY(file_.read(uint64_t{table[block]} * kSectorSize, bitmap));
    if (count_bits(bitmap, header.sectors_per_block()) != header.sectors_per_block()) {
      batmap_wrong_ = true;
      error("the batmap calls block " + std::to_string(block) + " full, but its bitmap does not");
    }
  }
  return {};
}

Result<void> Checker::repair() {
  if (metadata_.fixed()) return {};
  VBDKIT_ASSIGN(const auto table, read_table(file_, metadata_));
  Metadata mended = metadata_;
  VBDKIT_TRY(mend_footers(file_, mended, table));
  // An empty one is always right.
  if (batmap_wrong_)
    return write_batmap(file_, metadata_,
                        std::vector<std::byte>(metadata_.batmap->sectors * kSectorSize));
  return {};
}

}  // namespace

Result<CheckReport> check(const std::string& path, bool repair) {
  VBDKIT_ASSIGN(ImageFile file,
                ImageFile::open(path, repair ? ImageFile::Mode::kWrite : ImageFile::Mode::kRead));
  VBDKIT_ASSIGN(Metadata metadata, read_metadata(file));
  Checker checker(file, std::move(metadata));
  VBDKIT_ASSIGN(CheckReport report, checker.run());
  if (repair) VBDKIT_TRY(checker.repair());
  return report;
}

}  // namespace vbdkit::drivers::vhd
