// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/control/qmp_server.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>

#include "backend/control/unix_socket.h"

namespace vbdkit::control {

class QmpSession : public std::enable_shared_from_this<QmpSession> {
 public:
  explicit QmpSession(QmpServer& server) : server_(server) {}

  pid_t peer() const { return peer_; }

  Result<void> start(Fd socket) {
    ucred credentials{};
    socklen_t length = sizeof credentials;
    if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &length) == 0)
      peer_ = credentials.pid;
    auto channel = Channel::create(
        server_.reactor_, std::move(socket),
        {.message = [this](JsonFramer::Frame frame) { on_message(std::move(frame)); },
         .closed =
             [this](const char* reason) {
               server_.log_.debug("control connection ended: %s", reason);
               server_.remove(this);
             }});
    if (!channel) return std::move(channel).error();
    channel_ = std::move(*channel);
    channel_->send(qmp_greeting(server_.options_.version));
    return {};
  }

  // The end of a command: its text goes out and the next command may come in.
  void answered(std::string_view line) {
    channel_->send(line);
    channel_->release();
  }

  void event(std::string_view line) {
    if (negotiated_) channel_->send(line);
  }

 private:
  void on_message(JsonFramer::Frame frame) {
    channel_->hold();
    auto parsed = frame.kind == JsonFramer::Kind::kMessage
                      ? Json::parse(frame.text)
                      : Result<Json>(Error(ErrorKind::kInvalid, "Invalid JSON syntax"));
    if (!parsed) {
      server_.log_.limited(server_.complaints_, LogLevel::kWarning,
                           "control: a client sent something that is not JSON");
      return Reply(shared_from_this(), {}).error("GenericError", "Invalid JSON syntax");
    }
    execute(*parsed);
  }

  void execute(const Json& message) {
    const Json id = message.member("id");
    Reply reply(shared_from_this(), id.is_null() ? std::string() : ",\"id\":" + id.dump());
    if (!message.is_object()) return reply.error("GenericError", "QMP input must be a JSON object");
    for (const std::string& key : message.keys()) {
      if (key != "execute" && key != "arguments" && key != "id")
        return reply.error("GenericError", "QMP input member '" + key + "' is unexpected");
    }
    const auto name = message.member("execute").string();
    if (!name)
      return reply.error("GenericError", "QMP input lacks member 'execute', or it is no string");
    const Json arguments = message.member("arguments");
    if (!arguments.is_null() && !arguments.is_object())
      return reply.error("GenericError", "QMP input member 'arguments' must be an object");

    if (*name == "qmp_capabilities") return negotiate(arguments, std::move(reply));
    if (!negotiated_)
      return reply.error("CommandNotFound",
                         "Expecting capabilities negotiation with 'qmp_capabilities'");
    const CommandTable::Command* command = server_.commands_.find(*name);
    if (command == nullptr)
      return reply.error("CommandNotFound", "The command " + *name + " has not been found");
    for (const std::string& key : arguments.keys()) {
      if (std::find(command->arguments.begin(), command->arguments.end(), key) ==
          command->arguments.end())
        return reply.error("GenericError", "Parameter '" + key + "' is unexpected");
    }
    command->handler(arguments, std::move(reply));
  }

  void negotiate(const Json& arguments, Reply reply) {
    if (negotiated_)
      return reply.error("CommandNotFound",
                         "Capabilities negotiation is already complete, command ignored");
    const Json enable = arguments.member("enable");
    for (size_t i = 0; i < enable.size(); ++i)
      return reply.error("GenericError",
                         "Capability '" + enable.at(i).string().value_or("") + "' not available");
    negotiated_ = true;
    reply.ok();
  }

  QmpServer& server_;
  pid_t peer_ = 0;
  std::unique_ptr<Channel> channel_;
  bool negotiated_ = false;
};

Reply::Reply(const std::shared_ptr<QmpSession>& session, std::string id_member)
    : session_(session), peer_(session->peer()), id_member_(std::move(id_member)) {}

Reply::~Reply() { error("GenericError", "The command was abandoned"); }

void Reply::answer(std::string_view body) {
  const auto session = session_.lock();
  if (!session) return;
  session_.reset();
  std::string line = "{";
  line += body;
  line += id_member_;
  line += "}\r\n";
  session->answered(line);
}

void Reply::value(std::string_view json) { answer("\"return\":" + std::string(json)); }

void Reply::error(const Error& error) {
  this->error(error.kind() == ErrorKind::kNotFound ? "DeviceNotFound" : "GenericError",
              error.message());
}

void Reply::error(std::string_view error_class, std::string_view description) {
  JsonWriter w;
  w.begin_object().field("class", error_class).field("desc", description).end_object();
  answer("\"error\":" + w.take());
}

void CommandTable::add(std::string_view name, std::vector<std::string_view> arguments,
                       Handler handler) {
  commands_.insert_or_assign(name, Command{std::move(arguments), std::move(handler)});
}

const CommandTable::Command* CommandTable::find(std::string_view name) const {
  const auto found = commands_.find(name);
  return found == commands_.end() ? nullptr : &found->second;
}

std::vector<std::string_view> CommandTable::names() const {
  std::vector<std::string_view> out;
  for (const auto& [name, command] : commands_) out.push_back(name);
  return out;
}

Result<std::unique_ptr<QmpServer>> QmpServer::create(io::Reactor& reactor, const Logger& log,
                                                     const CommandTable& commands,
                                                     Options options) {
  std::unique_ptr<QmpServer> server(new QmpServer(reactor, log, commands, std::move(options)));
  VBDKIT_TRY(server->listen());
  return server;
}

QmpServer::QmpServer(io::Reactor& reactor, const Logger& log, const CommandTable& commands,
                     Options options)
    : reactor_(reactor), log_(log), commands_(commands), options_(std::move(options)) {}

QmpServer::~QmpServer() {
  if (listener_.valid()) ::unlink(options_.path.c_str());
}

Result<void> QmpServer::listen() {
  VBDKIT_ASSIGN(listener_, listen_unix(options_.path));
  watch_ = reactor_.watch(listener_.get(), [this] { on_connection(); });
  return {};
}

void QmpServer::on_connection() {
  Fd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket.valid()) return;  // it went away again, or no descriptors: the next call tries
  if (sessions_.size() >= options_.max_sessions) {
    log_.limited(complaints_, LogLevel::kWarning, "control: more than %zu connections",
                 options_.max_sessions);
    return;
  }
  if (auto adopted = adopt(std::move(socket)); !adopted)
    log_.limited(complaints_, LogLevel::kWarning, "%s", adopted.error().message().c_str());
}

Result<void> QmpServer::adopt(Fd socket) {
  auto session = std::make_shared<QmpSession>(*this);
  sessions_.push_back(session);
  if (auto started = session->start(std::move(socket)); !started) {
    remove(session.get());
    return started;
  }
  return {};
}

void QmpServer::event(std::string_view name, std::string_view data) {
  const std::string line = qmp_event(name, data);
  for (const auto& session : sessions_) session->event(line);
}

void QmpServer::remove(const QmpSession* session) {
  std::erase_if(sessions_, [session](const auto& s) { return s.get() == session; });
}

std::string qmp_greeting(std::string_view version) {
  uint64_t part[3] = {};
  const char* p = version.data();
  const char* const end = p + version.size();
  for (uint64_t& number : part) {
    p = std::from_chars(p, end, number).ptr;
    if (p != end) ++p;
  }
  JsonWriter w;
  w.begin_object().key("QMP").begin_object().key("version").begin_object();
  w.key("qemu").begin_object();
  w.field("micro", part[2]).field("minor", part[1]).field("major", part[0]).end_object();
  w.field("package", "vbdkit-" + std::string(version)).end_object();
  w.key("capabilities").begin_array().end_array().end_object().end_object();
  return w.take() + "\r\n";
}

std::string qmp_event(std::string_view name, std::string_view data) {
  timeval now{};
  ::gettimeofday(&now, nullptr);
  JsonWriter w;
  w.begin_object().key("timestamp").begin_object();
  w.field("seconds", static_cast<uint64_t>(now.tv_sec));
  w.field("microseconds", static_cast<uint64_t>(now.tv_usec)).end_object();
  w.field("event", name).key("data").raw(data).end_object();
  return w.take() + "\r\n";
}

}  // namespace vbdkit::control
