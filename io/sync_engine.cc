// SPDX-License-Identifier: LGPL-2.1-or-later
#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "io/file_engine.h"

#include <algorithm>

namespace vbdkit::io {
namespace {

ssize_t call(const FileOp& op) {
  const auto offset = static_cast<off_t>(op.offset);
  const auto count = static_cast<int>(op.iov_count);
  switch (op.kind) {
    case FileOp::Kind::kRead:
      return preadv2(op.fd, op.iov, count, offset, op.rw_flags);
    case FileOp::Kind::kWrite:
      return pwritev2(op.fd, op.iov, count, offset, op.rw_flags);
    case FileOp::Kind::kDataSync:
      return fdatasync(op.fd);
    case FileOp::Kind::kFallocate:
      return fallocate(op.fd, op.fallocate_mode, offset, static_cast<off_t>(op.length));
  }
  errno = EINVAL;
  return -1;
}

// Does each operation when the turn ends. The loop waits for the disk meanwhile: the last resort.
class SyncEngine final : public FileEngine {
 public:
  explicit SyncEngine(ReactorCounters& counters) : counters_(counters) {}

  const char* name() const override { return "sync"; }
  void submit(FileOp& op) override { queue_.push(op); }
  bool can_flush() const override { return queue_.size() > 0; }

  void flush(const Slice& most) override {
    Slice left = most;
    // What a completion submits waits for the next turn, so that sockets and timers get theirs.
    left.operations = std::min(left.operations, queue_.size());
    while (!left.used_up()) {
      FileOp& op = queue_.pop();
      left.take(op);
      ++counters_.kernel_entries;
      op.done(op, execute(op));
    }
  }

 private:
  ReactorCounters& counters_;
  FileOpQueue queue_;
};

}  // namespace

int64_t execute(const FileOp& op) {
  const ssize_t r = call(op);
  return r < 0 ? -errno : r;
}

std::unique_ptr<FileEngine> create_sync_engine(ReactorCounters& counters) {
  return std::make_unique<SyncEngine>(counters);
}

}  // namespace vbdkit::io
