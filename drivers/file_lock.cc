// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/file_lock.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cctype>
#include <cstdio>
#include <cstring>
#include <memory>

#include "base/fd.h"

namespace vbdkit::drivers {
namespace {

// Bytes of QEMU's scheme.
constexpr off_t kHoldsRead = 100;
constexpr off_t kHoldsWrite = 101;
constexpr off_t kHoldsResize = 103;
constexpr off_t kDeniesRead = 200;
constexpr off_t kDeniesWrite = 201;
constexpr off_t kDeniesResize = 203;
// Ours, beyond what QEMU has.
constexpr off_t kMerging = 300;
constexpr off_t kYields = 301;

// What a mode says about itself (read-locked), and what it may not find with others.
struct LockBytes {
  std::array<off_t, 5> hold;  // ascending; the last may be repeated
  std::array<off_t, 4> conflict;
};

constexpr LockBytes kReaderBytes = {
    {kHoldsRead, kDeniesWrite, kDeniesResize, kDeniesResize, kDeniesResize},
    {kHoldsWrite, kHoldsResize, kHoldsResize, kHoldsResize}};
constexpr LockBytes kSharedReaderBytes = {
    {kHoldsRead, kHoldsRead, kHoldsRead, kHoldsRead, kHoldsRead},
    {kDeniesRead, kDeniesRead, kDeniesRead, kDeniesRead}};
constexpr LockBytes kSharedWriterBytes = {
    {kHoldsRead, kHoldsWrite, kHoldsWrite, kHoldsWrite, kHoldsWrite},
    {kDeniesRead, kDeniesWrite, kDeniesWrite, kDeniesWrite}};
// Not kHoldsRead: by that a coalescer knows those who do not yield to it.
constexpr LockBytes kYieldingReaderBytes = {{kYields, kYields, kYields, kYields, kYields},
                                            {kDeniesRead, kDeniesRead, kDeniesRead, kDeniesRead}};
constexpr LockBytes kCoalescerBytes = {
    {kHoldsWrite, kHoldsResize, kDeniesWrite, kDeniesResize, kDeniesResize},
    {kHoldsRead, kHoldsWrite, kHoldsResize, kDeniesWrite}};

const LockBytes& bytes_of(LockMode mode) {
  switch (mode) {
    case LockMode::kSharedReader:
      return kSharedReaderBytes;
    case LockMode::kSharedWriter:
      return kSharedWriterBytes;
    case LockMode::kYieldingReader:
      return kYieldingReaderBytes;
    case LockMode::kCoalescer:
      return kCoalescerBytes;
    case LockMode::kReader:
    case LockMode::kWriter:
      break;
  }
  return kReaderBytes;
}

struct flock range(short type, off_t start, off_t length) {
  struct flock l {};
  l.l_type = type;
  l.l_whence = SEEK_SET;
  l.l_start = start;
  l.l_len = length;  // 0: to the end, wherever that will be
  return l;
}

// The kernel does not tell who holds such a lock (its pid is shown as -1), but
// /proc/PID/fdinfo/FD has a "lock:" line for each descriptor that does.
bool descriptor_holds_lock(const std::string& proc, const char* fd_name) {
  std::unique_ptr<FILE, int (*)(FILE*)> info(fopen((proc + "/fdinfo/" + fd_name).c_str(), "re"),
                                             fclose);
  if (!info) return false;
  char line[256];
  while (fgets(line, sizeof line, info.get()) != nullptr)
    if (strncmp(line, "lock:", 5) == 0) return true;
  return false;
}

bool process_holds_lock(const std::string& proc, const struct stat& image) {
  std::unique_ptr<DIR, int (*)(DIR*)> fds(opendir((proc + "/fd").c_str()), closedir);
  if (!fds) return false;
  while (const dirent* entry = readdir(fds.get())) {
    struct stat st;
    if (fstatat(dirfd(fds.get()), entry->d_name, &st, 0) != 0) continue;
    if (st.st_dev == image.st_dev && st.st_ino == image.st_ino &&
        descriptor_holds_lock(proc, entry->d_name))
      return true;
  }
  return false;
}

std::string command_name(const std::string& proc) {
  auto fd = Fd::open(proc + "/comm", O_RDONLY);
  char name[64];
  const ssize_t n = fd ? ::read(fd->get(), name, sizeof name) : 0;
  if (n <= 1) return {};
  return " (" + std::string(name, static_cast<size_t>(n - 1)) + ")";
}

std::string holder_of(int fd) {
  constexpr const char* kUnknown = "another process";
  struct stat image;
  if (fstat(fd, &image) != 0) return kUnknown;
  std::unique_ptr<DIR, int (*)(DIR*)> processes(opendir("/proc"), closedir);
  if (!processes) return kUnknown;
  const std::string self = std::to_string(getpid());
  bool held_here = false;
  while (const dirent* entry = readdir(processes.get())) {
    if (!isdigit(static_cast<unsigned char>(entry->d_name[0]))) continue;
    const std::string proc = std::string("/proc/") + entry->d_name;
    if (!process_holds_lock(proc, image)) continue;
    if (entry->d_name != self) return "process " + std::string(entry->d_name) + command_name(proc);
    held_here = true;
  }
  return held_here ? "this process" : kUnknown;
}

Error busy(int fd, const std::string& path) {
  return Error(ErrorKind::kBusy, "lock " + path + ": in use by " + holder_of(fd), EBUSY);
}

Error cannot(int e, const std::string& path) {
  return Error::from_errno(e, "lock " + path + " (locking=off does without)");
}

Result<void> set(int fd, const std::string& path, struct flock l) {
  int r;
  do {
    r = fcntl(fd, F_OFD_SETLK, &l);
  } while (r != 0 && errno == EINTR);
  if (r == 0) return {};
  if (errno == EAGAIN || errno == EACCES) return busy(fd, path);
  return cannot(errno, path);
}

// First say what this opener does, then look at the others: of two that race, at least one sees
// the other.
Result<void> lock_bytes(int fd, const std::string& path, const LockBytes& bytes) {
  off_t from = 0;
  for (off_t byte : bytes.hold) {
    VBDKIT_TRY(set(fd, path, range(F_RDLCK, byte, 1)));
    // What an earlier lock had in between.
    if (byte > from) VBDKIT_TRY(set(fd, path, range(F_UNLCK, from, byte - from)));
    from = byte + 1;
  }
  VBDKIT_TRY(set(fd, path, range(F_UNLCK, from, 0)));
  for (off_t byte : bytes.conflict) {
    struct flock l = range(F_WRLCK, byte, 1);
    if (fcntl(fd, F_OFD_GETLK, &l) != 0) return cannot(errno, path);
    if (l.l_type != F_UNLCK) return busy(fd, path);
  }
  return {};
}

}  // namespace

Result<void> lock_image(int fd, const std::string& path, LockMode mode) {
  if (mode == LockMode::kWriter) return set(fd, path, range(F_WRLCK, 0, 0));
  auto locked = lock_bytes(fd, path, bytes_of(mode));
  if (!locked) unlock_image(fd);
  return locked;
}

Result<void> mark_merging(int fd, const std::string& path) {
  return set(fd, path, range(F_WRLCK, kMerging, 1));
}

bool is_merging(const std::string& path) {
  const auto fd = Fd::open(path, O_RDONLY | O_NONBLOCK);
  struct flock l = range(F_RDLCK, kMerging, 1);
  return fd && fcntl(fd->get(), F_OFD_GETLK, &l) == 0 && l.l_type == F_WRLCK &&
         l.l_start == kMerging && l.l_len == 1;
}

Result<void> check_name(int fd, const std::string& path) {
  struct stat open {};
  struct stat named {};
  if (::fstat(fd, &open) == 0 && ::stat(path.c_str(), &named) == 0 && open.st_dev == named.st_dev &&
      open.st_ino == named.st_ino)
    return {};
  return Error(ErrorKind::kBusy, "lock " + path + ": has just been given to another file", EBUSY);
}

void unlock_image(int fd) {
  struct flock l = range(F_UNLCK, 0, 0);
  fcntl(fd, F_OFD_SETLK, &l);
}

}  // namespace vbdkit::drivers
