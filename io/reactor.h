// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The reactor: one thread, one loop, everything in it: file I/O, sockets, readiness of foreign
// descriptors (event channels, xenstore), timers, and messages from other threads.
//
// Two implementations: io_uring (liburing), and epoll with libaio or plain system calls beneath
// where io_uring is absent or forbidden. Reactor::create chooses once, best first, and logs it.
//
// Thread: all methods but post() and stop() belong to the thread that calls run().
// Ownership: operations (FileOp, SocketOp) are embedded in what issued them and belong to the
// reactor from submit() until their `done` ran; no call here allocates on the way of an I/O.
// `done` never runs inside submit(): the reactor always calls it from its loop.
// Batching: operations submitted while the loop runs are handed to the kernel together, once per
// turn. Who wants to act once per turn as well (push responses, notify once) uses Deferred.
#pragma once

#include <sys/socket.h>
#include <sys/uio.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "base/fd.h"
#include "base/log.h"
#include "base/result.h"

namespace vbdkit::io {

class Reactor;

struct FileOp {
  enum class Kind : uint8_t { kRead, kWrite, kDataSync, kFallocate };

  Kind kind = Kind::kRead;
  // A hint for kRead and kWrite: the kernel will only copy memory for this one, yet io_uring would
  // give it to a worker thread, as the file system takes no IOCB_NOWAIT. The loop then does it
  // itself, with all others of its turn in one system call.
  bool copies_only = false;
  // A hint for kRead and kWrite: so much memory is to be copied that a worker thread is worth its
  // waking. Goes before copies_only.
  bool bulk = false;
  int fd = -1;
  int rw_flags = 0;            // kRead, kWrite: RWF_* of preadv2(2)
  int fallocate_mode = 0;      // kFallocate: fallocate(2) flags
  uint32_t iov_count = 0;      // kRead, kWrite: at most IOV_MAX
  const iovec* iov = nullptr;  // must stay valid and unchanged until done
  uint64_t offset = 0;         // bytes
  uint64_t length = 0;         // bytes; kFallocate only
  // result: bytes moved, 0 for kDataSync and kFallocate, or -errno. Short counts are possible.
  void (*done)(FileOp& op, int64_t result) = nullptr;
  FileOp* next = nullptr;  // the engine's, while submitted
};

struct SocketOp {
  enum class Kind : uint8_t { kAccept, kRecv, kSend };

  Kind kind = Kind::kRecv;
  int fd = -1;
  int flags = 0;           // MSG_*; MSG_NOSIGNAL is always added to kSend
  void* buffer = nullptr;  // kRecv without msg
  uint32_t length = 0;     // kRecv without msg, bytes
  msghdr* msg = nullptr;   // kSend, and kRecv into several buffers; must stay valid until done
  // result: bytes moved, the new descriptor (CLOEXEC) for kAccept, or -errno.
  // To end a pending operation, shutdown(2) its socket: it then completes.
  void (*done)(SocketOp& op, int64_t result) = nullptr;
  SocketOp* next = nullptr;  // the reactor's, while submitted
};

// Runs once at the end of the present turn of the loop, before operations are handed to the kernel.
// Deferring one that is queued already does nothing. The owner may destroy it only when unqueued.
struct Deferred {
  void (*run)(Deferred& self) = nullptr;
  Deferred* next = nullptr;
  bool queued = false;
};

// Calls back while its descriptor is readable (level-triggered); not called again before the
// callback has returned. Destroying it, also inside the callback, ends the calls. The descriptor is
// not owned and must outlive it.
class FdWatch {
 public:
  virtual ~FdWatch() = default;
};

class Timer {
 public:
  using Clock = std::chrono::steady_clock;
  virtual ~Timer() = default;
  virtual void arm(Clock::time_point deadline) = 0;  // replaces an earlier deadline
  virtual void cancel() = 0;
};

enum class EngineKind { kAuto, kUring, kAio, kSync };

// What the loop has asked of the kernel, for tests that assert costs and for statistics.
struct ReactorCounters {
  uint64_t turns = 0;
  uint64_t kernel_entries = 0;  // system calls the reactor made itself
  uint64_t file_ops = 0;
  uint64_t socket_ops = 0;
};

class Reactor {
 public:
  struct Options {
    EngineKind engine = EngineKind::kAuto;
    unsigned queue_depth = 256;  // entries of the submission queue; more may be in flight
  };

  [[gnu::cold]] static Result<std::unique_ptr<Reactor>> create(const Options& options,
                                                               const Logger& log);
  virtual ~Reactor() = default;

  // Returns after stop(), or with an error of the kernel interface itself. May be called again.
  virtual Result<void> run() = 0;

  virtual void submit(FileOp& op) = 0;
  virtual void submit(SocketOp& op) = 0;
  virtual void defer(Deferred& d) = 0;
  virtual std::unique_ptr<FdWatch> watch(int fd, std::function<void()> readable) = 0;
  virtual std::unique_ptr<Timer> timer(std::function<void()> expired) = 0;

  // From any thread: `task` runs on the reactor's thread, in the order of posting.
  virtual void post(std::function<void()> task) = 0;
  // From any thread, and from signal-free contexts only: run() returns soon.
  virtual void stop() = 0;

  virtual const char* engine_name() const = 0;  // "io_uring", "libaio", "sync"
  virtual const ReactorCounters& counters() const = 0;

 protected:
  Reactor() = default;
  Reactor(const Reactor&) = delete;
  Reactor& operator=(const Reactor&) = delete;
};

// The wire names of EngineKind ("auto", "io_uring", "libaio", "sync").
[[gnu::cold]] Result<EngineKind> parse_engine(std::string_view name);

}  // namespace vbdkit::io
