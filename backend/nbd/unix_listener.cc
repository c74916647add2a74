// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/nbd/unix_listener.h"

#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>

namespace vbdkit::nbd {
namespace {

constexpr int kBacklog = 128;
constexpr int kGreetingTimeoutMs = 2000;

Result<Fd> new_socket(const std::string& what) {
  Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return Error::from_errno(errno, what);
  return fd;
}

// True where somebody serves the socket at `address`. That a connection is accepted proves nothing:
// the socket of a killed process lives on until the kernel has taken down its io_uring, which may
// hold an accept. A server greets; a dead one's connections are reset when its socket goes.
Result<bool> answers(const sockaddr_un& address, const std::string& what) {
  VBDKIT_ASSIGN(Fd probe, new_socket(what));
  if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    if (errno == ECONNREFUSED || errno == ENOENT) return false;
    return Error::from_errno(errno, what);
  }
  pollfd p{.fd = probe.get(), .events = POLLIN, .revents = 0};
  if (::poll(&p, 1, kGreetingTimeoutMs) == 0) return true;  // alive, without a place for one more
  char c;
  return ::recv(probe.get(), &c, 1, MSG_DONTWAIT) > 0;
}

// Removes what a dead server left; an error where something lives at the path.
Result<void> clear_path(const sockaddr_un& address, const std::string& what) {
  struct stat st {};
  if (::lstat(address.sun_path, &st) != 0) {
    if (errno == ENOENT) return {};
    return Error::from_errno(errno, what);
  }
  if (!S_ISSOCK(st.st_mode))
    return Error(ErrorKind::kInvalid, what + ": exists and is not a socket", EEXIST);
  VBDKIT_ASSIGN(const bool alive, answers(address, what));
  if (alive) return Error(ErrorKind::kBusy, what + ": another server listens there", EADDRINUSE);
  if (::unlink(address.sun_path) != 0 && errno != ENOENT) return Error::from_errno(errno, what);
  return {};
}

}  // namespace

Result<UnixListener> UnixListener::create(const std::string& path) {
  const std::string what = "nbd: listen on " + path;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path)
    return Error(ErrorKind::kInvalid,
                 what + ": a socket's path has 1 to " +
                     std::to_string(sizeof address.sun_path - 1) + " bytes",
                 ENAMETOOLONG);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);

  // Two servers that find the same dead socket must not both replace it: the directory's lock makes
  // looking and binding one step. It is released when `directory` closes.
  const size_t slash = path.rfind('/');
  const std::string parent = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  Fd directory(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid() || ::flock(directory.get(), LOCK_EX) != 0)
    return Error::from_errno(errno, what);

  VBDKIT_TRY(clear_path(address, what));
  VBDKIT_ASSIGN(Fd fd, new_socket(what));
  // The file takes its mode from the socket's inode (less the umask), so it is never open to
  // others.
  if (::fchmod(fd.get(), S_IRUSR | S_IWUSR) != 0 ||
      ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return Error::from_errno(errno, what);
  struct stat st {};
  if (::lstat(path.c_str(), &st) != 0) return Error::from_errno(errno, what);
  const int error = ::listen(fd.get(), kBacklog) == 0 ? 0 : errno;
  UnixListener listener(std::move(fd), path, st.st_dev, st.st_ino);
  if (error != 0) return Error::from_errno(error, what);
  return listener;
}

void UnixListener::remove_file() {
  if (path_.empty()) return;
  struct stat st {};
  if (::lstat(path_.c_str(), &st) == 0 && st.st_dev == device_ && st.st_ino == inode_)
    ::unlink(path_.c_str());
  path_.clear();
}

}  // namespace vbdkit::nbd
