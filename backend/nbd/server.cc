// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/nbd/server.h"

#include <sys/socket.h>

#include <algorithm>
#include <vector>

#include "backend/nbd/connection.h"
#include "backend/nbd/unix_listener.h"

namespace vbdkit::nbd {
namespace {

// After a failure to accept for want of descriptors or memory.
constexpr auto kAcceptRetry = std::chrono::milliseconds(100);

class ServerImpl final : public Server {
 public:
  ServerImpl(io::Reactor& reactor, RequestSink& sink, StatusSource& status, ServerOptions options,
             const Logger& log, UnixListener listener);
  ~ServerImpl() override = default;

  void shutdown(std::function<void()> done, std::chrono::milliseconds drain_timeout) override;
  const std::string& path() const override { return context_.options.path; }
  const std::string& export_name() const override { return context_.options.export_name; }
  ServerStats stats() const override {
    ServerStats s = context_.stats;
    s.connections = connections_.size();
    return s;
  }

 private:
  struct AcceptOp : io::SocketOp {
    ServerImpl* server;
  };
  struct Reaper : io::Deferred {
    ServerImpl* server;
  };

  void accept();
  void accepted(int64_t result);
  void closed(Connection& connection);
  void reap();
  void active();
  void trim();
  void tell_of_clients();
  void finish_if_done();

  ServerContext context_;
  UnixListener listener_;
  AcceptOp accept_op_;
  bool accepting_ = false;
  std::unique_ptr<io::Timer> accept_retry_;
  std::vector<std::unique_ptr<Connection>> connections_;
  std::vector<std::unique_ptr<Connection>> dead_;  // destroyed when nothing of theirs is running
  Reaper reaper_;

  std::unique_ptr<io::Timer> idle_;
  bool idle_armed_ = false;
  bool active_ = false;  // since the timer was armed

  bool stopping_ = false;
  std::function<void()> stopped_;
  std::unique_ptr<io::Timer> drain_deadline_;
};

ServerImpl::ServerImpl(io::Reactor& reactor, RequestSink& sink, StatusSource& status,
                       ServerOptions options, const Logger& log, UnixListener listener)
    : context_{reactor, sink, status, log, std::move(options), {}, {}, RateLimit(), {}, {}},
      listener_(std::move(listener)) {
  context_.closed = [this](Connection& c) { closed(c); };
  context_.active = [this] { active(); };
  accept_op_.kind = io::SocketOp::Kind::kAccept;
  accept_op_.fd = listener_.fd();
  accept_op_.server = this;
  accept_op_.done = [](io::SocketOp& op, int64_t result) {
    static_cast<AcceptOp&>(op).server->accepted(result);
  };
  reaper_.server = this;
  reaper_.run = [](io::Deferred& d) { static_cast<Reaper&>(d).server->reap(); };
  accept_retry_ = reactor.timer([this] { accept(); });
  idle_ = reactor.timer([this] { trim(); });
  accept();
}

void ServerImpl::accept() {
  if (accepting_ || stopping_ || connections_.size() >= context_.options.max_connections) return;
  accepting_ = true;
  context_.reactor.submit(accept_op_);
}

void ServerImpl::accepted(int64_t result) {
  accepting_ = false;
  Fd socket(result >= 0 ? static_cast<int>(result) : -1);
  if (stopping_) {
    context_.reactor.defer(reaper_);
    return;
  }
  if (socket.valid()) {
    ++context_.stats.accepted;
    connections_.push_back(std::make_unique<Connection>(context_, std::move(socket)));
    connections_.back()->start();
    active();
    tell_of_clients();
  } else if (result != -ECONNABORTED && result != -EINTR && result != -EAGAIN) {
    context_.log.limited(context_.log_limit, LogLevel::kWarning, "nbd: %s: accept: %s",
                         listener_.path().c_str(), strerror(static_cast<int>(-result)));
    accept_retry_->arm(io::Timer::Clock::now() + kAcceptRetry);
    return;
  }
  accept();
}

void ServerImpl::closed(Connection& connection) {
  const auto it = std::find_if(connections_.begin(), connections_.end(),
                               [&](const auto& c) { return c.get() == &connection; });
  dead_.push_back(std::move(*it));
  connections_.erase(it);
  context_.reactor.defer(reaper_);
}

void ServerImpl::reap() {
  const bool gone = !dead_.empty();
  dead_.clear();
  accept();
  if (gone) tell_of_clients();
  finish_if_done();
}

void ServerImpl::tell_of_clients() {
  if (!stopping_ && context_.options.clients_changed) context_.options.clients_changed();
}

void ServerImpl::active() {
  active_ = true;
  if (idle_armed_) return;
  idle_armed_ = true;
  idle_->arm(io::Timer::Clock::now() + context_.options.idle_trim);
}

// One timer for the whole server, armed only while there is something to give back.
void ServerImpl::trim() {
  idle_armed_ = false;
  const bool busy = std::any_of(connections_.begin(), connections_.end(),
                                [](const auto& c) { return c->busy(); });
  if (std::exchange(active_, false) || busy) {
    active();
    active_ = busy;
    return;
  }
  for (const auto& c : connections_) c->trim();
  context_.pool.trim();
}

void ServerImpl::shutdown(std::function<void()> done, std::chrono::milliseconds drain_timeout) {
  stopping_ = true;
  stopped_ = std::move(done);
  accept_retry_->cancel();
  idle_->cancel();
  listener_.remove_file();
  ::shutdown(listener_.fd(), SHUT_RDWR);  // ends the pending accept
  for (const auto& c : connections_) c->drain();
  drain_deadline_ = context_.reactor.timer([this] {
    for (const auto& c : connections_) c->abort();
  });
  drain_deadline_->arm(io::Timer::Clock::now() + drain_timeout);
  context_.reactor.defer(reaper_);
}

void ServerImpl::finish_if_done() {
  if (!stopping_ || accepting_ || !connections_.empty() || !stopped_) return;
  drain_deadline_->cancel();
  // The callback may destroy this server.
  auto done = std::exchange(stopped_, nullptr);
  done();
}

}  // namespace

Export ServerContext::describe() const {
  const drivers::NodeInfo& info = sink.info();
  Export e;
  e.name = options.export_name;
  e.description = options.description;
  e.size = align_down(info.size.v, info.request_alignment);
  e.minimum_block = info.request_alignment;
  e.preferred_block = std::max({4096u, info.physical_block, info.request_alignment});
  unsigned flags = kHasFlags | kSendFlush | kSendFua | kCanMultiConn | kSendCache;
  if (info.rotational) flags |= kRotational;
  if (read_only()) {
    flags |= kReadOnly;
  } else {
    flags |= kSendWriteZeroes | kSendFastZero;
    if (info.can_discard) flags |= kSendTrim;
  }
  e.flags = static_cast<uint16_t>(flags);
  e.contexts = {kAllocationContext};
  for (const drivers::DirtyBitmap* bitmap : status.dirty_bitmaps())
    e.contexts.push_back(kDirtyContextPrefix + bitmap->name());
  return e;
}

Result<std::unique_ptr<Server>> Server::create(io::Reactor& reactor, RequestSink& sink,
                                               StatusSource& status, ServerOptions options,
                                               const Logger& log) {
  if (options.export_name.size() > kMaxStringLength ||
      options.description.size() > kMaxStringLength)
    return Error(ErrorKind::kInvalid, "nbd: an export's name has at most 4096 bytes", EINVAL);
  VBDKIT_ASSIGN(UnixListener listener, UnixListener::create(options.path));
  return std::unique_ptr<Server>(std::make_unique<ServerImpl>(
      reactor, sink, status, std::move(options), log, std::move(listener)));
}

}  // namespace vbdkit::nbd
