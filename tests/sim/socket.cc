// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/socket.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

namespace vbdkit::sim {
namespace {

Result<sockaddr_un> address(const std::string& path) {
  sockaddr_un addr{};
  addr.sun_family = AF_UNIX;
  if (path.size() >= sizeof addr.sun_path)
    return Error(ErrorKind::kInvalid, "simxen: socket path too long: " + path);
  std::memcpy(addr.sun_path, path.c_str(), path.size() + 1);
  return addr;
}

Result<Fd> make_socket() {
  Fd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return Error::from_errno(errno, "simxen: socket");
  return fd;
}

}  // namespace

Result<Fd> listen_socket(const std::string& path) {
  VBDKIT_ASSIGN(sockaddr_un addr, address(path));
  VBDKIT_ASSIGN(Fd fd, make_socket());
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&addr), sizeof addr) != 0 ||
      ::listen(fd.get(), 128) != 0)
    return Error::from_errno(errno, "simxen: listen on " + path);
  return fd;
}

Result<Fd> connect_socket(const std::string& path) {
  VBDKIT_ASSIGN(sockaddr_un addr, address(path));
  VBDKIT_ASSIGN(Fd fd, make_socket());
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&addr), sizeof addr) != 0)
    return Error::from_errno(errno, "simxen: connect to " + path);
  return fd;
}

Result<void> send_request(const Fd& socket, const Request& request) {
  ssize_t n;
  do {
    n = ::send(socket.get(), &request, sizeof request, MSG_NOSIGNAL);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return Error::from_errno(errno, "simxen: ask the broker");
  return {};
}

std::optional<Request> receive_request(const Fd& socket) {
  Request request;
  ssize_t n;
  do {
    n = ::recv(socket.get(), &request, sizeof request, 0);
  } while (n < 0 && errno == EINTR);
  if (n != sizeof request) return std::nullopt;
  return request;
}

Result<void> send_reply(const Fd& socket, const Reply& reply, const std::vector<int>& fds) {
  iovec iov{const_cast<Reply*>(&reply), sizeof reply};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxReplyFds)] = {};
  msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  if (!fds.empty()) {
    msg.msg_control = control;
    msg.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(c), fds.data(), sizeof(int) * fds.size());
  }
  if (::sendmsg(socket.get(), &msg, MSG_NOSIGNAL) < 0)
    return Error::from_errno(errno, "simxen: answer");
  return {};
}

Result<ReplyWithFds> receive_reply(const Fd& socket) {
  ReplyWithFds out;
  iovec iov{&out.reply, sizeof out.reply};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxReplyFds)] = {};
  msghdr msg{};
  msg.msg_iov = &iov;
  msg.msg_iovlen = 1;
  msg.msg_control = control;
  msg.msg_controllen = sizeof control;
  ssize_t n;
  do {
    n = ::recvmsg(socket.get(), &msg, MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n < 0) return Error::from_errno(errno, "simxen: the broker's answer");
  for (cmsghdr* c = CMSG_FIRSTHDR(&msg); c != nullptr; c = CMSG_NXTHDR(&msg, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof fd);
      out.fds.emplace_back(fd);
    }
  }
  if (n != sizeof out.reply) return Error(ErrorKind::kIo, "simxen: the broker has gone", ENODEV);
  return out;
}

}  // namespace vbdkit::sim
