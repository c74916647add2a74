// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/control/channel.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>

namespace vbdkit::control {

Result<std::unique_ptr<Channel>> Channel::create(io::Reactor& reactor, Fd socket,
                                                 Handlers handlers) {
  std::unique_ptr<Channel> channel(new Channel(reactor, std::move(socket), std::move(handlers)));
  VBDKIT_TRY(channel->start());
  return channel;
}

Channel::Channel(io::Reactor& reactor, Fd socket, Handlers handlers)
    : reactor_(reactor),
      socket_(std::move(socket)),
      handlers_(std::make_shared<const Handlers>(std::move(handlers))),
      self_(std::make_shared<Channel*>(this)) {}

Channel::~Channel() = default;

Result<void> Channel::start() {
  const int flags = ::fcntl(socket_.get(), F_GETFL);
  if (flags < 0 || ::fcntl(socket_.get(), F_SETFL, flags | O_NONBLOCK) < 0)
    return Error::from_errno(errno, "control: set a socket non-blocking");
  update_watch();
  return {};
}

void Channel::update_watch() {
  if (!may_read() || end_of_input_) {
    read_watch_.reset();
  } else if (!read_watch_) {
    read_watch_ = reactor_.watch(socket_.get(), [this] { on_readable(); });
  }
}

void Channel::on_readable() {
  std::array<char, 8192> bytes;
  const ssize_t n = ::recv(socket_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
  if (n < 0) {
    if (errno == EAGAIN || errno == EINTR) return;
    return fail("the peer reset the connection");
  }
  if (n == 0) {
    end_of_input_ = true;
  } else {
    framer_.append({bytes.data(), static_cast<size_t>(n)});
  }
  dispatch();
}

void Channel::dispatch() {
  const std::weak_ptr<Channel*> alive = self_;
  const auto handlers = handlers_;
  while (may_read()) {
    JsonFramer::Frame frame = framer_.next();
    if (frame.kind == JsonFramer::Kind::kMore) {
      if (end_of_input_) return fail("the peer closed the connection");
      break;
    }
    if (frame.kind == JsonFramer::Kind::kTooLong)
      return fail("the peer sent a message beyond the limits");
    handlers->message(std::move(frame));
    if (alive.expired()) return;
  }
  update_watch();
}

void Channel::send(std::string_view text) {
  if (failed_ || peer_deaf_) return;
  if (unsent_.empty()) {
    const ssize_t n = ::send(socket_.get(), text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
      peer_deaf_ = true;  // its last words may still be there to read
      return;
    }
    if (n > 0) text.remove_prefix(static_cast<size_t>(n));
    if (text.empty()) return;
  }
  if (unsent_.size() + text.size() > kMaxUnread) return fail_later("the peer does not read");
  unsent_.append(text);
  if (!write_watch_) {
    if (!writable_set_.valid()) {
      writable_set_ = Fd(::epoll_create1(EPOLL_CLOEXEC));
      epoll_event event{};
      event.events = EPOLLOUT;
      if (!writable_set_.valid() ||
          ::epoll_ctl(writable_set_.get(), EPOLL_CTL_ADD, socket_.get(), &event) < 0)
        return fail_later("epoll is not available");
    }
    write_watch_ = reactor_.watch(writable_set_.get(), [this] { on_writable(); });
    update_watch();
  }
}

void Channel::on_writable() {
  const ssize_t n =
      ::send(socket_.get(), unsent_.data(), unsent_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  if (n < 0) {
    if (errno == EAGAIN || errno == EINTR) return;
    peer_deaf_ = true;
    unsent_.clear();
  } else {
    unsent_.erase(0, static_cast<size_t>(n));
  }
  if (!unsent_.empty()) return;
  write_watch_.reset();
  dispatch();  // what came before the output stalled
}

void Channel::hold() {
  ++held_;
  update_watch();
}

void Channel::release() {
  if (--held_ != 0) return;
  // From the loop: release() is mostly called inside dispatch() or by a command that just ended.
  reactor_.post([alive = std::weak_ptr(self_)] {
    if (const auto self = alive.lock()) (*self)->dispatch();
  });
}

// For send(): its caller does not expect to be destroyed inside it.
void Channel::fail_later(const char* reason) {
  failed_ = true;
  reactor_.post([alive = std::weak_ptr(self_), reason] {
    if (const auto self = alive.lock()) (*self)->fail(reason);
  });
}

void Channel::fail(const char* reason) {
  failed_ = true;
  read_watch_.reset();
  write_watch_.reset();
  const auto handlers = handlers_;
  handlers->closed(reason);
}

}  // namespace vbdkit::control
