// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/control/unix_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>

namespace vbdkit::control {

namespace {

Result<sockaddr_un> address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return Error(ErrorKind::kInvalid, "socket " + path + ": the path is longer than " +
                                          std::to_string(sizeof address.sun_path - 1) + " bytes");
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

}  // namespace

Result<Fd> connect_unix(const std::string& path) {
  VBDKIT_ASSIGN(const sockaddr_un to, address(path));
  Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid() ||
      ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) < 0)
    return Error::from_errno(errno, "connect to " + path);
  return socket;
}

Result<Fd> listen_unix(const std::string& path, mode_t mode) {
  VBDKIT_ASSIGN(const sockaddr_un at, address(path));
  Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return Error::from_errno(errno, "socket " + path);
  // Linux gives the file the socket's own mode, so it is never there with another one.
  if (::fchmod(socket.get(), mode) < 0) return Error::from_errno(errno, "chmod " + path);
  ::unlink(path.c_str());
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at) < 0)
    return Error::from_errno(errno, "bind " + path);
  if (::listen(socket.get(), 16) < 0) return Error::from_errno(errno, "listen " + path);
  return socket;
}

}  // namespace vbdkit::control
