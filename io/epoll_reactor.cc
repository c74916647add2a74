// SPDX-License-Identifier: LGPL-2.1-or-later
#include "io/epoll_reactor.h"

#include <fcntl.h>
#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <list>
#include <unordered_map>
#include <vector>

#include "io/file_engine.h"
#include "io/reactor_common.h"

namespace vbdkit::io {
namespace {

constexpr int kEventsPerTurn = 64;
constexpr uint32_t kRead = EPOLLIN | EPOLLRDHUP;
constexpr uint32_t kWrite = EPOLLOUT;
constexpr uint32_t kBroken = EPOLLERR | EPOLLHUP;

// First-in first-out, linked through SocketOp::next.
class SocketOpQueue {
 public:
  bool empty() const { return head_ == nullptr; }
  SocketOp* front() const { return head_; }
  void push(SocketOp& op) {
    op.next = nullptr;
    (head_ == nullptr ? head_ : tail_->next) = &op;
    tail_ = &op;
  }
  SocketOp& pop() {
    SocketOp& op = *head_;
    head_ = op.next;
    return op;
  }

 private:
  SocketOp* head_ = nullptr;
  SocketOp* tail_ = nullptr;
};

// Tries once, without waiting; -EAGAIN: not now.
int64_t attempt(const SocketOp& op) {
  const int flags = op.flags | MSG_DONTWAIT;
  ssize_t r = -1;
  do {
    switch (op.kind) {
      case SocketOp::Kind::kAccept:
        r = accept4(op.fd, nullptr, nullptr, SOCK_CLOEXEC);
        break;
      case SocketOp::Kind::kRecv:
        r = op.msg != nullptr ? recvmsg(op.fd, op.msg, flags)
                              : recv(op.fd, op.buffer, op.length, flags);
        break;
      case SocketOp::Kind::kSend:
        r = sendmsg(op.fd, op.msg, flags | MSG_NOSIGNAL);
        break;
    }
  } while (r < 0 && errno == EINTR);
  return r < 0 ? -errno : r;
}

class EpollReactor final : public ReactorCommon {
 public:
  EpollReactor(Fd epoll, Fd wake) : ReactorCommon(std::move(wake)), epoll_(std::move(epoll)) {}

  Result<void> set_engine(EngineKind kind, unsigned depth);

  Result<void> run() override;
  void submit(FileOp& op) override;
  void submit(SocketOp& op) override;
  std::unique_ptr<FdWatch> watch(int fd, std::function<void()> readable) override;
  const char* engine_name() const override { return engine_->name(); }

 private:
  struct Watched {
    std::function<void()> readable;
    bool dead = false;  // its handle is gone; it stays until no callback is on the stack
  };
  // One descriptor that something waits for. Of a socket the kernel tells once (EPOLLONESHOT), so
  // that one with no operation pending is never armed, and may be closed. Watches stay armed: they
  // end before their descriptor does, and then the kernel is told.
  struct Slot {
    SocketOpQueue receives;
    SocketOpQueue sends;
    std::list<Watched> watches;
    uint32_t armed = 0;   // what the kernel looks for
    bool known = false;   // epoll has it, as far as this side knows
    bool queued = false;  // in touched_
    bool calling = false;
  };
  class WatchHandle;

  Slot& touch(int fd);
  void end_watch(int fd, Watched& watched);
  uint32_t wanted(const Slot& slot) const;
  void arm(int fd, Slot& slot, uint32_t events);
  void arm_touched();
  void attempt_submitted();
  void attempt_queue(SocketOpQueue& queue);
  void end_accepts(SocketOpQueue& queue);
  void dispatch(const epoll_event& event);
  void call_watches(Slot& slot);
  int timeout() const;

  Fd epoll_;
  std::unique_ptr<FileEngine> engine_;
  std::unordered_map<int, Slot> slots_;
  std::vector<int> touched_;  // slots whose wishes may have changed
  std::vector<int> touched_now_;
  SocketOpQueue submitted_;
};

class EpollReactor::WatchHandle final : public FdWatch {
 public:
  WatchHandle(EpollReactor& reactor, int fd, Watched& watched)
      : reactor_(reactor), fd_(fd), watched_(watched) {}
  ~WatchHandle() override { reactor_.end_watch(fd_, watched_); }

 private:
  EpollReactor& reactor_;
  const int fd_;
  Watched& watched_;
};

Result<void> EpollReactor::set_engine(EngineKind kind, unsigned depth) {
  if (kind == EngineKind::kSync) {
    engine_ = create_sync_engine(counters_);
    return {};
  }
  VBDKIT_ASSIGN(engine_, create_aio_engine(depth, counters_));
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;
  event.data.fd = engine_->event_fd();
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, engine_->event_fd(), &event) != 0)
    return Error::from_errno(errno, "epoll_ctl");
  return {};
}

void EpollReactor::submit(FileOp& op) {
  ++counters_.file_ops;
  engine_->submit(op);
}

void EpollReactor::submit(SocketOp& op) {
  ++counters_.socket_ops;
  submitted_.push(op);
}

EpollReactor::Slot& EpollReactor::touch(int fd) {
  Slot& slot = slots_[fd];
  if (!std::exchange(slot.queued, true)) touched_.push_back(fd);
  return slot;
}

std::unique_ptr<FdWatch> EpollReactor::watch(int fd, std::function<void()> readable) {
  Watched& watched = touch(fd).watches.emplace_back();
  watched.readable = std::move(readable);
  return std::make_unique<WatchHandle>(*this, fd, watched);
}

// The descriptor may be closed next, so that the kernel must forget it now.
void EpollReactor::end_watch(int fd, Watched& watched) {
  Slot& slot = slots_[fd];
  watched.dead = true;
  if (!slot.calling) slot.watches.remove_if([](const Watched& w) { return w.dead; });
  if (wanted(slot) == 0 && slot.known) {
    ++counters_.kernel_entries;
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
    slot.known = false;
    slot.armed = 0;
  }
}

uint32_t EpollReactor::wanted(const Slot& slot) const {
  const bool watched = std::ranges::any_of(slot.watches, [](const Watched& w) { return !w.dead; });
  const bool receiving = !slot.receives.empty();
  const bool sending = !slot.sends.empty();
  return (watched || receiving ? kRead : 0) | (sending ? kWrite : 0) |
         (receiving || sending ? uint32_t{EPOLLONESHOT} : 0);
}

void EpollReactor::arm(int fd, Slot& slot, uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  ++counters_.kernel_entries;
  // A number that was closed and given out again is unknown to epoll.
  if (slot.known && epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) != 0 && errno == ENOENT)
    slot.known = false;
  if (!slot.known) {
    ++counters_.kernel_entries;
    slot.known = epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
  }
  slot.armed = events;
}

void EpollReactor::arm_touched() {
  touched_now_.swap(touched_);
  for (const int fd : touched_now_) {
    Slot& slot = slots_[fd];
    slot.queued = false;
    const uint32_t events = wanted(slot);
    if (events != 0 && events != slot.armed) arm(fd, slot, events);
  }
  touched_now_.clear();
}

// Most sends need not wait, and data may be there already.
void EpollReactor::attempt_submitted() {
  SocketOpQueue submitted;
  std::swap(submitted, submitted_);
  while (!submitted.empty()) {
    SocketOp& op = submitted.pop();
    Slot& slot = touch(op.fd);
    SocketOpQueue& queue = op.kind == SocketOp::Kind::kSend ? slot.sends : slot.receives;
    if (op.kind == SocketOp::Kind::kAccept) {
      // accept4(2) has no flag for it.
      ++counters_.kernel_entries;
      fcntl(op.fd, F_SETFL, fcntl(op.fd, F_GETFL) | O_NONBLOCK);
    }
    const bool first = queue.empty();
    queue.push(op);
    if (first) attempt_queue(queue);
  }
}

void EpollReactor::attempt_queue(SocketOpQueue& queue) {
  while (!queue.empty()) {
    ++counters_.kernel_entries;
    const int64_t result = attempt(*queue.front());
    if (result == -EAGAIN) return;
    SocketOp& op = queue.pop();
    op.done(op, result);
  }
}

// On a unix socket that was shut down accept(2) goes on saying EAGAIN where it does not block.
void EpollReactor::end_accepts(SocketOpQueue& queue) {
  while (!queue.empty() && queue.front()->kind == SocketOp::Kind::kAccept) {
    SocketOp& op = queue.pop();
    op.done(op, -EINVAL);
  }
}

void EpollReactor::call_watches(Slot& slot) {
  slot.calling = true;
  // A callback may end any watch and start new ones; new ones wait for the next event.
  size_t left = slot.watches.size();
  for (auto it = slot.watches.begin(); left > 0; ++it, --left)
    if (!it->dead) it->readable();
  slot.calling = false;
  slot.watches.remove_if([](const Watched& w) { return w.dead; });
}

void EpollReactor::dispatch(const epoll_event& event) {
  const int fd = event.data.fd;
  if (fd == engine_->event_fd()) return;  // reap() looks anyway
  // An event of a watch that ended in this turn is about a descriptor that may be another by now.
  const auto found = slots_.find(fd);
  if (found == slots_.end() || !found->second.known || found->second.armed == 0) return;
  Slot& slot = touch(fd);
  if (slot.armed & EPOLLONESHOT) slot.armed = 0;
  if (event.events & (kRead | kBroken)) {
    attempt_queue(slot.receives);
    if (event.events & EPOLLHUP) end_accepts(slot.receives);
    call_watches(slot);
  }
  if (event.events & (kWrite | kBroken)) attempt_queue(slot.sends);
}

// In milliseconds, rounded up so that a timer is due when the loop wakes for it.
int EpollReactor::timeout() const {
  if (has_deferred() || engine_->can_flush() || !submitted_.empty()) return 0;
  const auto deadline = next_deadline();
  if (!deadline) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(*deadline - Timer::Clock::now());
  return static_cast<int>(std::clamp<int64_t>(left.count(), 0, 3'600'000));
}

Result<void> EpollReactor::run() {
  auto wake_watch = watch(wake_fd(), [this] { drain_posted(); });
  std::array<epoll_event, kEventsPerTurn> events;
  while (!stopping()) {
    ++counters_.turns;
    run_turn_end();
    attempt_submitted();
    engine_->flush(Slice());
    arm_touched();
    ++counters_.kernel_entries;
    const int n = epoll_wait(epoll_.get(), events.data(), kEventsPerTurn, timeout());
    if (n < 0 && errno != EINTR) return Error::from_errno(errno, "epoll_wait");
    for (int i = 0; i < n; ++i) dispatch(events[static_cast<size_t>(i)]);
    engine_->reap();
    fire_timers();
  }
  run_turn_end();
  stop_seen();
  return {};
}

}  // namespace

Result<std::unique_ptr<Reactor>> create_epoll_reactor(const Reactor::Options& options,
                                                      EngineKind engine) {
  VBDKIT_ASSIGN(Fd wake, Fd::eventfd());
  Fd epoll(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll.valid()) return Error::from_errno(errno, "epoll_create1");
  auto reactor = std::make_unique<EpollReactor>(std::move(epoll), std::move(wake));
  VBDKIT_TRY(reactor->set_engine(engine, options.queue_depth));
  return std::unique_ptr<Reactor>(std::move(reactor));
}

}  // namespace vbdkit::io
