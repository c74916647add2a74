// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/chain/image_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <ctime>

#include "drivers/file_probe.h"

namespace vbdkit::drivers {

namespace {

constexpr int64_t kNanoseconds = 1'000'000'000;

template <typename Time>
int64_t nanoseconds(const Time& time) {
  return int64_t{time.tv_sec} * kNanoseconds + int64_t{time.tv_nsec};
}

}  // namespace

bool same_file(const std::string& a, const std::string& b) {
  struct stat one {};
  struct stat other {};
  return ::stat(a.c_str(), &one) == 0 && ::stat(b.c_str(), &other) == 0 &&
         one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

Result<FileStamp> FileStamp::of(const std::string& path) {
  // Another host may have written it a moment ago: what the client of a network file system knows
  // is not good enough.
  struct statx st {};
  timespec now{};
  if (statx(AT_FDCWD, path.c_str(), AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &st) != 0)
    return Error::from_errno(errno, "open " + path);
  FileStamp stamp;
  stamp.identity = {makedev(st.stx_dev_major, st.stx_dev_minor), st.stx_ino};
  stamp.size = st.stx_size;
  stamp.modified = nanoseconds(st.stx_mtime);
  stamp.changed = nanoseconds(st.stx_ctime);
  stamp.settled = S_ISREG(st.stx_mode) && clock_gettime(CLOCK_REALTIME_COARSE, &now) == 0 &&
                  nanoseconds(now) > stamp.changed;
  return stamp;
}

Result<ImageFile> ImageFile::open(const std::string& path, Mode mode) {
  // O_NONBLOCK: a FIFO must not make us wait for its other end.
  const int access = mode == Mode::kRead ? O_RDONLY : O_RDWR;
  Result<Fd> opened = Fd::open(path, access | O_NONBLOCK);
  if (mode == Mode::kCreate) {
    struct stat st {};
    if (opened && fstat(opened->get(), &st) == 0 && !S_ISBLK(st.st_mode))
      return Error::from_errno(EEXIST, "create " + path);
    if (!opened && opened.error().sys_errno() == ENOENT)
      opened = Fd::open(path, O_RDWR | O_CREAT | O_EXCL, 0644);
  }
  VBDKIT_ASSIGN(Fd fd, std::move(opened));
  ImageFile file(std::move(fd), path);
  struct stat st {};
  if (fstat(file.fd_.get(), &st) != 0) return Error::from_errno(errno, "stat " + path);
  if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
    return Error(ErrorKind::kInvalid,
                 "open " + path + ": neither a regular file nor a block device");
  file.block_device_ = S_ISBLK(st.st_mode);
  file.identity_ = {st.st_dev, st.st_ino};
  file.modified_ = st.st_mtim.tv_sec;
  return file;
}

Result<Bytes> ImageFile::size() const {
  return probe_size(fd_.get(), block_device_, "size of " + path_);
}

Result<size_t> ImageFile::read_some(uint64_t offset, std::span<std::byte> to) const {
  size_t total = 0;
  while (total < to.size()) {
    const ssize_t n =
        pread(fd_.get(), to.data() + total, to.size() - total, static_cast<off_t>(offset + total));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Error::from_errno(errno, "read " + path_);
    if (n == 0) break;
    total += static_cast<size_t>(n);
  }
  return total;
}

Result<void> ImageFile::read(uint64_t offset, std::span<std::byte> to) const {
  VBDKIT_ASSIGN(const size_t n, read_some(offset, to));
  if (n == to.size()) return {};
  return Error(ErrorKind::kCorrupt, path_ + ": ends at byte " + std::to_string(offset + n) +
                                        ", inside what is read from " + std::to_string(offset) +
                                        " to " + std::to_string(offset + to.size()));
}

Result<void> ImageFile::write(uint64_t offset, std::span<const std::byte> from) {
  while (!from.empty()) {
    const ssize_t n = pwrite(fd_.get(), from.data(), from.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Error::from_errno(errno, "write " + path_);
    from = from.subspan(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return {};
}

Result<void> ImageFile::resize(Bytes size) {
  if (block_device_) return {};
  if (ftruncate(fd_.get(), static_cast<off_t>(size.v)) != 0)
    return Error::from_errno(errno, "resize " + path_);
  return {};
}

Result<void> ImageFile::flush() {
  if (ignore_flush_) return {};
  if (fdatasync(fd_.get()) != 0) return Error::from_errno(errno, "flush " + path_);
  return {};
}

}  // namespace vbdkit::drivers
