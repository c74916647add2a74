// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Channel: one end of a control connection on a reactor: messages in, text out. Neither a peer that
// sends rubbish nor one that does not read costs more than this object: input is cut at
// kMaxMessage, and while output waits for the peer no further input is taken, so a peer can only
// slow itself.
//
// Thread: the reactor's. Ownership: whoever made it; it may be destroyed inside its own callbacks.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "backend/control/json.h"
#include "base/fd.h"
#include "io/reactor.h"

namespace vbdkit::control {

inline constexpr size_t kMaxMessage = 64 * 1024;
// Output a peer has not read yet; more than this (events, mostly) and it is disconnected.
inline constexpr size_t kMaxUnread = 1024 * 1024;

class Channel {
 public:
  struct Handlers {
    // kMessage or kGarbage.
    std::function<void(JsonFramer::Frame frame)> message;
    // The peer has gone or broken the limits: nothing is called any more. `reason` is for the log.
    std::function<void(const char* reason)> closed;
  };

  // `socket` is connected; it is made non-blocking.
  [[gnu::cold]] static Result<std::unique_ptr<Channel>> create(io::Reactor& reactor, Fd socket,
                                                               Handlers handlers);
  ~Channel();

  // Never blocks; what the socket does not take now is sent when it can.
  void send(std::string_view text);

  // While held, input stays in the socket. A server holds while it works on a command, so that
  // commands of one connection are answered in their order.
  void hold();
  void release();

  int fd() const { return socket_.get(); }

 private:
  Channel(io::Reactor& reactor, Fd socket, Handlers handlers);
  [[gnu::cold]] Result<void> start();
  void on_readable();
  void on_writable();
  void dispatch();
  void fail(const char* reason);
  void fail_later(const char* reason);
  bool may_read() const { return held_ == 0 && unsent_.empty() && !failed_; }
  void update_watch();

  io::Reactor& reactor_;
  Fd socket_;
  // An FdWatch tells of readability only; an epoll set becomes readable when its member is
  // writable.
  Fd writable_set_;
  std::shared_ptr<const Handlers>
      handlers_;  // a call may destroy the channel, not the function it is in
  JsonFramer framer_{kMaxMessage};
  std::string unsent_;
  unsigned held_ = 0;
  bool failed_ = false;
  bool end_of_input_ = false;
  bool peer_deaf_ = false;  // takes no output any more; what it sent before is still read
  std::unique_ptr<io::FdWatch> read_watch_;
  std::unique_ptr<io::FdWatch> write_watch_;
  std::shared_ptr<Channel*> self_;  // what posted tasks hold weakly
};

}  // namespace vbdkit::control
