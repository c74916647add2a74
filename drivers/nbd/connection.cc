// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/nbd/connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>

namespace vbdkit::drivers::nbd {
namespace {

constexpr const char* kAllocation = "base:allocation";
constexpr uint32_t kHole = 1;  // flags of base:allocation
constexpr uint32_t kZero = 2;
constexpr uint64_t kMaxQuestion = uint64_t{1} << 31;  // bytes of one block status command

// Without the name of the function that begins each of libnbd's messages.
std::string last_error(const LibNbd& api) {
  const char* const text = api.nbd_get_error();
  std::string message = text == nullptr ? "unknown error" : text;
  if (message.starts_with("nbd_"))
    if (const size_t colon = message.find(": "); colon != std::string::npos)
      message.erase(0, colon + 2);
  return message;
}

Error failed(const LibNbd& api) {
  const int error = api.nbd_get_errno();
  return Error(ErrorKind::kIo, last_error(api), error == 0 ? EIO : error);
}

// A peer whose host is gone says nothing: found out after about 25 s, also where nothing is sent.
void detect_silence(int fd) {
  constexpr int kOn = 1;
  constexpr int kIdle = 10;
  constexpr int kInterval = 5;
  constexpr int kProbes = 3;
  constexpr unsigned kUnacknowledged = 25'000;  // ms
  // Not all are there on every kind of socket; the connection works without them.
  (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &kOn, sizeof kOn);
  (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &kIdle, sizeof kIdle);
  (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &kInterval, sizeof kInterval);
  (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &kProbes, sizeof kProbes);
  (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &kUnacknowledged, sizeof kUnacknowledged);
}

void add_extent(StatusRequest& status, uint64_t length, uint32_t flags) {
  uint64_t covered = 0;
  for (const Extent& e : status.extents) covered += e.length;
  length = std::min(length, status.length - covered);
  if (length == 0 || status.extents.size() >= std::max<size_t>(status.max_extents, 1)) return;
  const bool zero = flags & kZero;
  // A hole that does not read as zeroes reads as anything: that is data for those above.
  status.extents.push_back({length, !(flags & kHole) || !zero, zero});
}

}  // namespace

Result<std::unique_ptr<Connection>> Connection::begin(const LibNbd& api, io::Reactor& reactor,
                                                      const Target& target, Owner& owner) {
  std::unique_ptr<Connection> connection(new Connection(api, reactor, owner));
  VBDKIT_TRY(connection->start(target));
  return connection;
}

Result<void> Connection::start(const Target& target) {
  epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_.valid()) return Error::from_errno(errno, "epoll_create1");
  handle_ = {api_.nbd_create(), api_.nbd_close};
  nbd_handle* const h = handle_.get();
  if (h == nullptr) return failed(api_);
  const bool tcp = target.transport == Transport::kTcp;
  bool good = api_.nbd_add_meta_context(h, kAllocation) == 0 &&
              api_.nbd_set_pread_initialize(h, false) == 0 &&
              api_.nbd_set_uri_allow_local_file(h, false) == 0 &&
              api_.nbd_set_uri_allow_tls(h, LIBNBD_TLS_DISABLE) == 0 &&
              api_.nbd_set_uri_allow_transports(
                  h, tcp ? LIBNBD_ALLOW_TRANSPORT_TCP : LIBNBD_ALLOW_TRANSPORT_UNIX) == 0;
  if (good && target.address.empty()) {
    good = api_.nbd_aio_connect_uri(h, target.uri.c_str()) == 0;
  } else if (good) {
    good = api_.nbd_set_export_name(h, target.export_name.c_str()) == 0 &&
           api_.nbd_aio_connect(h, reinterpret_cast<const sockaddr*>(target.address.data()),
                                static_cast<socklen_t>(target.address.size())) == 0;
  }
  if (!good) return failed(api_);
  if (tcp) detect_silence(api_.nbd_aio_get_fd(h));
  watch_ = reactor_.watch(epoll_.get(), [this] { readable(); });
  update_watch();
  return {};
}

// The server is told, so that it does not log a client that vanished. Nothing waits for that.
Connection::~Connection() {
  if (state() == State::kReady) (void)api_.nbd_aio_disconnect(handle_.get(), 0);
}

Result<void> Connection::wait(std::chrono::milliseconds limit) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  while (api_.nbd_aio_is_ready(handle_.get()) != 1) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0)
      return Error(ErrorKind::kTimedOut,
                   "no answer within " + std::to_string(limit.count() / 1000) + " s", ETIMEDOUT);
    if (api_.nbd_poll(handle_.get(), static_cast<int>(left.count())) < 0) return failed(api_);
    if (state() == State::kLost)
      return Error(ErrorKind::kIo, "the server closed the connection", ECONNRESET);
  }
  if (watched_fd_ != api_.nbd_aio_get_fd(handle_.get()))
    detect_silence(api_.nbd_aio_get_fd(handle_.get()));
  read_facts();
  ready_ = true;
  update_watch();
  return {};
}

Connection::State Connection::state() const {
  if (handle_ == nullptr || shutting_down_ || api_.nbd_aio_is_dead(handle_.get()) != 0 ||
      api_.nbd_aio_is_closed(handle_.get()) != 0)
    return State::kLost;
  return ready_ ? State::kReady : State::kConnecting;
}

// libnbd remembers only the last error of all handles.
void Connection::note_loss() {
  if (state() != State::kLost || !why_lost_.empty()) return;
  why_lost_ = shutting_down_ ? "the server is shutting down" : last_error(api_);
}

Target Connection::settled(const Target& target) const {
  Target result = target;
  if (target.transport != Transport::kTcp) return result;
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (getpeername(api_.nbd_aio_get_fd(handle_.get()), reinterpret_cast<sockaddr*>(&address),
                  &length) != 0)
    return result;
  char* const name = api_.nbd_get_export_name(handle_.get());
  if (name == nullptr) return result;
  result.export_name = name;
  free(name);
  result.address.assign(reinterpret_cast<const char*>(&address), length);
  return result;
}

void Connection::read_facts() {
  nbd_handle* const h = handle_.get();
  const auto number = [](int64_t value, int64_t fallback) { return value > 0 ? value : fallback; };
  constexpr int64_t kEveryServerTakes = 32 << 20;
  facts_.size = static_cast<uint64_t>(number(api_.nbd_get_size(h), 0));
  facts_.minimum_block =
      static_cast<uint32_t>(number(api_.nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM), 1));
  facts_.preferred_block =
      static_cast<uint32_t>(number(api_.nbd_get_block_size(h, LIBNBD_SIZE_PREFERRED), 4096));
  facts_.maximum_payload = static_cast<uint32_t>(
      std::min(number(api_.nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM), kEveryServerTakes),
               kEveryServerTakes));
  facts_.read_only = api_.nbd_is_read_only(h) == 1;
  facts_.can_flush = api_.nbd_can_flush(h) == 1;
  facts_.can_fua = api_.nbd_can_fua(h) == 1;
  facts_.can_trim = api_.nbd_can_trim(h) == 1;
  facts_.can_zero = api_.nbd_can_zero(h) == 1;
  facts_.can_status = api_.nbd_can_meta_context(h, kAllocation) == 1;
  facts_.rotational = api_.nbd_is_rotational(h) == 1;
}

void Connection::update_watch() {
  if (state() == State::kLost) return;
  const unsigned direction = api_.nbd_aio_get_direction(handle_.get());
  const uint32_t events = (direction & LIBNBD_AIO_DIRECTION_READ ? EPOLLIN : 0u) |
                          (direction & LIBNBD_AIO_DIRECTION_WRITE ? EPOLLOUT : 0u);
  const int fd = api_.nbd_aio_get_fd(handle_.get());
  if (fd == watched_fd_ && events == watched_events_) return;
  epoll_event event{.events = events, .data = {}};
  // A socket that libnbd has replaced (the next address of a name) left the set when it was closed.
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0 && errno == EEXIST)
    epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event);
  watched_fd_ = fd;
  watched_events_ = events;
}

// Each notification takes in one answer at most. libnbd must not be told to read where there is
// nothing: it then expects an answer and sends no command before that.
void Connection::readable() {
  nbd_handle* const h = handle_.get();
  for (;;) {
    const unsigned direction = api_.nbd_aio_get_direction(h);
    const bool reads = direction & LIBNBD_AIO_DIRECTION_READ;
    const bool writes = direction & LIBNBD_AIO_DIRECTION_WRITE;
    pollfd p{.fd = api_.nbd_aio_get_fd(h), .events = 0, .revents = 0};
    if (reads) p.events |= POLLIN;
    if (writes) p.events |= POLLOUT;
    if (p.events == 0 || poll(&p, 1, 0) != 1) break;
    const uint64_t before = answers_;
    if (reads && (p.revents & (POLLIN | POLLHUP | POLLERR)))
      (void)api_.nbd_aio_notify_read(h);
    else
      (void)api_.nbd_aio_notify_write(h);
    if (answers_ == before) break;
  }
  after_progress();
}

void Connection::after_progress() {
  if (!ready_ && api_.nbd_aio_is_ready(handle_.get()) == 1) {
    read_facts();
    ready_ = true;
  }
  note_loss();
  update_watch();
  // Nothing of this connection is touched afterwards.
  owner_.connection_event();
}

void Connection::send(Command& command) {
  command.connection = this;
  command.error = 0;
  in_flight.push_back(command);
  // It may be answered (after a loss: without one) inside the call.
  const bool sent = issue(command) >= 0;
  note_loss();
  if (sent || state() == State::kLost) return;
  const int error = api_.nbd_get_errno();
  answered(command, error == 0 ? EIO : error);
}

int64_t Connection::issue(Command& c) {
  nbd_handle* const h = handle_.get();
  const nbd_completion_callback completion{[](void* data, int* error) {
                                             auto& command = *static_cast<Command*>(data);
                                             command.connection->answered(command, *error);
                                             return 1;
                                           },
                                           &c, nullptr};
  const uint32_t fua = c.flags & kFua && facts_.can_fua ? LIBNBD_CMD_FLAG_FUA : 0;
  if (c.kind == Command::Kind::kStatus) {
    const nbd_extent_callback extents{
        [](void* data, const char*, uint64_t, uint32_t* entries, size_t count, int*) {
          StatusRequest& status = *static_cast<Command*>(data)->status;
          for (size_t i = 0; i + 1 < count; i += 2) add_extent(status, entries[i], entries[i + 1]);
          return 0;
        },
        &c, nullptr};
    return api_.nbd_aio_block_status(h, std::min(c.length, kMaxQuestion), c.offset, extents,
                                     completion,
                                     c.status->max_extents == 1 ? LIBNBD_CMD_FLAG_REQ_ONE : 0);
  }
  switch (c.op) {
    case Op::kRead:
      return api_.nbd_aio_pread(h, c.data, c.length, c.offset, completion, 0);
    case Op::kWrite:
      return api_.nbd_aio_pwrite(h, c.data, c.length, c.offset, completion, fua);
    case Op::kFlush:
      return api_.nbd_aio_flush(h, completion, 0);
    case Op::kDiscard:
      return api_.nbd_aio_trim(h, c.length, c.offset, completion, fua);
    case Op::kWriteZeroes:
      return api_.nbd_aio_zero(h, c.length, c.offset, completion,
                               fua | (c.flags & kMayUnmap ? 0u : LIBNBD_CMD_FLAG_NO_HOLE));
    case Op::kCopy:
      break;  // refused by the node
  }
  return -1;
}

// libnbd says ENOTCONN of what was in flight when the connection went, and no server can.
void Connection::answered(Command& command, int error) {
  ++answers_;
  if (error == ENOTCONN) return;
  if (error == ESHUTDOWN) {
    shutting_down_ = true;
    return;
  }
  command.error = error;
  in_flight.remove(command);
  done.push_back(command);
}

}  // namespace vbdkit::drivers::nbd
