// SPDX-License-Identifier: LGPL-2.1-or-later
//
// BitmapFile: opening, closing, and the bitmap itself.
#include "drivers/cbt/bitmap_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "drivers/file_lock.h"

namespace vbdkit::drivers::cbt {
namespace {

constexpr uint64_t kDefaultGranularity = 64 << 10;

}  // namespace

BitmapFile::BitmapFile(FileOptions options, io::Reactor& reactor, const Logger& log)
    : options_(std::move(options)), reactor_(reactor), log_(log) {
  commit_.file = this;
  commit_.run = [](io::Deferred& d) { static_cast<Commit&>(d).file->commit(); };
  sync_.file = this;
  sync_.kind = io::FileOp::Kind::kDataSync;
  sync_.done = [](io::FileOp& op, int64_t result) { static_cast<Sync&>(op).file->synced(result); };
}

Error BitmapFile::failed(int error, const char* what) const {
  return Error::from_errno(error, std::string("cbt: ") + what + " " + options_.path);
}

Result<std::unique_ptr<BitmapFile>> BitmapFile::open(FileOptions options, Bytes disk_size,
                                                     io::Reactor& reactor, const Logger& log) {
  std::unique_ptr<BitmapFile> file(new BitmapFile(std::move(options), reactor, log));
  VBDKIT_TRY(file->load(disk_size));
  file->opened_ = true;
  return file;
}

Result<void> BitmapFile::load(Bytes disk_size) {
  const std::string& path = options_.path;
  auto fd = Fd::open(path, options_.read_only ? O_RDONLY : O_RDWR | O_CREAT, 0600);
  if (!fd) return std::move(fd).error().context("cbt");
  fd_ = std::move(fd).value();
  auto locked =
      lock_image(fd_.get(), path, options_.read_only ? LockMode::kReader : LockMode::kWriter);
  if (!locked) return std::move(locked).error().context("cbt");
  struct stat st {};
  if (fstat(fd_.get(), &st) != 0) return failed(errno, "stat");
  if (st.st_size == 0 && !options_.read_only) return create(disk_size);

  std::optional<Superblock> newest;
  for (const uint64_t slot : {uint64_t{0}, kPageSize}) {
    Page page;
    if (pread(fd_.get(), page.data(), kPageSize, static_cast<off_t>(slot)) != kPageSize) continue;
    auto found = decode(page);
    if (found && (!newest || found->sequence > newest->sequence)) newest = std::move(found);
  }
  if (!newest)
    return Error(ErrorKind::kCorrupt,
                 "cbt: " + path + ": not a file of changed blocks, or damaged");
  superblock_ = std::move(*newest);
  if (superblock_.name != options_.name)
    return Error(ErrorKind::kInvalid, "cbt: " + path + ": it belongs to the bitmap '" +
                                          superblock_.name + "', not to '" + options_.name + "'");
  if (options_.granularity != 0 && options_.granularity != superblock_.granularity)
    return Error(ErrorKind::kInvalid, "cbt: " + path + ": its granularity is " +
                                          std::to_string(superblock_.granularity) + ", not " +
                                          std::to_string(options_.granularity));
  VBDKIT_TRY(read_bitmap());
  VBDKIT_TRY(recover());
  if (disk_size.v != superblock_.disk_size) {
    log_.notice("cbt: %s: the disk has %llu bytes now instead of %llu", path.c_str(),
                static_cast<unsigned long long>(disk_size.v),
                static_cast<unsigned long long>(superblock_.disk_size));
    VBDKIT_TRY(resize(disk_size));
  }
  if (options_.read_only) return {};
  superblock_.in_use = true;
  superblock_.boot_id = options_.boot_id;
  return store();
}

// Everything is in the file before it is said to be exact.
Result<void> BitmapFile::store() {
  VBDKIT_TRY(store_all());
  superblock_.hot.reset();
  return store_superblock();
}

Result<void> BitmapFile::create(Bytes disk_size) {
  superblock_.disk_size = disk_size.v;
  superblock_.granularity = options_.granularity == 0 ? kDefaultGranularity : options_.granularity;
  superblock_.name = options_.name;
  superblock_.in_use = true;
  superblock_.boot_id = options_.boot_id;
  fit_pages();
  VBDKIT_TRY(reserve());
  VBDKIT_TRY(store_superblock());
  log_.info("cbt: %s: made; changes are tracked from now on", options_.path.c_str());
  return {};
}

// So that recording a change does not fail for want of space.
Result<void> BitmapFile::reserve() {
  const uint64_t size = kBitmapOffset + pages_.size() * kPageSize;
  if (const int error = posix_fallocate(fd_.get(), 0, static_cast<off_t>(size)); error != 0)
    return failed(error, "reserve space in");
  return {};
}

Result<void> BitmapFile::read_bitmap() {
  fit_pages();
  for (size_t i = 0; i < pages_.size(); ++i) {
    const auto at = static_cast<off_t>(kBitmapOffset + i * kPageSize);
    const ssize_t n = pread(fd_.get(), pages_[i]->data(), kPageSize, at);
    if (n < 0) return failed(errno, "read");
    if (n != kPageSize)
      return Error(ErrorKind::kCorrupt, "cbt: " + options_.path + ": shorter than its bitmap");
  }
  return {};
}

// After a crash of the system the bits of hot regions may be older than the disk.
Result<void> BitmapFile::recover() {
  const bool exact = !superblock_.in_use || superblock_.boot_id == options_.boot_id;
  const Regions hot = superblock_.hot;
  superblock_.hot.reset();
  if (exact) return {};
  const uint64_t region = superblock_.region_size();
  for (size_t i = 0; i < kRegions; ++i) {
    const uint64_t start = i * region;
    if (!hot[i] || start >= superblock_.disk_size) continue;
    mark(start, std::min(region, superblock_.disk_size - start));
  }
  superblock_.hot.reset();
  log_.notice("cbt: %s: the system had crashed; %zu regions of %llu bytes count as changed",
              options_.path.c_str(), hot.count(), static_cast<unsigned long long>(region));
  return {};
}

BitmapFile::~BitmapFile() {
  if (!opened_ || options_.read_only) return;
  superblock_.in_use = false;
  if (auto stored = store(); !stored) log_.error("%s", stored.error().message().c_str());
  unlock_image(fd_.get());
}

Result<void> BitmapFile::store_all() {
  for (const size_t i : dirty_pages_) {
    const auto at = static_cast<off_t>(kBitmapOffset + i * kPageSize);
    if (pwrite(fd_.get(), pages_[i]->data(), kPageSize, at) != kPageSize)
      return failed(errno, "write");
    page_dirty_[i] = 0;
  }
  dirty_pages_.clear();
  if (fdatasync(fd_.get()) != 0) return failed(errno, "sync");
  return {};
}

Result<void> BitmapFile::store_superblock() {
  ++superblock_.sequence;
  encode(superblock_, superblock_page_);
  const auto at = static_cast<off_t>(superblock_.sequence % 2 * kPageSize);
  if (pwrite(fd_.get(), superblock_page_.data(), kPageSize, at) != kPageSize)
    return failed(errno, "write");
  if (fdatasync(fd_.get()) != 0) return failed(errno, "sync");
  stored_hot_ = superblock_.hot;
  return {};
}

// A page for each part of the bitmap; pages never move, as writes of them may be under way.
void BitmapFile::fit_pages() {
  const size_t count = (superblock_.blocks() + kBitsPerPage - 1) / kBitsPerPage;
  while (pages_.size() < count) pages_.push_back(std::make_unique<Page>());
  page_dirty_.resize(pages_.size(), 0);
}

Result<void> BitmapFile::resize(Bytes disk_size) {
  const uint64_t old_size = superblock_.disk_size;
  const uint64_t old_region = superblock_.region_size();
  superblock_.disk_size = disk_size.v;
  // Regions that are larger now are hot if a part of them was.
  if (const uint64_t region = superblock_.region_size(); region != old_region) {
    const auto widen = [&](Regions& regions) {
      Regions wide;
      for (size_t i = 0; i < kRegions; ++i)
        if (regions[i]) wide.set(std::min<size_t>(i * old_region / region, kRegions - 1));
      regions = wide;
    };
    widen(superblock_.hot);
    widen(fresh_);
    stored_hot_.reset();  // by the new size nothing is stored yet
  }
  fit_pages();
  if (disk_size.v > old_size) mark(old_size, disk_size.v - old_size);
  if (options_.read_only) return {};
  VBDKIT_TRY(reserve());
  // A file with the old size is right too: what is beyond counts as changed when it is opened.
  resized_ = running_;
  superblock_wanted_ = true;
  return running_ || syncing_ ? Result<void>() : store();
}

void BitmapFile::mark(uint64_t offset, uint64_t length) {
  if (length == 0) return;
  const uint64_t region = superblock_.region_size();
  const uint64_t last = block_of(offset + length - 1);
  for (uint64_t block = block_of(offset); block <= last; ++block) {
    if (test(block)) continue;
    const size_t page = block / kBitsPerPage;
    (*pages_[page])[block % kBitsPerPage / 8] |= static_cast<uint8_t>(1u << block % 8);
    mark_page_dirty(page);
    const size_t hot = block * superblock_.granularity / region;
    superblock_.hot.set(hot);
    fresh_.set(hot);
  }
}

void BitmapFile::mark_page_dirty(size_t page) {
  if (page_dirty_[page] & kDirty) return;
  page_dirty_[page] |= kDirty;
  dirty_pages_.push_back(page);
}

bool BitmapFile::covers(uint64_t offset, uint64_t length) const {
  if (length == 0) return true;
  const uint64_t last = block_of(offset + length - 1);
  for (uint64_t block = block_of(offset); block <= last; ++block)
    if (!test(block) || page_dirty_[block / kBitsPerPage] != 0) return false;
  return true;
}

DirtyBitmap::Run BitmapFile::run_at(uint64_t offset, uint64_t end) const {
  uint64_t block = block_of(offset);
  const uint64_t limit = block_of(end - 1) + 1;
  const bool dirty = test(block);
  const uint64_t same = dirty ? UINT64_MAX : 0;
  for (++block; block < limit;) {
    uint64_t word = 0;
    if (block % 64 == 0 && block + 64 <= limit) {
      std::memcpy(&word, pages_[block / kBitsPerPage]->data() + block % kBitsPerPage / 8,
                  sizeof word);
      if (word == same) {
        block += 64;
        continue;
      }
    }
    if (test(block) != dirty) break;
    ++block;
  }
  return {std::min(block * superblock_.granularity, end) - offset, dirty};
}

// Until the pages are written the file marks more than it must, which is no harm.
Result<void> BitmapFile::keep_only(const std::vector<Range>& ranges) {
  if (options_.read_only)
    return Error(ErrorKind::kPermission, "cbt: clear " + options_.path + ": opened read-only",
                 EROFS);
  if (running_ || syncing_ || !waiting_.empty())
    return Error(ErrorKind::kBusy,
                 "cbt: clear " + options_.path + ": requests are in flight; pause the disk first",
                 EBUSY);
  for (size_t i = 0; i < pages_.size(); ++i) {
    if (std::ranges::all_of(*pages_[i], [](uint8_t byte) { return byte == 0; })) continue;
    pages_[i]->fill(0);
    mark_page_dirty(i);
  }
  for (const Range& range : ranges) mark(range.offset, range.length);
  return store();
}

}  // namespace vbdkit::drivers::cbt
