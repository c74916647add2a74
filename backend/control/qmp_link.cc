// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/control/qmp_link.h"

#include <utility>

#include "backend/control/qmp_client.h"

namespace vbdkit::control {

Result<std::unique_ptr<QmpLink>> QmpLink::create(io::Reactor& reactor, Fd socket,
                                                 Handlers handlers) {
  std::unique_ptr<QmpLink> link(new QmpLink(std::move(handlers)));
  VBDKIT_ASSIGN(
      link->channel_,
      Channel::create(
          reactor, std::move(socket),
          {.message = [self = link.get()](JsonFramer::Frame f) { self->on_message(std::move(f)); },
           .closed = [self = link.get()](const char*) { self->on_closed(); }}));
  link->execute("qmp_capabilities", {}, [](Result<Json>) {});
  return link;
}

void QmpLink::execute(std::string_view command, std::string_view arguments, Answer answer) {
  waiting_.push_back(std::move(answer));
  channel_->send(qmp_command(command, arguments));
}

void QmpLink::on_message(JsonFramer::Frame frame) {
  const auto message = Json::parse(frame.text);
  if (frame.kind != JsonFramer::Kind::kMessage || !message) return;  // not ours to repair
  if (!message->member("QMP").is_null()) {
    if (const auto ready = handlers_.ready) ready();
    return;
  }
  if (const auto name = message->member("event").string()) {
    if (const auto event = handlers_.event) event(*name, message->member("data"));
    return;
  }
  if (waiting_.empty()) return;
  const Answer answer = std::move(waiting_.front());
  waiting_.pop_front();
  const Json error = message->member("error");
  if (error.is_null()) {
    answer(message->member("return"));
  } else {
    answer(qmp_error(error));
  }
}

void QmpLink::on_closed() {
  const auto waiting = std::exchange(waiting_, {});
  const auto closed = handlers_.closed;
  for (const Answer& answer : waiting)
    answer(Error(ErrorKind::kIo, "the peer closed the control connection", EPIPE));
  closed();
}

}  // namespace vbdkit::control
