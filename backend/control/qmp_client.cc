// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/control/qmp_client.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>

#include "backend/control/unix_socket.h"

namespace vbdkit::control {

namespace {

Result<void> wait_for(int fd, short events, QmpClient::Clock::time_point deadline) {
  for (;;) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - QmpClient::Clock::now());
    pollfd poll_fd{fd, events, 0};
    const int n = ::poll(&poll_fd, 1, static_cast<int>(std::max<int64_t>(0, left.count())));
    if (n > 0) return {};
    if (n == 0) return Error(ErrorKind::kTimedOut, "QMP: no answer in time", ETIMEDOUT);
    if (errno != EINTR) return Error::from_errno(errno, "QMP: poll");
  }
}

}  // namespace

Result<QmpClient> QmpClient::connect(const std::string& path, Clock::duration timeout) {
  VBDKIT_ASSIGN(Fd socket, connect_unix(path));
  auto client = adopt(std::move(socket), timeout);
  if (!client) return std::move(client).error().context(path);
  return client;
}

Result<QmpClient> QmpClient::adopt(Fd socket, Clock::duration timeout) {
  const auto deadline = Clock::now() + timeout;
  QmpClient client(std::move(socket));
  VBDKIT_ASSIGN(const Json greeting, client.receive(deadline));
  if (greeting.member("QMP").is_null()) return Error(ErrorKind::kProtocol, "no QMP greeting");
  VBDKIT_ASSIGN(const Json empty, client.execute("qmp_capabilities", {}, deadline - Clock::now()));
  return client;
}

Result<Json> QmpClient::execute(std::string_view command, std::string_view arguments,
                                Clock::duration timeout) {
  const auto deadline = Clock::now() + timeout;
  return answer(write(qmp_command(command, arguments), deadline), deadline);
}

Result<void> QmpClient::send(std::string_view command, std::string_view arguments,
                             Clock::duration timeout) {
  return write(qmp_command(command, arguments), Clock::now() + timeout);
}

Result<Json> QmpClient::answer(Clock::duration timeout) {
  return answer(Result<void>(), Clock::now() + timeout);
}

// A peer that ended has perhaps said why before, though nothing could be sent any more.
Result<Json> QmpClient::answer(const Result<void>& sent, Clock::time_point deadline) {
  for (;;) {
    auto received = receive(deadline);
    if (!received) return sent ? std::move(received).error() : sent.error();
    Json& message = *received;
    if (message.member("event").string() == "X_VBDKIT_FAILED")
      return Error(ErrorKind::kIo, message.member("data").member("desc").string().value_or(""));
    if (!message.member("event").is_null()) {
      events_.push_back(std::move(message));
      continue;
    }
    const Json error = message.member("error");
    if (!error.is_null()) return qmp_error(error);
    return message.member("return");
  }
}

Result<Json> QmpClient::event(Clock::duration timeout) {
  if (events_.empty()) return receive(Clock::now() + timeout);
  Json oldest = std::move(events_.front());
  events_.pop_front();
  return oldest;
}

Result<Json> QmpClient::receive(Clock::time_point deadline) {
  for (;;) {
    const JsonFramer::Frame frame = framer_.next();
    if (frame.kind == JsonFramer::Kind::kMessage) return Json::parse(frame.text);
    if (frame.kind != JsonFramer::Kind::kMore)
      return Error(ErrorKind::kProtocol, "QMP: the peer sent something else");
    VBDKIT_TRY(wait_for(socket_.get(), POLLIN, deadline));
    std::array<char, 16384> bytes;
    const ssize_t n = ::recv(socket_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (n == 0) return Error(ErrorKind::kIo, "QMP: the peer closed the connection", EPIPE);
    if (n > 0) {
      framer_.append({bytes.data(), static_cast<size_t>(n)});
    } else if (errno != EAGAIN && errno != EINTR) {
      return Error::from_errno(errno, "QMP: receive");
    }
  }
}

Result<void> QmpClient::write(std::string_view text, Clock::time_point deadline) {
  while (!text.empty()) {
    const ssize_t n = ::send(socket_.get(), text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n >= 0) {
      text.remove_prefix(static_cast<size_t>(n));
    } else if (errno == EAGAIN) {
      VBDKIT_TRY(wait_for(socket_.get(), POLLOUT, deadline));
    } else if (errno != EINTR) {
      return Error::from_errno(errno, "QMP: send");
    }
  }
  return {};
}

Error qmp_error(const Json& error) {
  const std::string kind = error.member("class").string().value_or("");
  return Error(kind == "DeviceNotFound"    ? ErrorKind::kNotFound
               : kind == "CommandNotFound" ? ErrorKind::kUnsupported
                                           : ErrorKind::kIo,
               error.member("desc").string().value_or("an error without a description"));
}

std::string qmp_command(std::string_view command, std::string_view arguments) {
  JsonWriter w;
  w.begin_object().field("execute", command);
  if (!arguments.empty()) w.key("arguments").raw(arguments);
  w.end_object();
  return w.take() + "\n";
}

}  // namespace vbdkit::control
