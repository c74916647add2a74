// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/raw_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>

namespace vbdkit::drivers {
namespace {

// O_NONBLOCK keeps the opening of a FIFO from waiting for its other end; left on, io_uring would
// answer EAGAIN instead of waiting for the disk.
Result<Fd> open_descriptor(const std::string& path, int flags) {
  VBDKIT_ASSIGN(Fd fd, Fd::open(path, flags | O_NONBLOCK));
  if (fcntl(fd.get(), F_SETFL, flags & ~(O_ACCMODE | O_CLOEXEC)) != 0)
    return Error::from_errno(errno, "open " + path);
  return fd;
}

}  // namespace

Result<std::unique_ptr<RawFile>> RawFile::open(const std::string& path, bool read_only, bool direct,
                                               uint32_t align) {
  const int flags = read_only ? O_RDONLY : O_RDWR;
  auto fd = open_descriptor(path, flags | (direct ? O_DIRECT : 0));
  if (direct && !fd && fd.error().sys_errno() == EINVAL) {
    direct = false;
    fd = open_descriptor(path, flags);
  }
  if (!fd) return std::move(fd).error();
  auto file = std::make_unique<RawFile>();
  file->fd = std::move(fd).value();
  file->read_only = read_only;
  VBDKIT_ASSIGN(file->facts, probe_file(file->fd.get(), "open " + path));
  const FileFacts& facts = file->facts;
  if (direct && facts.offset_alignment != 0) {
    file->block_mask = std::max(facts.offset_alignment, align) - 1;
    file->memory_mask = std::max({facts.memory_alignment, align, 1u}) - 1;
  } else if (direct) {
    file->leave_direct();
  }
  return file;
}

void RawFile::leave_direct() {
  const int flags = fcntl(fd.get(), F_GETFL);
  if (flags >= 0) fcntl(fd.get(), F_SETFL, flags & ~O_DIRECT);
  memory_mask = 0;
  block_mask = 0;
}

bool RawFile::same_as(const RawFile& other) const {
  struct stat a;
  struct stat b;
  if (fstat(fd.get(), &a) != 0 || fstat(other.fd.get(), &b) != 0) return false;
  if (S_ISBLK(a.st_mode) && S_ISBLK(b.st_mode)) return a.st_rdev == b.st_rdev;
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

}  // namespace vbdkit::drivers
