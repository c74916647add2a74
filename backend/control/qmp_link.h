// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A QMP client on a reactor: vbdkitd's connection to one instance. Commands may be issued before
// the peer has even started; they wait in the socket. Answers come in the order of the commands.
//
// Thread: the reactor's. Ownership: whoever made it; it may be destroyed inside its callbacks.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "backend/control/channel.h"

namespace vbdkit::control {

class QmpLink {
 public:
  using Answer = std::function<void(Result<Json> result)>;
  struct Handlers {
    std::function<void()> ready;  // the peer has greeted
    std::function<void(const std::string& name, const Json& data)> event;
    // Commands without an answer are answered with an error (EPIPE) before this.
    std::function<void()> closed;
  };

  [[gnu::cold]] static Result<std::unique_ptr<QmpLink>> create(io::Reactor& reactor, Fd socket,
                                                               Handlers handlers);

  void execute(std::string_view command, std::string_view arguments, Answer answer);

 private:
  explicit QmpLink(Handlers handlers) : handlers_(std::move(handlers)) {}
  void on_message(JsonFramer::Frame frame);
  void on_closed();

  Handlers handlers_;
  std::unique_ptr<Channel> channel_;
  std::deque<Answer> waiting_;
};

}  // namespace vbdkit::control
