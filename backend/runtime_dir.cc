// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/runtime_dir.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <utility>

namespace vbdkit {

namespace {

constexpr std::array kFiles = {"pid", "record.json", "record.json.new", "qmp.sock", "nbd.sock"};

// An open-file-description lock: asking for it (F_OFD_GETLK) disturbs nobody who takes it.
struct flock whole_file() {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  return lock;
}

Result<void> write_all(int fd, std::string_view text, const std::string& what) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Error::from_errno(errno, "write " + what);
    text.remove_prefix(static_cast<size_t>(n));
  }
  return {};
}

}  // namespace

Result<RuntimeDir> RuntimeDir::claim(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) < 0 && errno != EEXIST)
    return Error::from_errno(errno, "mkdir " + path);
  VBDKIT_ASSIGN(Fd dir, Fd::open(path, O_PATH | O_DIRECTORY));
  const std::string pid_file = path + "/pid";
  VBDKIT_ASSIGN(Fd lock, Fd::open(pid_file, O_RDWR | O_CREAT, 0600));
  struct flock whole = whole_file();
  if (::fcntl(lock.get(), F_OFD_SETLK, &whole) < 0) {
    if (errno != EAGAIN) return Error::from_errno(errno, "lock " + pid_file);
    return Error(ErrorKind::kBusy, path + ": another instance lives there", EBUSY);
  }
  if (::ftruncate(lock.get(), 0) < 0) return Error::from_errno(errno, "truncate " + pid_file);
  VBDKIT_TRY(write_all(lock.get(), std::to_string(::getpid()) + "\n", pid_file));
  return RuntimeDir(path, std::move(dir), std::move(lock));
}

RuntimeDir::RuntimeDir(RuntimeDir&& o) noexcept
    : path_(std::exchange(o.path_, {})), dir_(std::move(o.dir_)), lock_(std::move(o.lock_)) {}

RuntimeDir::~RuntimeDir() {
  if (path_.empty()) return;
  for (const char* name : kFiles) ::unlinkat(dir_.get(), name, 0);
  ::rmdir(path_.c_str());
}

Result<void> RuntimeDir::write_record(std::string_view json) const {
  const Fd fd(
      ::openat(dir_.get(), "record.json.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd.valid()) return Error::from_errno(errno, "open " + file("record.json.new"));
  VBDKIT_TRY(write_all(fd.get(), json, file("record.json.new")));
  if (::renameat(dir_.get(), "record.json.new", dir_.get(), "record.json") < 0)
    return Error::from_errno(errno, "rename " + file("record.json.new"));
  return {};
}

Result<void> RuntimeDir::change_owner(uid_t uid, gid_t gid) const {
  if (::chown(path_.c_str(), uid, gid) < 0) return Error::from_errno(errno, "chown " + path_);
  for (const char* name : kFiles) {
    if (::lchown(file(name).c_str(), uid, gid) < 0 && errno != ENOENT)
      return Error::from_errno(errno, "chown " + file(name));
  }
  return {};
}

bool RuntimeDir::alive(const std::string& path) {
  const auto lock = Fd::open(path + "/pid", O_RDONLY);
  struct flock whole = whole_file();
  return lock && ::fcntl(lock->get(), F_OFD_GETLK, &whole) == 0 && whole.l_type != F_UNLCK;
}

void RuntimeDir::clean(const std::string& path) {
  for (const char* name : kFiles) ::unlink((path + "/" + name).c_str());
  ::rmdir(path.c_str());
}

}  // namespace vbdkit
