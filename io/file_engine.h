// SPDX-License-Identifier: LGPL-2.1-or-later
//
// FileEngine: file operations beneath the epoll reactor, by libaio (io_submit(2)) or by plain
// system calls. The reactor calls flush() once per turn and reap() when events().
// Thread: the reactor's. `done` of an operation runs inside flush() or reap(), never in submit().
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>

#include "io/reactor.h"

namespace vbdkit::io {

// First-in first-out, linked through FileOp::next.
class FileOpQueue {
 public:
  FileOpQueue() = default;
  FileOpQueue(const FileOpQueue&) = delete;
  FileOpQueue& operator=(const FileOpQueue&) = delete;

  size_t size() const { return size_; }
  FileOp* front() const { return head_; }

  void push(FileOp& op) {
    op.next = nullptr;
    *tail_ = &op;
    tail_ = &op.next;
    ++size_;
  }

  // Not on an empty queue.
  FileOp& pop() {
    FileOp& op = *head_;
    head_ = op.next;
    if (head_ == nullptr) tail_ = &head_;
    --size_;
    return op;
  }

 private:
  FileOp* head_ = nullptr;
  FileOp** tail_ = &head_;
  size_t size_ = 0;
};

inline bool transfers(const FileOp& op) {
  return op.kind == FileOp::Kind::kRead || op.kind == FileOp::Kind::kWrite;
}

// How much is handed to the kernel at once. The last operation may exceed the bytes.
struct Slice {
  size_t operations = SIZE_MAX;
  size_t bytes = SIZE_MAX;

  bool used_up() const { return operations == 0 || bytes == 0; }
  void take(const FileOp& op) {
    --operations;
    if (!transfers(op)) return;
    size_t moved = 0;
    for (const iovec& v : std::span(op.iov, op.iov_count)) moved += v.iov_len;
    bytes -= std::min(bytes, moved);
  }
};

class FileEngine {
 public:
  virtual ~FileEngine() = default;

  virtual const char* name() const = 0;
  virtual void submit(FileOp& op) = 0;
  // Hands over what was submitted so far, at most that much.
  virtual void flush(const Slice& most) = 0;
  // True where the next flush() can go on without waiting for a completion.
  virtual bool can_flush() const = 0;
  // Completes what the kernel has finished.
  virtual void reap() {}
  // Becomes readable, edge by edge, when reap() is due; -1: never.
  virtual int event_fd() const { return -1; }

 protected:
  FileEngine() = default;
  FileEngine(const FileEngine&) = delete;
  FileEngine& operator=(const FileEngine&) = delete;
};

// Both count their system calls in `counters`, which must outlive them.
[[gnu::cold]] Result<std::unique_ptr<FileEngine>> create_aio_engine(unsigned depth,
                                                                    ReactorCounters& counters);
std::unique_ptr<FileEngine> create_sync_engine(ReactorCounters& counters);

// Does the operation now; its result as FileOp::done gets it.
int64_t execute(const FileOp& op);

}  // namespace vbdkit::io
