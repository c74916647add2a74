// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/cache/page_store.h"

#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/units.h"

namespace vbdkit::drivers::cache {
namespace {

constexpr uint64_t kMagic = 0x6b636143'746b6276;  // "vbktCack"
constexpr uint32_t kVersion = 1;
constexpr uint64_t kMinSlots = 256;
constexpr uint64_t kMaxSlots = uint64_t{1} << 32;

uint64_t load(uint64_t& word) {
  return std::atomic_ref<uint64_t>(word).load(std::memory_order_relaxed);
}
void store(uint64_t& word, uint64_t value) {
  std::atomic_ref<uint64_t>(word).store(value, std::memory_order_relaxed);
}

uint64_t checksum_of(const uint8_t* page, uint64_t seed) {
  return XXH3_64bits_withSeed(page, kPageSize, seed);
}

}  // namespace

struct PageStore::Header {
  uint64_t magic;
  uint64_t version;
  uint64_t slots;
  uint64_t cursor;  // pages ever inserted
};

ImageKey ImageKey::of(std::string_view identity) {
  return {XXH3_64bits(identity.data(), identity.size())};
}

ImageKey ImageKey::unique() {
  ImageKey key;
  while (getrandom(&key.hash, sizeof key.hash, 0) != sizeof key.hash) {
  }
  return key;
}

Result<std::shared_ptr<PageStore>> PageStore::create_private(uint64_t size) {
  std::shared_ptr<PageStore> pages(new PageStore);
  pages->fd_ = Fd(memfd_create("vbdkit-cache", MFD_CLOEXEC));
  if (!pages->fd_.valid()) return Error::from_errno(errno, "cache: memfd_create");
  VBDKIT_TRY(pages->initialise(size));
  VBDKIT_TRY(pages->map());
  return pages;
}

Result<std::shared_ptr<PageStore>> PageStore::open_shared(const std::string& directory,
                                                          const std::string& name, uint64_t size,
                                                          const Logger& log) {
  const std::string path = directory + "/vbdkit-cache-" + std::to_string(geteuid()) + "-" + name;
  for (;;) {
    std::shared_ptr<PageStore> pages(new PageStore);
    bool again = false;
    VBDKIT_TRY(pages->join(path, size, log, again));
    if (!again) return pages;
  }
}

// Whoever uses the file holds a shared lock on it, which goes with its last descriptor, in whatever
// way the process ends. What it consists of changes only under an exclusive one.
Result<void> PageStore::join(const std::string& path, uint64_t size, const Logger& log,
                             bool& again) {
  auto fd = Fd::open(path, O_RDWR | O_CREAT | O_NOFOLLOW, 0600);
  if (!fd) return std::move(fd).error().context("cache");
  fd_ = std::move(fd).value();
  struct stat opened {};
  if (fstat(fd_.get(), &opened) != 0) return Error::from_errno(errno, "cache: stat " + path);
  if (!S_ISREG(opened.st_mode) || opened.st_uid != geteuid() || (opened.st_mode & 077) != 0)
    return Error(ErrorKind::kPermission,
                 "cache: " + path + ": not a file of this user alone, so it is not trusted");
  if (flock(fd_.get(), LOCK_EX | LOCK_NB) == 0) {
    Header header{};
    const bool known = pread(fd_.get(), &header, sizeof header, 0) == sizeof header &&
                       header.magic == kMagic && header.version == kVersion;
    if (!known || header.slots != size / (kPageSize + 2 * sizeof(Entry)))
      VBDKIT_TRY(initialise(size));
  }
  if (flock(fd_.get(), LOCK_SH) != 0) return Error::from_errno(errno, "cache: lock " + path);
  // The last user may have removed it meanwhile.
  struct stat there {};
  again = stat(path.c_str(), &there) != 0 || there.st_ino != opened.st_ino ||
          there.st_dev != opened.st_dev;
  if (again) return {};
  path_ = path;
  VBDKIT_TRY(map());
  if (slots_ != size / (kPageSize + 2 * sizeof(Entry)))
    log.notice("cache: %s: in use with %llu MiB already; that is what it has", path.c_str(),
               static_cast<unsigned long long>(slots_ * kPageSize >> 20));
  return {};
}

Result<void> PageStore::initialise(uint64_t size) {
  const uint64_t slots = size / (kPageSize + 2 * sizeof(Entry));
  if (slots < kMinSlots || slots > kMaxSlots)
    return Error(ErrorKind::kInvalid,
                 "cache: size " + std::to_string(size) + ": expected 2M to 16T");
  const uint64_t index = align_up(slots / 2 * sizeof(Bucket), kPageSize);
  const uint64_t front = kPageSize + index;
  const Header header{kMagic, kVersion, slots, 0};
  if (ftruncate(fd_.get(), 0) != 0 ||
      ftruncate(fd_.get(), static_cast<off_t>(front + slots * kPageSize)) != 0)
    return Error::from_errno(errno, "cache: set the size");
  // The index is written through memory, where there is no way to be told of a lack of space.
  if (const int error = posix_fallocate(fd_.get(), 0, static_cast<off_t>(front)); error != 0)
    return Error::from_errno(error, "cache: reserve " + std::to_string(front) + " bytes");
  if (pwrite(fd_.get(), &header, sizeof header, 0) != sizeof header)
    return Error::from_errno(errno, "cache: write");
  return {};
}

Result<void> PageStore::map() {
  Header header{};
  struct stat st {};
  if (pread(fd_.get(), &header, sizeof header, 0) != sizeof header || fstat(fd_.get(), &st) != 0 ||
      header.magic != kMagic || header.version != kVersion || header.slots < kMinSlots ||
      header.slots > kMaxSlots)
    return Error(ErrorKind::kCorrupt, "cache: " + path_ + ": not a cache of this version");
  slots_ = header.slots;
  buckets_ = slots_ / 2;
  data_ = kPageSize + align_up(buckets_ * sizeof(Bucket), kPageSize);
  length_ = data_ + slots_ * kPageSize;
  if (static_cast<uint64_t>(st.st_size) != length_)
    return Error(ErrorKind::kCorrupt, "cache: " + path_ + ": not as long as it says");
  void* const p =
      mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd_.get(), 0);
  if (p == MAP_FAILED) return Error::from_errno(errno, "cache: map");
  memory_ = static_cast<uint8_t*>(p);
  header_ = reinterpret_cast<Header*>(memory_);
  index_ = reinterpret_cast<Bucket*>(memory_ + kPageSize);
  return {};
}

PageStore::~PageStore() {
  if (memory_ != nullptr) munmap(memory_, length_);
  if (!path_.empty() && flock(fd_.get(), LOCK_EX | LOCK_NB) == 0) unlink(path_.c_str());
}

PageStore::Address PageStore::address_of(ImageKey image, uint64_t page) const {
  const uint64_t seed = XXH3_64bits_withSeed(&page, sizeof page, image.hash);
  // Of the seed's bits, neither the bucket nor the tag may tell much of the other.
  return {(seed >> 32) % buckets_, static_cast<uint32_t>(seed) | 1u, seed};
}

bool PageStore::find(ImageKey image, uint64_t page, Page& to) const {
  const Address address = address_of(image, page);
  for (Entry& entry : index_[address.bucket]) {
    const uint64_t place = load(entry.place);
    const uint64_t slot = place & UINT32_MAX;
    if (place >> 32 != address.tag || slot >= slots_) continue;
    // The slot may be overwritten meanwhile, so what counts is the copy.
    std::memcpy(to.data(), memory_ + data_ + slot * kPageSize, kPageSize);
    if (checksum_of(to.data(), address.seed) == load(entry.checksum)) return true;
  }
  return false;
}

void PageStore::insert(ImageKey image, uint64_t first, std::span<const uint8_t> pages) {
  uint64_t count = std::min(pages.size() / kPageSize, slots_ / 4);
  uint64_t now = std::atomic_ref<uint64_t>(header_->cursor).fetch_add(count);
  const uint8_t* from = pages.data();
  while (count > 0) {
    const uint64_t slot = now % slots_;
    const uint64_t run = std::min(count, slots_ - slot);
    // By a system call, as that can fail where there is no memory; a store would kill us.
    const auto at = static_cast<off_t>(data_ + slot * kPageSize);
    if (pwrite(fd_.get(), from, run * kPageSize, at) != static_cast<ssize_t>(run * kPageSize))
      return;
    for (uint64_t i = 0; i < run; ++i, from += kPageSize) {
      const Address address = address_of(image, first++);
      index(address, static_cast<uint32_t>(slot + i), checksum_of(from, address.seed), now + i);
    }
    now += run;
    count -= run;
  }
}

// In place of the same page, or of nothing, or of what was inserted longest ago.
void PageStore::index(const Address& address, uint32_t slot, uint64_t checksum, uint64_t now) {
  Entry* chosen = nullptr;
  uint64_t oldest = 0;
  for (Entry& entry : index_[address.bucket]) {
    const uint64_t place = load(entry.place);
    if (place == 0 || place >> 32 == address.tag) {
      chosen = &entry;
      break;
    }
    const uint64_t age = (now + slots_ - (place & UINT32_MAX) % slots_) % slots_;
    if (chosen != nullptr && age <= oldest) continue;
    chosen = &entry;
    oldest = age;
  }
  store(chosen->checksum, checksum);
  store(chosen->place, uint64_t{address.tag} << 32 | slot);
}

void PageStore::remove(ImageKey image, uint64_t page) {
  const Address address = address_of(image, page);
  for (Entry& entry : index_[address.bucket])
    if (load(entry.place) >> 32 == address.tag) store(entry.place, 0);
}

}  // namespace vbdkit::drivers::cache
