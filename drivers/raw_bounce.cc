// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/raw_bounce.h"

#include <sys/uio.h>

#include <cstdlib>

#include "drivers/iov.h"

namespace vbdkit::drivers {
namespace {

constexpr size_t kBufferAlignment = 4096;

struct FreeBuffer {
  void operator()(char* p) const { free(p); }
};

RawFile& file_of(const Request& request) { return *static_cast<RawFile*>(request.owner); }

bool writes_partial_blocks(const Request& request) {
  return request.op != Op::kRead && !file_of(request).block_aligned(request);
}

}  // namespace

struct BouncePool::Job {
  io::FileOp op;  // first: `transferred` gets the job from it
  BouncePool* pool = nullptr;
  Request* request = nullptr;
  bool was_direct = false;  // how the piece was submitted
  uint64_t position = 0;    // bytes; all before it is done
  // The piece: [start, stop) of the file is in the buffer; the request's part ends at `end`.
  uint64_t start = 0;
  uint64_t stop = 0;
  uint64_t end = 0;
  iovec vec{};
  Job* next_idle = nullptr;
  std::unique_ptr<char, FreeBuffer> buffer;
};

BouncePool::BouncePool(io::Reactor& reactor, Client& client) : reactor_(reactor), client_(client) {}
BouncePool::~BouncePool() = default;

void BouncePool::start(Request& request) {
  if (writes_partial_blocks(request)) {
    if (partial_running_ != nullptr) {
      partial_waiting_.push(request);
      return;
    }
    partial_running_ = &request;
  }
  admit(request);
}

void BouncePool::admit(Request& request) {
  if (idle_ == nullptr && jobs_.size() < kMaxBuffers) {
    auto job = std::make_unique<Job>();
    job->pool = this;
    job->buffer.reset(static_cast<char*>(aligned_alloc(kBufferAlignment, kBufferSize)));
    if (job->buffer) {
      idle_ = job.get();
      jobs_.push_back(std::move(job));
    } else if (jobs_.empty()) {
      finish(request, ENOMEM);
      return;
    }
  }
  if (idle_ == nullptr) {
    waiting_.push(request);
    return;
  }
  Job& job = *idle_;
  idle_ = job.next_idle;
  begin(job, request);
}

void BouncePool::begin(Job& job, Request& request) {
  job.request = &request;
  job.position = request.offset;
  step(job);
}

void BouncePool::step(Job& job) {
  const Request& request = *job.request;
  const RawFile& file = file_of(request);
  const uint64_t request_end = request.offset + request.length;
  if (job.position == request_end) {
    complete(job, 0);
    return;
  }
  job.start = job.position & ~file.block_mask;
  job.end = std::min(request_end, job.start + kBufferSize);
  job.stop = (job.end + file.block_mask) & ~file.block_mask;
  job.was_direct = file.direct();
  const bool partial = job.start < job.position || job.stop > job.end;
  if (request.op == Op::kRead || partial) {
    transfer(job, io::FileOp::Kind::kRead);
  } else {
    fill(job);
    transfer(job, io::FileOp::Kind::kWrite);
  }
}

// Puts the request's part of the piece into the buffer.
void BouncePool::fill(Job& job) {
  const Request& request = *job.request;
  char* const to = job.buffer.get() + (job.position - job.start);
  const uint64_t length = job.end - job.position;
  if (request.op == Op::kWriteZeroes)
    memset(to, 0, length);
  else
    copy_from_iov(request.iov, job.position - request.offset, to, length);
}

void BouncePool::transfer(Job& job, io::FileOp::Kind kind) {
  job.vec = {job.buffer.get(), static_cast<size_t>(job.stop - job.start)};
  io::FileOp& op = job.op;
  op.kind = kind;
  op.fd = file_of(*job.request).fd.get();
  op.rw_flags = kind == io::FileOp::Kind::kWrite && (job.request->flags & kFua) ? RWF_DSYNC : 0;
  op.iov = &job.vec;
  op.iov_count = 1;
  op.offset = job.start;
  op.done = transferred;
  reactor_.submit(op);
}

void BouncePool::transferred(io::FileOp& op, int64_t result) {
  static_assert(offsetof(Job, op) == 0);
  Job& job = reinterpret_cast<Job&>(op);
  job.pool->advance(job, result);
}

void BouncePool::advance(Job& job, int64_t result) {
  if (result == -EINTR || result == -EAGAIN) {
    reactor_.submit(job.op);
    return;
  }
  if (result == -EINVAL && job.was_direct) {
    client_.direct_refused(file_of(*job.request));
    step(job);
    return;
  }
  if (result < 0) {
    complete(job, static_cast<int>(-result));
    return;
  }
  const Request& request = *job.request;
  const uint64_t mask = job.was_direct ? file_of(request).block_mask : 0;
  const uint64_t reached = job.start + static_cast<uint64_t>(result);
  if (job.op.kind == io::FileOp::Kind::kRead && request.op != Op::kRead) {
    // The blocks that are changed in part have been read; of a short read, the whole ones.
    job.stop = reached & ~mask;
    job.end = std::min(job.end, job.stop);
    if (job.end <= job.position) {
      complete(job, EIO);
      return;
    }
    fill(job);
    transfer(job, io::FileOp::Kind::kWrite);
    return;
  }
  // What a short write left of a block is written again with the rest of it.
  const uint64_t position = std::min(job.end, request.op == Op::kRead ? reached : reached & ~mask);
  // The file ends before its size: somebody truncated it.
  if (position <= job.position) {
    complete(job, EIO);
    return;
  }
  if (request.op == Op::kRead)
    copy_to_iov(request.iov, job.position - request.offset,
                job.buffer.get() + (job.position - job.start), position - job.position);
  job.position = position;
  step(job);
}

void BouncePool::complete(Job& job, int error) {
  Request& request = *job.request;
  if (waiting_.empty()) {
    job.next_idle = idle_;
    idle_ = &job;
  } else {
    begin(job, waiting_.pop());
  }
  finish(request, error);
}

void BouncePool::finish(Request& request, int error) {
  if (partial_running_ == &request) {
    partial_running_ = partial_waiting_.empty() ? nullptr : &partial_waiting_.pop();
    if (partial_running_ != nullptr) admit(*partial_running_);
  }
  client_.bounced(request, error);
}

}  // namespace vbdkit::drivers
