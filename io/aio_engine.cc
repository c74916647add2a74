// SPDX-License-Identifier: LGPL-2.1-or-later
#include <libaio.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <atomic>

#include "io/file_engine.h"

namespace vbdkit::io {
namespace {

constexpr unsigned kBatch = 64;
constexpr unsigned kLeastDepth = 8;

// The completion ring that the kernel maps at the context's address (fs/aio.c, struct aio_ring).
// Reading it here saves a system call per turn.
struct AioRing {
  uint32_t id;
  uint32_t entries;
  uint32_t head;  // ours
  uint32_t tail;  // the kernel's
  uint32_t magic;
  uint32_t compat_features;
  uint32_t incompat_features;
  uint32_t header_length;
  io_event events[];
};
constexpr uint32_t kRingMagic = 0xa10a10a1;

class Context {
 public:
  static Result<Context> create(unsigned depth) {
    Context context;
    int r;
    // The system has a limit for all processes together (/proc/sys/fs/aio-max-nr).
    while ((r = io_setup(static_cast<int>(depth), &context.context_)) == -EAGAIN &&
           depth > kLeastDepth)
      depth /= 2;
    if (r < 0) return Error::from_errno(-r, "io_setup");
    context.depth_ = depth;
    return context;
  }
  Context(Context&& o) noexcept : context_(std::exchange(o.context_, nullptr)), depth_(o.depth_) {}
  Context& operator=(Context&&) = delete;
  // Waits for what is in flight.
  ~Context() {
    if (context_ != nullptr) io_destroy(context_);
  }

  io_context_t get() const { return context_; }
  unsigned depth() const { return depth_; }
  AioRing* ring() const {
    auto* ring = reinterpret_cast<AioRing*>(context_);
    return ring->magic == kRingMagic && ring->incompat_features == 0 ? ring : nullptr;
  }

 private:
  Context() = default;

  io_context_t context_ = nullptr;
  unsigned depth_ = 0;
};

class AioEngine final : public FileEngine {
 public:
  AioEngine(Context context, Fd event, ReactorCounters& counters)
      : context_(std::move(context)), event_(std::move(event)), counters_(counters) {}

  const char* name() const override { return "libaio"; }
  void submit(FileOp& op) override { queue_.push(op); }
  bool can_flush() const override { return queue_.size() > 0 && in_flight_ < context_.depth(); }
  int event_fd() const override { return event_.get(); }
  void flush(const Slice& most) override;
  void reap() override;

 private:
  bool asynchronous(const FileOp& op) const {
    return op.kind != FileOp::Kind::kFallocate &&
           (op.kind != FileOp::Kind::kDataSync || has_data_sync_);
  }
  void prepare(iocb& cb, FileOp& op) const;
  bool submit_batch(Slice& left);
  void complete(FileOp& op, int64_t result);
  void complete_here();
  void reap_by_call();

  Context context_;
  Fd event_;
  ReactorCounters& counters_;
  FileOpQueue queue_;
  unsigned in_flight_ = 0;
  bool has_data_sync_ = true;  // kernels before 4.18 refuse it
};

void AioEngine::prepare(iocb& cb, FileOp& op) const {
  const auto offset = static_cast<long long>(op.offset);
  const auto count = static_cast<int>(op.iov_count);
  switch (op.kind) {
    case FileOp::Kind::kRead:
      io_prep_preadv2(&cb, op.fd, op.iov, count, offset, op.rw_flags);
      break;
    case FileOp::Kind::kWrite:
      io_prep_pwritev2(&cb, op.fd, op.iov, count, offset, op.rw_flags);
      break;
    default:
      io_prep_fdsync(&cb, op.fd);
      break;
  }
  io_set_eventfd(&cb, event_.get());
  cb.data = &op;
}

// What the kernel cannot do asynchronously. Rare, and short on the file systems that are used.
void AioEngine::complete_here() {
  FileOp& op = queue_.pop();
  ++counters_.kernel_entries;
  op.done(op, execute(op));
}

// Submits from the head of the queue as much as goes in one call. False where the kernel takes none
// now.
bool AioEngine::submit_batch(Slice& left) {
  std::array<iocb, kBatch> blocks;
  std::array<iocb*, kBatch> pointers;
  const unsigned most = std::min(kBatch, context_.depth() - in_flight_);
  unsigned count = 0;
  for (FileOp* op = queue_.front();
       op != nullptr && count < most && !left.used_up() && asynchronous(*op); op = op->next) {
    prepare(blocks[count], *op);
    pointers[count] = &blocks[count];
    left.take(*op);
    ++count;
  }
  ++counters_.kernel_entries;
  const int r = io_submit(context_.get(), count, pointers.data());
  if (r > 0) {
    for (int i = 0; i < r; ++i) queue_.pop();
    in_flight_ += static_cast<unsigned>(r);
    return true;
  }
  // An error is about the first operation.
  if (r == -EAGAIN && in_flight_ > 0) return false;
  if (r == -EINVAL && queue_.front()->kind == FileOp::Kind::kDataSync) has_data_sync_ = false;
  if (r == -EAGAIN || r == 0 || !asynchronous(*queue_.front())) {
    complete_here();
  } else {
    FileOp& op = queue_.pop();
    op.done(op, r);
  }
  return true;
}

void AioEngine::flush(const Slice& most) {
  Slice left = most;
  left.operations = std::min(left.operations, queue_.size());
  while (!left.used_up() && in_flight_ < context_.depth()) {
    if (asynchronous(*queue_.front())) {
      if (!submit_batch(left)) return;
    } else {
      left.take(*queue_.front());
      complete_here();
    }
  }
}

void AioEngine::reap_by_call() {
  std::array<io_event, kBatch> events;
  int n;
  do {
    timespec now{};
    ++counters_.kernel_entries;
    n = io_getevents(context_.get(), 0, kBatch, events.data(), &now);
    for (int i = 0; i < n; ++i) {
      const io_event& event = events[static_cast<size_t>(i)];
      complete(*static_cast<FileOp*>(event.data), static_cast<int64_t>(event.res));
    }
  } while (n == static_cast<int>(kBatch));
}

void AioEngine::reap() {
  AioRing* const ring = context_.ring();
  if (ring == nullptr) {
    reap_by_call();
    return;
  }
  const std::atomic_ref<uint32_t> tail(ring->tail);
  const std::atomic_ref<uint32_t> head(ring->head);
  uint32_t at = head.load(std::memory_order_relaxed);
  for (const uint32_t end = tail.load(std::memory_order_acquire); at != end;) {
    const io_event event = ring->events[at];
    at = (at + 1) % ring->entries;
    head.store(at, std::memory_order_release);
    complete(*static_cast<FileOp*>(event.data), static_cast<int64_t>(event.res));
  }
}

void AioEngine::complete(FileOp& op, int64_t result) {
  --in_flight_;
  op.done(op, result);
}

}  // namespace

Result<std::unique_ptr<FileEngine>> create_aio_engine(unsigned depth, ReactorCounters& counters) {
  VBDKIT_ASSIGN(Context context, Context::create(depth));
  VBDKIT_ASSIGN(Fd event, Fd::eventfd());
  return std::unique_ptr<FileEngine>(
      std::make_unique<AioEngine>(std::move(context), std::move(event), counters));
}

}  // namespace vbdkit::io
