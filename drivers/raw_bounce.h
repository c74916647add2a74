// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Where a raw node sends the requests that the kernel would not take as they are: memory or offsets
// that direct I/O refuses, the rest of a transfer the kernel cut short, zeroes that must be
// written. They go in pieces through aligned buffers, of which there is a small number; further
// requests wait their turn.
//
// A write that covers a part of a block reads that block first. Two such writes may touch one
// block without overlapping, so they run one after the other.
// The reactor's thread. No request may be in flight when it is destroyed.
#pragma once

#include <memory>
#include <vector>

#include "drivers/raw_file.h"
#include "drivers/request_queue.h"

namespace vbdkit::drivers {

class BouncePool {
 public:
  static constexpr size_t kBufferSize = 128 * 1024;  // bytes; a multiple of any block size
  static constexpr size_t kMaxBuffers = 8;

  // Called back by the pool.
  class Client {
   public:
    virtual void bounced(Request& request, int error) = 0;
    // The kernel does not take direct I/O on this file after all.
    virtual void direct_refused(RawFile& file) = 0;

   protected:
    ~Client() = default;
  };

  BouncePool(io::Reactor& reactor, Client& client);
  ~BouncePool();

  // A kRead, kWrite or kWriteZeroes whose `owner` is its RawFile.
  void start(Request& request);

 private:
  struct Job;

  void admit(Request& request);
  void begin(Job& job, Request& request);
  void step(Job& job);
  void transfer(Job& job, io::FileOp::Kind kind);
  void fill(Job& job);
  void advance(Job& job, int64_t result);
  void complete(Job& job, int error);
  void finish(Request& request, int error);
  static void transferred(io::FileOp& op, int64_t result);

  io::Reactor& reactor_;
  Client& client_;
  std::vector<std::unique_ptr<Job>> jobs_;
  Job* idle_ = nullptr;
  RequestQueue waiting_;
  Request* partial_running_ = nullptr;  // the write of partial blocks whose turn it is
  RequestQueue partial_waiting_;
};

}  // namespace vbdkit::drivers
