// SPDX-License-Identifier: LGPL-2.1-or-later
#include "io/uring_reactor.h"

#include <liburing.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "io/file_engine.h"
#include "io/reactor_common.h"

namespace vbdkit::io {
namespace {

// A completion finds its owner by the SQE's user_data: a pointer with its type in the low bits.
enum class Tag : uint64_t { kFile = 0, kSocket = 1, kWatch = 2, kIgnore = 3 };
constexpr uint64_t kTagMask = 7;
static_assert(alignof(FileOp) >= 8 && alignof(SocketOp) >= 8);

uint64_t tagged(const void* p, Tag tag) {
  return reinterpret_cast<uint64_t>(p) | static_cast<uint64_t>(tag);
}

// The kernel may complete more than one queue's worth between two turns (sockets, watches).
constexpr unsigned kCompletionsPerSubmission = 4;
constexpr unsigned kReapBatch = 64;
constexpr unsigned kCopiesAtOnce = 128;
constexpr unsigned kCopiesWorthBatching = 256;
// Operations that the kernel does while it takes them (what they want is in the page cache) are
// handed over a few at a time: who waits for the first ones goes on beside the rest, and asks for
// more before this thread runs out of work and both have to be woken. Eight where thirty-two were
// handed over halves the time of such a batch and spares a quarter of its CPU time.
constexpr Slice kSlice = {.operations = 8, .bytes = 512 << 10};

// Not so much that a call of its own would matter.
bool is_small(const FileOp& op) {
  Slice left = {.bytes = 32 << 10};
  left.take(op);
  return !left.used_up();
}

class UringReactor final : public ReactorCommon {
 public:
  UringReactor(io_uring ring, bool disabled, Fd wake)
      : ReactorCommon(std::move(wake)), ring_(ring), disabled_(disabled) {}
  ~UringReactor() override {
    // Watches still known to the kernel die with the ring.
    io_uring_queue_exit(&ring_);
    while (slots_ != nullptr) delete std::exchange(slots_, slots_->next);
  }

  Result<void> run() override;
  void submit(FileOp& op) override;
  void submit(SocketOp& op) override;
  std::unique_ptr<FdWatch> watch(int fd, std::function<void()> readable) override;
  const char* engine_name() const override { return "io_uring"; }

 private:
  // One watched descriptor. The kernel holds its address while a poll is armed, so it outlives its
  // handle until the poll has completed.
  struct WatchSlot {
    int fd = -1;
    std::function<void()> readable;
    bool armed = false;    // a poll is in the kernel or queued for it
    bool dead = false;     // its handle is gone
    bool calling = false;  // inside readable()
    WatchSlot* prev = nullptr;
    WatchSlot* next = nullptr;
  };
  class WatchHandle;

  io_uring_sqe* get_sqe();
  void enable();
  void arm(WatchSlot& slot);
  void end_watch(WatchSlot& slot);
  void free_slot(WatchSlot& slot);
  void complete_watch(WatchSlot& slot);
  void prepare(FileOp& op);
  bool prepare_files();
  void complete(const io_uring_cqe& cqe);
  unsigned reap();
  void run_copies();
  FileEngine* batching_engine();
  int submit_and_wait();

  FileOpQueue files_;  // submitted here, not yet to the kernel
  // The last of those that were handed over in this turn, until it has completed.
  FileOp* last_prepared_ = nullptr;
  bool answers_at_once_ = false;
  io_uring ring_;
  bool disabled_;  // set up with IORING_SETUP_R_DISABLED and not enabled yet
  WatchSlot* slots_ = nullptr;
  // Operations that only copy memory. Once there have been many, libaio does the small ones,
  // several with one call; before that its context is not worth having, as to destroy one takes
  // tens of milliseconds.
  FileOpQueue copies_;
  unsigned small_copies_ = 0;  // done without it
  std::unique_ptr<FileEngine> batching_;
  bool batching_refused_ = false;
};

class UringReactor::WatchHandle final : public FdWatch {
 public:
  WatchHandle(UringReactor& reactor, WatchSlot& slot) : reactor_(reactor), slot_(slot) {}
  ~WatchHandle() override { reactor_.end_watch(slot_); }

 private:
  UringReactor& reactor_;
  WatchSlot& slot_;
};

io_uring_sqe* UringReactor::get_sqe() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  while (sqe == nullptr) {
    enable();
    // The queue is full: hand over what is there. Completions wait for the loop to reap them.
    // -EBUSY (too many unreaped completions) cannot last, as the kernel keeps overflown ones for
    // us.
    ++counters_.kernel_entries;
    io_uring_submit(&ring_);
    sqe = io_uring_get_sqe(&ring_);
  }
  return sqe;
}

// A ring for a single issuer belongs to the thread that enables it: the first to enter the kernel.
void UringReactor::enable() {
  // Through the system call: the shared liburing 2.3 declares io_uring_enable_rings() but does not
  // export it.
  if (std::exchange(disabled_, false))
    syscall(__NR_io_uring_register, ring_.ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
}

// What is completed here may submit more, which waits for the next turn.
void UringReactor::run_copies() {
  Slice left = kSlice;
  left.operations = std::min(left.operations, copies_.size());
  while (!left.used_up()) {
    FileOp& op = copies_.pop();
    left.take(op);
    FileEngine* const engine = is_small(op) ? batching_engine() : nullptr;
    if (engine != nullptr) {
      engine->submit(op);
      continue;
    }
    ++counters_.kernel_entries;
    op.done(op, execute(op));
  }
  if (!batching_) return;
  batching_->flush(Slice());
  batching_->reap();
}

// Null while it is not worth its making, and where there is no libaio to be had.
FileEngine* UringReactor::batching_engine() {
  if (batching_ || batching_refused_) return batching_.get();
  if (++small_copies_ > kCopiesWorthBatching) {
    auto engine = create_aio_engine(kCopiesAtOnce, counters_);
    batching_refused_ = !engine;
    if (engine) batching_ = std::move(engine).value();
  }
  return batching_.get();
}

void UringReactor::submit(FileOp& op) {
  ++counters_.file_ops;
  (op.copies_only && transfers(op) && !op.bulk ? copies_ : files_).push(op);
}

void UringReactor::prepare(FileOp& op) {
  const bool to_worker = op.bulk && transfers(op);
  io_uring_sqe* sqe = get_sqe();
  switch (op.kind) {
    case FileOp::Kind::kRead:
      if (op.iov_count == 1)
        io_uring_prep_read(sqe, op.fd, op.iov->iov_base, static_cast<unsigned>(op.iov->iov_len),
                           op.offset);
      else
        io_uring_prep_readv(sqe, op.fd, op.iov, op.iov_count, op.offset);
      sqe->rw_flags = op.rw_flags;
      break;
    case FileOp::Kind::kWrite:
      if (op.iov_count == 1)
        io_uring_prep_write(sqe, op.fd, op.iov->iov_base, static_cast<unsigned>(op.iov->iov_len),
                            op.offset);
      else
        io_uring_prep_writev(sqe, op.fd, op.iov, op.iov_count, op.offset);
      sqe->rw_flags = op.rw_flags;
      break;
    case FileOp::Kind::kDataSync:
      io_uring_prep_fsync(sqe, op.fd, IORING_FSYNC_DATASYNC);
      break;
    case FileOp::Kind::kFallocate:
      io_uring_prep_fallocate(sqe, op.fd, op.fallocate_mode, static_cast<off_t>(op.offset),
                              static_cast<off_t>(op.length));
      break;
  }
  if (to_worker) io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
  io_uring_sqe_set_data64(sqe, tagged(&op, Tag::kFile));
}

void UringReactor::submit(SocketOp& op) {
  io_uring_sqe* sqe = get_sqe();
  switch (op.kind) {
    case SocketOp::Kind::kAccept:
      io_uring_prep_accept(sqe, op.fd, nullptr, nullptr, SOCK_CLOEXEC);
      break;
    case SocketOp::Kind::kRecv:
      if (op.msg != nullptr)
        io_uring_prep_recvmsg(sqe, op.fd, op.msg, static_cast<unsigned>(op.flags));
      else
        io_uring_prep_recv(sqe, op.fd, op.buffer, op.length, op.flags);
      break;
    case SocketOp::Kind::kSend:
      io_uring_prep_sendmsg(sqe, op.fd, op.msg, static_cast<unsigned>(op.flags | MSG_NOSIGNAL));
      break;
  }
  io_uring_sqe_set_data64(sqe, tagged(&op, Tag::kSocket));
  ++counters_.socket_ops;
}

std::unique_ptr<FdWatch> UringReactor::watch(int fd, std::function<void()> readable) {
  auto* slot = new WatchSlot{};
  slot->fd = fd;
  slot->readable = std::move(readable);
  slot->next = slots_;
  if (slots_ != nullptr) slots_->prev = slot;
  slots_ = slot;
  arm(*slot);
  return std::make_unique<WatchHandle>(*this, *slot);
}

// One-shot polls, armed again after each callback: level-triggered, and the arming costs no system
// call of its own.
void UringReactor::arm(WatchSlot& slot) {
  io_uring_sqe* sqe = get_sqe();
  io_uring_prep_poll_add(sqe, slot.fd, POLLIN);
  io_uring_sqe_set_data64(sqe, tagged(&slot, Tag::kWatch));
  slot.armed = true;
}

void UringReactor::end_watch(WatchSlot& slot) {
  slot.dead = true;
  if (slot.calling) return;  // complete_watch() frees it
  if (!slot.armed) {
    free_slot(slot);
    return;
  }
  io_uring_sqe* sqe = get_sqe();
  io_uring_prep_poll_remove(sqe, tagged(&slot, Tag::kWatch));
  io_uring_sqe_set_data64(sqe, tagged(nullptr, Tag::kIgnore));
}

void UringReactor::free_slot(WatchSlot& slot) {
  if (slot.prev != nullptr) slot.prev->next = slot.next;
  if (slot.next != nullptr) slot.next->prev = slot.prev;
  if (slots_ == &slot) slots_ = slot.next;
  delete &slot;
}

void UringReactor::complete_watch(WatchSlot& slot) {
  slot.armed = false;
  if (!slot.dead) {
    slot.calling = true;
    slot.readable();
    slot.calling = false;
  }
  if (slot.dead)
    free_slot(slot);
  else
    arm(slot);
}

void UringReactor::complete(const io_uring_cqe& cqe) {
  const uint64_t data = cqe.user_data;
  void* const p = reinterpret_cast<void*>(data & ~kTagMask);
  switch (static_cast<Tag>(data & kTagMask)) {
    case Tag::kFile: {
      auto& op = *static_cast<FileOp*>(p);
      if (&op == last_prepared_) last_prepared_ = nullptr;
      op.done(op, cqe.res);
      return;
    }
    case Tag::kSocket: {
      auto& op = *static_cast<SocketOp*>(p);
      op.done(op, cqe.res);
      return;
    }
    case Tag::kWatch:
      complete_watch(*static_cast<WatchSlot*>(p));
      return;
    case Tag::kIgnore:
      return;
  }
}

// True where there was something to hand over.
bool UringReactor::prepare_files() {
  if (files_.size() == 0) return false;
  for (Slice left = answers_at_once_ ? kSlice : Slice(); files_.size() > 0 && !left.used_up();) {
    last_prepared_ = &files_.pop();
    left.take(*last_prepared_);
    prepare(*last_prepared_);
  }
  return true;
}

unsigned UringReactor::reap() {
  unsigned total = 0;
  for (;;) {
    io_uring_cqe* batch[kReapBatch];
    const unsigned n = io_uring_peek_batch_cqe(&ring_, batch, kReapBatch);
    if (n == 0) return total;
    for (unsigned i = 0; i < n; ++i) complete(*batch[i]);
    io_uring_cq_advance(&ring_, n);
    total += n;
  }
}

int UringReactor::submit_and_wait() {
  ++counters_.kernel_entries;
  if (files_.size() > 0 || copies_.size() > 0 || has_deferred() ||
      (batching_ && batching_->can_flush()))
    return io_uring_submit_and_get_events(&ring_);
  io_uring_cqe* cqe = nullptr;
  const auto deadline = next_deadline();
  if (!deadline) return io_uring_submit_and_wait(&ring_, 1);
  const auto left = std::max(Timer::Clock::duration::zero(), *deadline - Timer::Clock::now());
  const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(left).count();
  __kernel_timespec ts{};
  ts.tv_sec = ns / 1'000'000'000;
  ts.tv_nsec = ns % 1'000'000'000;
  return io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, &ts, nullptr);
}

Result<void> UringReactor::run() {
  enable();
  // Saves the descriptor look-up of every turn. Kernels before 5.18 lack it, which does no harm.
  io_uring_register_ring_fd(&ring_);
  auto wake_watch = watch(wake_fd(), [this] { drain_posted(); });
  while (!stopping()) {
    ++counters_.turns;
    run_turn_end();
    run_copies();
    const bool handed_over = prepare_files();
    const int r = submit_and_wait();
    if (r < 0 && r != -ETIME && r != -EINTR && r != -EAGAIN && r != -EBUSY)
      return Error::from_errno(-r, "io_uring_enter");
    reap();
    if (handed_over) answers_at_once_ = last_prepared_ == nullptr;
    fire_timers();
  }
  run_turn_end();
  stop_seen();
  return {};
}

// The newest kernels run completion work only when the loop asks for it, which is the cheapest way
// and makes the largest batches; older ones get what they know.
int init_ring(io_uring& ring, unsigned depth, bool* disabled) {
  const unsigned flag_sets[] = {
      IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
      IORING_SETUP_COOP_TASKRUN,
      0,
  };
  int r = -EINVAL;
  for (unsigned flags : flag_sets) {
    io_uring_params params{};
    params.flags = flags | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
    // DEFER_TASKRUN binds the ring to the thread that enables it; run() may be another one.
    *disabled = (flags & IORING_SETUP_SINGLE_ISSUER) != 0;
    if (*disabled) params.flags |= IORING_SETUP_R_DISABLED;
    params.cq_entries = depth * kCompletionsPerSubmission;
    r = io_uring_queue_init_params(depth, &ring, &params);
    if (r != -EINVAL) break;
  }
  return r;
}

}  // namespace

Result<std::unique_ptr<Reactor>> create_uring_reactor(const Reactor::Options& options) {
  VBDKIT_ASSIGN(Fd wake, Fd::eventfd());
  io_uring ring{};
  bool disabled = false;
  const int r = init_ring(ring, options.queue_depth, &disabled);
  if (r < 0) return Error::from_errno(-r, "io_uring_setup");
  return std::unique_ptr<Reactor>(std::make_unique<UringReactor>(ring, disabled, std::move(wake)));
}

}  // namespace vbdkit::io
