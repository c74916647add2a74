// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/readiness.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "base/fd.h"

namespace vbdkit::storage {

Result<void> announce_on_fd(int fd) {
  Fd owned(fd);
  if (::write(fd, "\n", 1) != 1) return Error::from_errno(errno, "write to the --ready-fd");
  return {};
}

Result<void> announce_to_systemd() {
  const char* path = std::getenv("NOTIFY_SOCKET");
  if (path == nullptr) return {};
  const std::string what = std::string("notify ") + path;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const size_t length = std::strlen(path);
  if (length < 2 || length >= sizeof address.sun_path)
    return Error(ErrorKind::kInvalid, what + ": not a socket's address", EINVAL);
  std::memcpy(address.sun_path, path, length);
  if (path[0] == '@') address.sun_path[0] = '\0';  // the abstract namespace

  Fd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return Error::from_errno(errno, what);
  constexpr std::string_view kReady = "READY=1";
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length);
  if (::sendto(socket.get(), kReady.data(), kReady.size(), MSG_NOSIGNAL,
               reinterpret_cast<const sockaddr*>(&address), size) < 0)
    return Error::from_errno(errno, what);
  return {};
}

}  // namespace vbdkit::storage
