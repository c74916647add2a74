// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The QMP side of an instance: a unix socket on which any QMP client can talk to it.
// Protocol: QEMU's docs/interop/qmp-spec: greeting, capabilities negotiation, one answer per
// command in order, `id` echoed, events in between. Deviation: none of the capabilities ("oob").
//
// A command is one CommandTable::add() with its argument names and a handler, which answers through
// a Reply, at once or later. Whoever adds commands owns what the handlers refer to.
//
// Thread: the reactor's.
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backend/control/channel.h"
#include "backend/control/json.h"
#include "base/log.h"

namespace vbdkit::control {

class QmpServer;
class QmpSession;

// Answers one command, exactly once; destroyed unanswered, it answers with a GenericError. It may
// outlive the connection: then the answer is dropped.
class Reply {
 public:
  Reply(const std::shared_ptr<QmpSession>& session, std::string id_member);
  Reply(Reply&&) = default;
  Reply& operator=(Reply&&) = delete;
  ~Reply();

  // The process at the other end when it connected; 0: unknown.
  pid_t peer() const { return peer_; }

  void ok() { value("{}"); }
  void value(std::string_view json);  // the text of "return"
  void error(const Error& error);
  // Error classes other than GenericError: CommandNotFound, DeviceNotFound.
  void error(std::string_view error_class, std::string_view description);

 private:
  void answer(std::string_view body);

  std::weak_ptr<QmpSession> session_;
  pid_t peer_;
  std::string id_member_;  // ",\"id\":…" or empty
};

class CommandTable {
 public:
  using Handler = std::function<void(const Json& arguments, Reply reply)>;
  struct Command {
    std::vector<std::string_view> arguments;  // names known; others are refused
    Handler handler;
  };

  // Names are string literals.
  void add(std::string_view name, std::vector<std::string_view> arguments, Handler handler);
  const Command* find(std::string_view name) const;
  std::vector<std::string_view> names() const;

 private:
  std::map<std::string_view, Command> commands_;
};

class QmpServer {
 public:
  struct Options {
    std::string path;  // made with mode 0600; removed again by the destructor
    size_t max_sessions = 16;
    std::string_view version;  // "0.1.0"
  };

  // `commands` must outlive the server.
  [[gnu::cold]] static Result<std::unique_ptr<QmpServer>> create(io::Reactor& reactor,
                                                                 const Logger& log,
                                                                 const CommandTable& commands,
                                                                 Options options);
  ~QmpServer();

  // A connection that did not come through the socket: vbdkitd's, inherited at start.
  Result<void> adopt(Fd socket);

  // To every connection that has negotiated. `data` is an object's text.
  void event(std::string_view name, std::string_view data);

 private:
  friend class QmpSession;
  QmpServer(io::Reactor& reactor, const Logger& log, const CommandTable& commands, Options options);
  Result<void> listen();
  void on_connection();
  void remove(const QmpSession* session);

  io::Reactor& reactor_;
  const Logger& log_;
  const CommandTable& commands_;
  Options options_;
  RateLimit complaints_;
  Fd listener_;
  std::unique_ptr<io::FdWatch> watch_;
  std::vector<std::shared_ptr<QmpSession>> sessions_;
};

// The greeting of `version` ("0.1.0") and an event's text; lines of the wire, each with its end.
std::string qmp_greeting(std::string_view version);
std::string qmp_event(std::string_view name, std::string_view data);

}  // namespace vbdkit::control
