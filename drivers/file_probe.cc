// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/file_probe.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdlib>

#include "base/fd.h"

namespace vbdkit::drivers {
namespace {

// Where nothing is known of direct I/O, this suits every disk that is sold.
constexpr uint32_t kSafeAlignment = 4096;

// One number of a block device's request queue; partitions have none of their own.
uint64_t queue_attribute(unsigned major, unsigned minor, const char* name, uint64_t fallback) {
  const std::string device =
      "/sys/dev/block/" + std::to_string(major) + ":" + std::to_string(minor);
  auto file = Fd::open(device + "/queue/" + name, O_RDONLY);
  if (!file) file = Fd::open(device + "/../queue/" + name, O_RDONLY);
  if (!file) return fallback;
  char text[32];
  const ssize_t n = ::read(file->get(), text, sizeof text - 1);
  if (n <= 0) return fallback;
  text[n] = '\0';
  return strtoull(text, nullptr, 10);
}

uint32_t block_size_or(uint64_t value, uint32_t fallback) {
  return value >= 512 && value <= (1u << 20) && std::has_single_bit(value)
             ? static_cast<uint32_t>(value)
             : fallback;
}

void set_alignment(FileFacts& facts, const struct statx& st) {
#ifdef STATX_DIOALIGN
  if (st.stx_mask & STATX_DIOALIGN) {
    facts.memory_alignment = st.stx_dio_mem_align;
    facts.offset_alignment = st.stx_dio_offset_align;
    return;
  }
#endif
  facts.offset_alignment = facts.block_device ? facts.logical_block : kSafeAlignment;
  facts.memory_alignment = facts.offset_alignment;
}

void probe_block_device(FileFacts& facts, int fd, const struct statx& st) {
  int logical = 0;
  unsigned physical = 0;
  if (ioctl(fd, BLKSSZGET, &logical) == 0)
    facts.logical_block = block_size_or(static_cast<uint64_t>(std::max(logical, 0)), 512);
  if (ioctl(fd, BLKPBSZGET, &physical) == 0)
    facts.physical_block = block_size_or(physical, facts.logical_block);
  const unsigned major = st.stx_rdev_major;
  const unsigned minor = st.stx_rdev_minor;
  if (queue_attribute(major, minor, "discard_max_bytes", 0) > 0)
    facts.discard_granularity =
        block_size_or(queue_attribute(major, minor, "discard_granularity", 0), facts.logical_block);
  facts.rotational = queue_attribute(major, minor, "rotational", 0) != 0;
}

void probe_regular_file(FileFacts& facts, int fd, const struct statx& st) {
  facts.physical_block = std::min(block_size_or(st.stx_blksize, 512), 4096u);
  // Beyond the end of the file there is nothing to punch, so this changes nothing; but a file
  // system that cannot do it says so. A descriptor without write access answers EBADF, and needs
  // no discard.
  const auto end = static_cast<off_t>(align_up(st.stx_size, facts.physical_block));
  if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, end,
                static_cast<off_t>(facts.physical_block)) == 0)
    facts.discard_granularity = facts.physical_block;
  facts.rotational = queue_attribute(st.stx_dev_major, st.stx_dev_minor, "rotational", 0) != 0;
  struct statfs fs {};
  if (fstatfs(fd, &fs) != 0) return;
  facts.transfers_copy = fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC;
  facts.cached_writes_copy = fs.f_type == EXT4_SUPER_MAGIC;
}

}  // namespace

Result<FileFacts> probe_file(int fd, const std::string& what) {
  struct statx st {};
  unsigned mask = STATX_BASIC_STATS;
#ifdef STATX_DIOALIGN
  mask |= STATX_DIOALIGN;
#endif
  if (statx(fd, "", AT_EMPTY_PATH, mask, &st) != 0) return Error::from_errno(errno, what);
  FileFacts facts;
  if (S_ISDIR(st.stx_mode)) return Error::from_errno(EISDIR, what);
  if (S_ISBLK(st.stx_mode)) {
    facts.block_device = true;
    probe_block_device(facts, fd, st);
  } else if (S_ISREG(st.stx_mode)) {
    probe_regular_file(facts, fd, st);
  } else {
    return Error(ErrorKind::kInvalid, what + ": neither a regular file nor a block device");
  }
  set_alignment(facts, st);
  return facts;
}

Result<Bytes> probe_size(int fd, bool block_device, const std::string& what) {
  if (block_device) {
    uint64_t size = 0;
    if (ioctl(fd, BLKGETSIZE64, &size) != 0) return Error::from_errno(errno, what);
    return Bytes{size};
  }
  const off_t end = lseek(fd, 0, SEEK_END);
  if (end < 0) return Error::from_errno(errno, what);
  return Bytes{static_cast<uint64_t>(end)};
}

}  // namespace vbdkit::drivers
