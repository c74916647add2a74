// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/jobs/mirror_filter.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "drivers/iov.h"

namespace vbdkit::drivers {
namespace {

constexpr size_t kExtents = 256;
// How far behind a copy is looked for more that need not be moved.
constexpr uint64_t kLookAhead = 32 << 20;  // bytes

}  // namespace

// One of the two requests that a guest's change becomes.
struct MirrorFilter::Leg : Request {
  Both* both = nullptr;
  bool target = false;
};

struct MirrorFilter::Both {
  MirrorFilter* filter = nullptr;
  Request* guest = nullptr;
  Op op = Op::kWrite;
  Leg disk;
  Leg target;
  BufferPool::Buffer data;
  iovec vector{};
  int error = 0;  // the disk's
  unsigned pending = 0;
  Both* next = nullptr;
};

// A range on its way to the target, extent by extent.
struct MirrorFilter::Copy : Request {
  explicit Copy(size_t room) : buffer(room) {}

  MirrorFilter* filter = nullptr;
  Request* origin = nullptr;  // the job's; null where a guest's change waits
  bool active = false;
  uint64_t start = 0;
  uint64_t end = 0;
  uint64_t cursor = 0;
  StatusRequest status;
  size_t extent = 0;  // of status.extents: the one at the cursor
  bool looking = false;
  bool moving = false;  // a read or a write is in flight
  bool running = false;
  bool again = false;
  int error = 0;  // the disk's
  JobBuffer buffer;
  iovec vector{};
};

MirrorFilter::MirrorFilter(NodePtr disk, Node& target, const MirrorOptions& options,
                           std::function<void()> failed)
    : Filter(std::move(disk)),
      target_(target),
      options_(options),
      failed_(std::move(failed)),
      info_(next().info()),
      unit_(std::max<uint64_t>(
          {info_.request_alignment, target.info().request_alignment, kSectorSize})),
      todo_(info_.size.v, options.chunk),
      changed_(options.mode == Mode::kBeforeWrite ? info_.size.v : 0, options.chunk),
      target_zero_(options.target_zero) {
  const uint64_t most = target.info().max_transfer;
  if (most != 0)
    info_.max_transfer = info_.max_transfer == 0 ? most : std::min(info_.max_transfer, most);
}

MirrorFilter::~MirrorFilter() = default;

Result<void> MirrorFilter::check(const Node& disk, const Node& target) {
  const NodeInfo& from = disk.info();
  const NodeInfo& to = target.info();
  if (to.read_only)
    return Error(ErrorKind::kPermission, target.spec() + " cannot be written to", EROFS);
  if (to.size.v < from.size.v)
    return Error(ErrorKind::kInvalid, target.spec() + " has " + std::to_string(to.size.v) +
                                          " bytes and the disk " + std::to_string(from.size.v));
  if (to.request_alignment > std::max<uint64_t>(from.request_alignment, kSectorSize))
    return Error(ErrorKind::kUnsupported, target.spec() + " takes requests in multiples of " +
                                              std::to_string(to.request_alignment) +
                                              " bytes, and the disk has smaller sectors");
  return {};
}

Result<void> MirrorFilter::resize(Bytes) {
  return Error(ErrorKind::kBusy,
               owner_ +
                   " runs on this disk, which keeps its size meanwhile; wait for its end or "
                   "cancel it",
               EBUSY);
}

Result<void> MirrorFilter::reopen(bool read_only) {
  VBDKIT_TRY(next().reopen(read_only));
  info_.read_only = read_only;
  return {};
}

void MirrorFilter::fail(int error, const char* what, uint64_t offset) {
  if (failure_) return;
  failure_ = Error::from_errno(
      error, std::string(what) + " " + target_.spec() + " at byte " + std::to_string(offset));
  failed_();
}

void MirrorFilter::submit(Request& request) {
  if (request.op == Op::kCopy) {
    if (options_.mode == Mode::kBeforeWrite && !failure_)
      copy_before(request);
    else
      start_copy(take_copy(), request.offset, request.length, &request);
    return;
  }
  const bool changes = request.op != Op::kRead && request.op != Op::kFlush;
  if (failure_ || request.op == Op::kRead || options_.mode == Mode::kPullIn || info_.read_only ||
      (changes && !range_inside(request.offset, request.length, info_.size.v)))
    next().submit(request);
  else if (options_.mode == Mode::kFollow)
    follow(request);
  else if (request.op == Op::kFlush)
    next().submit(request);
  else
    copy_before(request);
}

void MirrorFilter::follow(Request& request) {
  if (request.op == Op::kFlush) {
    if (flush_both_)
      send_both(request, Op::kFlush);
    else
      next().submit(request);
    return;
  }
  if (todo_.all(request.offset, request.length)) {
    next().submit(request);
    return;
  }
  // Part of it may lie in a chunk that is still to be copied, and so be written there now.
  if (todo_.any(request.offset, request.length)) target_zero_ = false;
  // What a discard leaves is for each node to say, and they need not say the same.
  send_both(request, request.op == Op::kDiscard ? Op::kWriteZeroes : request.op);
}

void MirrorFilter::send_both(Request& request, Op op) {
  BufferPool::Buffer data;
  if (op == Op::kWrite) {
    if (request.length <= BufferPool::kMaxBytes) data = memory_.take(request.length);
    if (!data) {
      // No memory: the disk has it, and the target gets it later.
      todo_.mark(request.offset, request.length);
      target_zero_ = false;
      next().submit(request);
      return;
    }
    copy_from_iov(request.iov, 0, reinterpret_cast<char*>(data.data()), request.length);
  }
  Both* both = idle_both_;
  if (both == nullptr) {
    both_.push_back(std::make_unique<Both>());
    both = both_.back().get();
    both->filter = this;
  } else {
    idle_both_ = both->next;
  }
  both->guest = &request;
  both->op = op;
  both->data = std::move(data);
  both->vector = {both->data.data(), request.length};
  both->error = 0;
  both->pending = 2;
  send_leg(*both, false);
  // It may be done by now, and be in use for another request, where it was to go to both in turn.
  if (!options_.disk_first) send_leg(*both, true);
}

void MirrorFilter::send_leg(Both& both, bool to_target) {
  Leg& leg = to_target ? both.target : both.disk;
  leg.both = &both;
  leg.target = to_target;
  leg.op = both.op;
  leg.flags = both.guest->flags;
  if (both.op != both.guest->op) leg.flags |= kMayUnmap;
  leg.offset = both.guest->offset;
  leg.length = both.guest->length;
  leg.iov = both.op == Op::kWrite ? &both.vector : nullptr;
  leg.iov_count = both.op == Op::kWrite ? 1 : 0;
  leg.done = [](Request& request, int error) {
    Leg& self = static_cast<Leg&>(request);
    self.both->filter->leg_done(self, error);
  };
  (to_target ? target_ : next()).submit(leg);
}

void MirrorFilter::leg_done(Leg& leg, int error) {
  Both& both = *leg.both;
  if (error != 0 && leg.target) fail(error, leg.op == Op::kFlush ? "flush" : "write", leg.offset);
  if (error != 0 && !leg.target) {
    both.error = error;
    if (leg.op != Op::kFlush) {
      // The two may differ now.
      todo_.mark(leg.offset, leg.length);
      target_zero_ = false;
    }
  }
  if (!leg.target && options_.disk_first) {
    if (error == 0 && !failure_) {
      both.pending = 1;
      send_leg(both, true);
      return;
    }
    both.pending = 1;
  }
  if (--both.pending > 0) return;
  both.data.reset();
  Request& guest = *both.guest;
  const int answer = both.error;
  both.next = idle_both_;
  idle_both_ = &both;
  guest.done(guest, answer);
}

// Parks the request until its chunks are copied; what goes on has none that are not.
void MirrorFilter::copy_before(Request& request) {
  uint64_t at = request.offset;
  const uint64_t end = request.offset + request.length;
  if (failure_ || request.length == 0 || !todo_.any(at, request.length)) {
    if (request.op == Op::kCopy) {
      request.done(request, 0);
    } else {
      changed_.mark(request.offset, request.length);
      next().submit(request);
    }
    return;
  }
  parked_.push(request);
  // Ranges first: a copy may end inside of start_copy(), and the request with it.
  std::vector<ChunkBitmap::Run> missing;
  while (const auto run = todo_.next(at, options_.transfer)) {
    if (run->offset >= end) break;
    at = run->offset + std::min(run->length, align_up(end - run->offset, options_.chunk));
    for (uint64_t chunk = run->offset; chunk < at; chunk += options_.chunk)
      if (!being_copied(chunk, 1)) {
        const uint64_t length = std::min(options_.chunk, info_.size.v - chunk);
        if (!missing.empty() && missing.back().offset + missing.back().length == chunk)
          missing.back().length += length;
        else
          missing.push_back({chunk, length});
      }
  }
  std::vector<Copy*> copies;
  for (const ChunkBitmap::Run& run : missing) {
    Copy& copy = take_copy();
    copy.start = run.offset;
    copy.end = run.offset + run.length;
    copies.push_back(&copy);
  }
  for (Copy* copy : copies) start_copy(*copy, copy->start, copy->end - copy->start, nullptr);
}

bool MirrorFilter::being_copied(uint64_t offset, uint64_t length) const {
  return std::any_of(copies_.begin(), copies_.end(), [&](const auto& copy) {
    return copy->active && copy->start < offset + length && offset < copy->end;
  });
}

void MirrorFilter::look_at_parked_again() {
  RequestQueue waiting;
  while (!parked_.empty()) waiting.push(parked_.pop());
  while (!waiting.empty()) copy_before(waiting.pop());
}

MirrorFilter::Copy& MirrorFilter::take_copy() {
  auto idle =
      std::find_if(copies_.begin(), copies_.end(), [](const auto& copy) { return !copy->active; });
  if (idle == copies_.end()) idle = copies_.insert(idle, std::make_unique<Copy>(options_.transfer));
  Copy& copy = **idle;
  copy.filter = this;
  copy.active = true;
  return copy;
}

void MirrorFilter::start_copy(Copy& copy, uint64_t offset, uint64_t length, Request* origin) {
  copy.origin = origin;
  copy.start = copy.cursor = offset;
  copy.end = offset + length;
  copy.error = 0;
  copy.status.extents.clear();
  copy.extent = 0;
  copy.looking = copy.moving = false;
  copy.running = copy.again = false;
  go_on(copy);
}

// Nodes may answer inside of submit(): this loop is left only to wait.
void MirrorFilter::go_on(Copy& copy) {
  copy.again = true;
  if (copy.running) return;
  copy.running = true;
  while (std::exchange(copy.again, false)) {
    if (copy.looking || copy.moving) continue;
    if (!step(copy)) {
      copy.running = false;
      end_copy(copy, copy.error);
      return;
    }
  }
  copy.running = false;
}

// False at the end.
bool MirrorFilter::step(Copy& copy) {
  while (copy.cursor < copy.end && copy.error == 0 && !failure_) {
    std::vector<Extent>& extents = copy.status.extents;
    while (copy.extent < extents.size() && extents[copy.extent].length == 0) ++copy.extent;
    if (copy.extent == extents.size()) {
      look(copy);
      return true;
    }
    const uint64_t left = copy.end - copy.cursor;
    const Kind kind = kind_of(extents[copy.extent]);
    uint64_t run = 0;
    for (size_t i = copy.extent; i < extents.size() && kind_of(extents[i]) == kind; ++i)
      run += extents[i].length;
    uint64_t length = std::min(left, align_down(run, unit_));
    // Data, and what no whole unit is alike of.
    const bool data = kind == Kind::kData || length == 0;
    if (data) length = std::min({left, align_up(run, unit_), options_.transfer});
    uint64_t passed = length;
    for (size_t i = copy.extent; i < extents.size() && passed > 0; ++i) {
      const uint64_t part = std::min(passed, extents[i].length);
      extents[i].length -= part;
      passed -= part;
    }
    if (data)
      move(copy, length);
    else if (kind != Kind::kNothing)
      put_zeroes(copy, kind, length);
    else
      copy.cursor += length;
    if (data || kind != Kind::kNothing) return true;
  }
  return false;
}

void MirrorFilter::look(Copy& copy) {
  copy.looking = true;
  copy.extent = 0;
  StatusRequest& status = copy.status;
  status.offset = copy.cursor;
  status.length = std::min(info_.size.v - copy.cursor, copy.end - copy.cursor + kLookAhead);
  status.max_extents = kExtents;
  status.near_images = options_.pulled_images;
  status.extents.clear();
  status.done = [this, &copy](int error) { looked(copy, error); };
  next().block_status(status);
}

void MirrorFilter::looked(Copy& copy, int error) {
  copy.looking = false;
  StatusRequest& status = copy.status;
  if (error == EOPNOTSUPP)
    status.extents.assign(1, Extent{copy.end - copy.cursor, true, false, true});
  else if (error != 0)
    copy.error = error;
  uint64_t at = copy.cursor;
  quiet_begin_ = quiet_end_ = copy.end;
  for (const Extent& extent : status.extents) {
    at += extent.length;
    if (at <= copy.end) continue;
    const Kind kind = kind_of(extent);
    if (kind != Kind::kNothing && kind != Kind::kGap) break;
    quiet_end_ = at;
  }
  go_on(copy);
}

MirrorFilter::Kind MirrorFilter::kind_of(const Extent& extent) const {
  if (options_.mode == Mode::kPullIn) return kind_to_pull(extent);
  if (options_.own_only && !extent.own) return Kind::kNothing;
  return extent.zero ? kind_of_zeroes() : Kind::kData;
}

MirrorFilter::Kind MirrorFilter::kind_of_zeroes() const {
  if (options_.mode != Mode::kPullIn) return target_zero_ ? Kind::kNothing : Kind::kZero;
  // Zeroes of an image that goes may hide what one that stays holds there.
  if (options_.pulled_images != MirrorOptions::kAllImages) return Kind::kZero;
  // What parents are zero in reads the same without them.
  return options_.gaps ? Kind::kGap : Kind::kNothing;
}

MirrorFilter::Kind MirrorFilter::kind_to_pull(const Extent& extent) const {
  if (extent.own) return Kind::kNothing;
  if (options_.pulled_images != MirrorOptions::kAllImages && !extent.near) return Kind::kNothing;
  return extent.zero ? kind_of_zeroes() : Kind::kData;
}

void MirrorFilter::move(Copy& copy, uint64_t length) {
  copy.moving = true;
  copy.op = Op::kRead;
  copy.flags = 0;
  copy.vector = {copy.buffer.data(), length};
  copy.iov = &copy.vector;
  copy.iov_count = 1;
  copy.offset = copy.cursor;
  copy.length = length;
  copy.done = [](Request& request, int error) {
    Copy& self = static_cast<Copy&>(request);
    MirrorFilter& filter = *self.filter;
    if (error != 0) {
      self.error = error;
      self.moving = false;
      filter.go_on(self);
      return;
    }
    if (all_zero(self.buffer.data(), self.length)) {
      const Kind kind = filter.kind_of_zeroes();
      if (kind == Kind::kNothing)
        filter.target_done(self, 0);
      else
        filter.put_zeroes(self, kind, self.length);
      return;
    }
    self.op = Op::kWrite;
    self.done = [](Request& r, int e) {
      Copy& c = static_cast<Copy&>(r);
      c.filter->target_done(c, e);
    };
    filter.target_.submit(self);
  };
  next().submit(copy);
}

void MirrorFilter::put_zeroes(Copy& copy, Kind kind, uint64_t length) {
  copy.moving = true;
  copy.op = Op::kWriteZeroes;
  copy.flags = kind == Kind::kGap ? kMayUnmap | kInPlace : kMayUnmap;
  copy.iov = nullptr;
  copy.iov_count = 0;
  copy.offset = copy.cursor;
  copy.length = length;
  copy.done = [](Request& request, int error) {
    Copy& self = static_cast<Copy&>(request);
    self.filter->target_done(self, error);
  };
  target_.submit(copy);
}

void MirrorFilter::target_done(Copy& copy, int error) {
  if (error != 0) fail(error, "write", copy.offset);
  copy.cursor += copy.length;
  copy.moving = false;
  go_on(copy);
}

void MirrorFilter::end_copy(Copy& copy, int error) {
  if (error == 0 && !failure_) todo_.clear(copy.start, copy.end - copy.start);
  Request* const origin = std::exchange(copy.origin, nullptr);
  copy.active = false;
  if (options_.mode == Mode::kBeforeWrite) {
    // The old data cannot be kept, so there is nothing to be had from the target.
    if (error != 0 && !failure_) {
      failure_ = Error::from_errno(
          error, "read " + next().spec() + " at byte " + std::to_string(copy.cursor));
      failed_();
    }
    look_at_parked_again();
  }
  if (origin != nullptr) origin->done(*origin, failure_ ? failure_->sys_errno() : error);
}

}  // namespace vbdkit::drivers
