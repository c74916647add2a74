// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/disk_log.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/units.h"
#include "drivers/chain/image_file.h"

namespace vbdkit::drivers {

Result<SparseBytes> SparseBytes::load(const std::string& path) {
  VBDKIT_ASSIGN(const ImageFile file, ImageFile::open(path, ImageFile::Mode::kRead));
  VBDKIT_ASSIGN(const Bytes size, file.size());
  SparseBytes bytes;
  Page page;
  for (uint64_t at = 0; at < size.v; at += kPage) {
    const size_t n = std::min<uint64_t>(kPage, size.v - at);
    VBDKIT_TRY(file.read(at, std::span(page).first(n)));
    bytes.write(at, page.data(), n);
  }
  return bytes;
}

Result<void> SparseBytes::save(const std::string& path) const {
  unlink(path.c_str());
  VBDKIT_ASSIGN(ImageFile file, ImageFile::open(path, ImageFile::Mode::kCreate));
  VBDKIT_TRY(file.resize(Bytes{size_}));
  for (const auto& [number, page] : pages_)
    VBDKIT_TRY(
        file.write(number * kPage, std::span(page).first(std::min(kPage, size_ - number * kPage))));
  return {};
}

void SparseBytes::resize(uint64_t size) {
  if (size < size_) {
    const uint64_t old = size_;
    zero(size, old - size);
    std::erase_if(pages_, [&](const auto& p) { return p.first * kPage >= size; });
  }
  size_ = size;
}

void SparseBytes::read(uint64_t offset, std::byte* to, size_t length) const {
  while (length > 0) {
    const size_t n = std::min<uint64_t>(length, kPage - offset % kPage);
    const auto it = pages_.find(offset / kPage);
    if (it == pages_.end())
      memset(to, 0, n);
    else
      memcpy(to, it->second.data() + offset % kPage, n);
    to += n;
    offset += n;
    length -= n;
  }
}

void SparseBytes::write(uint64_t offset, const std::byte* from, size_t length) {
  size_ = std::max(size_, offset + length);
  while (length > 0) {
    const size_t n = std::min<uint64_t>(length, kPage - offset % kPage);
    auto it = pages_.find(offset / kPage);
    if (it != pages_.end() ||
        std::any_of(from, from + n, [](std::byte b) { return b != std::byte{}; })) {
      if (it == pages_.end()) it = pages_.emplace(offset / kPage, Page{}).first;
      memcpy(it->second.data() + offset % kPage, from, n);
    }
    from += n;
    offset += n;
    length -= n;
  }
}

void SparseBytes::zero(uint64_t offset, uint64_t length) {
  size_ = std::max(size_, offset + length);
  while (length > 0) {
    const uint64_t n = std::min<uint64_t>(length, kPage - offset % kPage);
    const auto it = pages_.find(offset / kPage);
    if (it != pages_.end()) {
      if (n == kPage)
        pages_.erase(it);
      else
        memset(it->second.data() + offset % kPage, 0, n);
    }
    offset += n;
    length -= n;
  }
}

void DiskLog::Change::apply(SparseBytes& disk) const {
  switch (kind) {
    case Kind::kWrite:
      return disk.write(offset, data.data(), data.size());
    case Kind::kZero:
      if (!keeps_size) return disk.zero(offset, length);
      if (offset < disk.size()) disk.zero(offset, std::min(length, disk.size() - offset));
      return;
    case Kind::kResize:
      return disk.resize(length);
    case Kind::kFlush:
      return;
  }
}

size_t DiskLog::add(Change change) {
  changes_.push_back(std::move(change));
  return changes_.size() - 1;
}

const DiskLog::Change& DiskLog::completed(size_t index, size_t event) {
  changes_[index].completed = event;
  return changes_[index];
}

size_t DiskLog::durable_until(size_t cut) const {
  size_t flush = 0;
  for (const Change& c : changes_)
    if (c.kind == Change::Kind::kFlush && c.completed < cut) flush = std::max(flush, c.submitted);
  return flush;
}

SparseBytes DiskLog::after_cut(size_t cut, Loss loss, std::mt19937_64& random) const {
  using Kind = Change::Kind;
  const size_t flush = durable_until(cut);
  SparseBytes disk = initial_;
  for (const Change& c : changes_) {
    if (c.submitted >= cut) break;
    if (c.kind == Kind::kFlush) continue;
    const bool completed = c.completed < cut;
    const bool durable = c.completed < flush || (c.fua && completed);
    enum { kNone, kSome, kAll } part = completed ? kAll : kNone;
    if (!durable && loss == Loss::kRandom) part = std::array{kNone, kSome, kAll}[random() % 3];
    if (part == kNone) continue;
    if (part == kAll || c.kind == Kind::kResize) {
      c.apply(disk);
      continue;
    }
    for (uint64_t at = 0; at < c.length; at += kSectorSize) {
      if (random() % 2 == 0) continue;
      const uint64_t n = std::min(kSectorSize, c.length - at);
      Change sector{.kind = c.kind, .keeps_size = c.keeps_size};
      sector.offset = c.offset + at;
      sector.length = n;
      if (c.kind == Kind::kWrite) {
        const auto from = c.data.begin() + static_cast<ptrdiff_t>(at);
        sector.data.assign(from, from + static_cast<ptrdiff_t>(n));
      }
      sector.apply(disk);
    }
  }
  return disk;
}

}  // namespace vbdkit::drivers
