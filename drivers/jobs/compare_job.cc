// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/jobs/compare_job.h"

#include <algorithm>
#include <cerrno>

#include "drivers/jobs/job_buffer.h"

namespace vbdkit::drivers {

// One piece on its way: read from both sides, then compared.
struct CompareJob::Slot {
  struct Read : Request {
    Slot* slot = nullptr;
    iovec vector{};
    Node* node = nullptr;
  };

  Slot(CompareJob& owner, size_t size) : job(owner), buffers{JobBuffer(size), JobBuffer(size)} {}

  CompareJob& job;
  JobBuffer buffers[2];
  Read reads[2];
  uint64_t offset = 0;
  uint64_t length = 0;
  unsigned pending = 0;
};

CompareJob::CompareJob(Node& a, Node& b, const CompareOptions& options)
    : unit_(std::max<uint64_t>(
          {a.info().request_alignment, b.info().request_alignment, kSectorSize})),
      request_size_(std::max(unit_, options.request_size)),
      end_(std::max(a.info().size.v, b.info().size.v)),
      sides_{{a, ExtentCursor(a, 0, end_)}, {b, ExtentCursor(b, 0, end_)}} {
  for (unsigned i = 0; i < std::max(1u, options.requests); ++i) {
    slots_.push_back(std::make_unique<Slot>(*this, request_size_));
    idle_.push_back(slots_.back().get());
  }
}

CompareJob::~CompareJob() = default;

void CompareJob::start(std::function<void(Answer)> done) {
  done_ = std::move(done);
  pump();
}

void CompareJob::cancel() {
  if (!error_) error_ = Error(ErrorKind::kIo, "interrupted", ECANCELED);
}

void CompareJob::fail(const Node& node, uint64_t offset, int error) {
  if (!error_)
    error_ = Error::from_errno(error, "read " + node.spec() + " at byte " + std::to_string(offset));
}

// Everything before a difference must still be looked at, nothing behind it.
bool CompareJob::over() const {
  const uint64_t position = sides_[0].cursor.position();
  return error_ || position >= end_ || (difference_ && position >= *difference_);
}

// Whether both sides know what comes next; asks those that do not.
bool CompareJob::know_more() {
  bool known = true;
  for (Side& side : sides_) {
    if (side.cursor.knows(unit_)) continue;
    known = false;
    if (side.cursor.fetching()) continue;
    side.cursor.fetch([this, &side](int error) {
      if (error != 0) fail(side.node, side.cursor.position(), error);
      pump();
    });
  }
  return known;
}

// How long both sides stay as they are: up to a request's size where one of them must be read.
uint64_t CompareJob::next_piece(bool (&zero)[2]) const {
  const uint64_t position = sides_[0].cursor.position();
  uint64_t length = end_ - position;
  for (int i = 0; i < 2; ++i) {
    const auto& extents = sides_[i].cursor.extents();
    uint64_t zeroes = 0;
    uint64_t known = 0;
    for (const Extent& extent : extents) {
      if (extent.zero && zeroes == known) zeroes += extent.length;
      known += extent.length;
    }
    zero[i] = zeroes == end_ - position || zeroes >= unit_;
    length = std::min(length, zero[i] ? zeroes : known);
  }
  if (!zero[0] || !zero[1])
    length = std::min(length, align_down(position, request_size_) + request_size_ - position);
  return position + length < end_ ? align_down(length, unit_) : length;
}

void CompareJob::pump() {
  again_ = true;
  if (pumping_) return;
  pumping_ = true;
  while (std::exchange(again_, false)) {
    while (!over() && !idle_.empty() && know_more()) {
      const uint64_t offset = sides_[0].cursor.position();
      bool zero[2];
      const uint64_t length = next_piece(zero);
      for (Side& side : sides_) side.cursor.advance(length);
      if (zero[0] && zero[1]) {
        settled_ += length;
        continue;
      }
      Slot& slot = *idle_.back();
      idle_.pop_back();
      begin(slot, offset, length, zero);
    }
  }
  pumping_ = false;
  const bool fetching = sides_[0].cursor.fetching() || sides_[1].cursor.fetching();
  if (!over() || fetching || idle_.size() != slots_.size() || done_ == nullptr) return;
  const auto done = std::exchange(done_, nullptr);
  if (error_)
    done(*error_);
  else
    done(difference_);
}

void CompareJob::begin(Slot& slot, uint64_t offset, uint64_t length, const bool (&zero)[2]) {
  slot.offset = offset;
  slot.length = length;
  slot.pending = 1;
  for (int i = 0; i < 2; ++i) {
    Node& node = sides_[i].node;
    char* const data = slot.buffers[i].data();
    const uint64_t size = node.info().size.v;
    const uint64_t there = zero[i] || offset >= size ? 0 : std::min(length, size - offset);
    memset(data + there, 0, length - there);
    if (there == 0) continue;
    ++slot.pending;
    Slot::Read& read = slot.reads[i];
    static_cast<Request&>(read) = Request{};
    read.slot = &slot;
    read.node = &node;
    read.vector = {data, there};
    read.offset = offset;
    read.length = there;
    read.iov = &read.vector;
    read.iov_count = 1;
    read.done = [](Request& request, int error) {
      auto& self = static_cast<Slot::Read&>(request);
      CompareJob& job = self.slot->job;
      if (error != 0) job.fail(*self.node, self.offset, error);
      job.read_done(*self.slot);
    };
    node.submit(read);
  }
  read_done(slot);
}

void CompareJob::read_done(Slot& slot) {
  if (--slot.pending > 0) return;
  const char* const a = slot.buffers[0].data();
  const char* const b = slot.buffers[1].data();
  if (!error_ && memcmp(a, b, slot.length) != 0) {
    const auto at = static_cast<uint64_t>(std::mismatch(a, a + slot.length, b).first - a);
    difference_ = std::min(difference_.value_or(UINT64_MAX), slot.offset + at);
  }
  settled_ += slot.length;
  idle_.push_back(&slot);
  pump();
}

}  // namespace vbdkit::drivers
