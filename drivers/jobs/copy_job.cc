// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/jobs/copy_job.h"

#include <algorithm>
#include <cerrno>

namespace vbdkit::drivers {
namespace {

constexpr uint64_t kGrain = 4096;                    // bytes; zeroes are looked for in such pieces
constexpr uint64_t kMostZeroes = uint64_t{1} << 30;  // bytes per request

uint64_t unit_of(const Node& a, const Node& b) {
  return std::max<uint64_t>({a.info().request_alignment, b.info().request_alignment, kSectorSize});
}

uint64_t transfer_of(const Node& a, const Node& b, uint64_t wanted) {
  for (const uint64_t most : {a.info().max_transfer, b.info().max_transfer})
    if (most != 0) wanted = std::min(wanted, most);
  return wanted;
}

// The run of data or of zeroes at `at`; a run of zeroes counts as one from `least` on.
struct Run {
  uint64_t length;
  bool zero;
};
Run next_run(const char* data, uint64_t at, uint64_t end, uint64_t least) {
  if (least == 0) return {end - at, false};
  uint64_t zeroes = 0;  // in front of `i`
  for (uint64_t i = at; i < end;) {
    const uint64_t n = std::min(kGrain, end - i);
    const bool zero = all_zero(data + i, n);
    if (!zero && zeroes >= least) {
      const uint64_t begin = i - zeroes;
      return begin == at ? Run{zeroes, true} : Run{begin - at, false};
    }
    zeroes = zero ? zeroes + n : 0;
    i += n;
  }
  if (zeroes < least) return {end - at, false};
  return end - zeroes == at ? Run{zeroes, true} : Run{end - zeroes - at, false};
}

}  // namespace

// One piece on its way: read whole, then written run by run (data, and the zeroes found in it).
struct CopyJob::Slot : Request {
  Slot(CopyJob& copy, size_t room) : job(copy), buffer(room) {}

  void prepare(Op what, uint64_t at, uint64_t bytes, char* memory) {
    static_cast<Request&>(*this) = Request{};
    vector = {memory, bytes};
    op = what;
    flags = what == Op::kWriteZeroes ? kMayUnmap : 0;
    offset = at;
    length = bytes;
    iov = memory == nullptr ? nullptr : &vector;
    iov_count = memory == nullptr ? 0 : 1;
  }

  CopyJob& job;
  iovec vector{};
  JobBuffer buffer;
  uint64_t start = 0;    // of the piece
  uint64_t size = 0;     // likewise
  uint64_t written = 0;  // of it
  bool zeroes = false;   // the piece is zeroes, and nothing was read
};

CopyJob::CopyJob(Node& source, Node& destination, const CopyOptions& options)
    : source_(source),
      destination_(destination),
      options_(options),
      unit_(unit_of(source, destination)),
      sparse_(options.absent == CopyOptions::Absent::kKeep || options.sparse == 0
                  ? 0
                  : align_up(options.sparse, std::max(unit_, kGrain))),
      request_size_(std::max(unit_, transfer_of(source, destination, options.request_size))),
      start_(options.offset),
      end_(options.offset + std::min(options.length, source.info().size.v - options.offset)),
      cursor_(source, start_, end_) {
  for (unsigned i = 0; i < std::max(1u, options_.requests); ++i) {
    slots_.push_back(std::make_unique<Slot>(*this, request_size_));
    idle_.push_back(slots_.back().get());
  }
}

CopyJob::~CopyJob() = default;

void CopyJob::start(std::function<void(Result<void>)> done) {
  done_ = std::move(done);
  pump();
}

void CopyJob::cancel() { fail("copy", cursor_.position(), ECANCELED); }

void CopyJob::fail(const char* what, uint64_t offset, int error) {
  if (error_) return;
  const Node& node = what[0] == 'w' || what[0] == 'f' ? destination_ : source_;
  error_ = error == ECANCELED ? Error(ErrorKind::kIo, "interrupted", ECANCELED)
                              : Error::from_errno(error, std::string(what) + " " + node.spec() +
                                                             " at byte " + std::to_string(offset));
}

CopyJob::Kind CopyJob::kind_of(const Extent& extent) const {
  if (options_.absent == CopyOptions::Absent::kKeep)
    return !extent.allocated ? Kind::kKeep : extent.zero ? Kind::kZero : Kind::kData;
  if (!extent.zero) return Kind::kData;
  return options_.destination_zero ? Kind::kKeep : Kind::kZero;
}

// What comes next, as far as one request can do it. Pieces begin at multiples of the unit.
CopyJob::Piece CopyJob::next_piece() const {
  const uint64_t position = cursor_.position();
  const Kind kind = kind_of(cursor_.extents().front());
  if (kind == Kind::kData) return data_piece();
  uint64_t length = 0;
  for (const Extent& extent : cursor_.extents()) {
    if (kind_of(extent) != kind) break;
    length += extent.length;
  }
  if (position + length < end_) length = align_down(length, unit_);
  if (kind == Kind::kZero) length = std::min(length, kMostZeroes);
  // Less than a unit: it goes with the data behind it.
  return length == 0 ? data_piece() : Piece{length, kind};
}

CopyJob::Piece CopyJob::data_piece() const {
  const uint64_t position = cursor_.position();
  // Pieces end where those of a copy without holes would, so that they meet whole clusters.
  const uint64_t most = align_down(position, request_size_) + request_size_ - position;
  uint64_t length = 0;
  uint64_t known = 0;
  for (const Extent& extent : cursor_.extents()) {
    const bool data = kind_of(extent) == Kind::kData;
    if (!data && length >= unit_ && length % unit_ == 0 &&
        (extent.length >= options_.sparse || options_.absent == CopyOptions::Absent::kKeep))
      break;
    known += extent.length;
    length = data ? known : std::max(length, std::min(known, align_up(length + 1, unit_)));
    if (length >= most) break;
  }
  length = std::min({most, known, align_up(length, unit_)});
  return {position + length < end_ ? align_down(length, unit_) : length, Kind::kData};
}

void CopyJob::pump() {
  again_ = true;
  if (pumping_) return;
  pumping_ = true;
  while (std::exchange(again_, false)) {
    while (!error_ && !cursor_.at_end() && !cursor_.fetching() && !idle_.empty()) {
      if (!cursor_.knows(unit_)) {
        cursor_.fetch([this](int error) {
          if (error != 0) fail("look at", cursor_.position(), error);
          pump();
        });
        continue;
      }
      const uint64_t offset = cursor_.position();
      const Piece piece = next_piece();
      cursor_.advance(piece.length);
      if (piece.kind == Kind::kKeep) {
        settled_ += piece.length;
        continue;
      }
      Slot& slot = *idle_.back();
      idle_.pop_back();
      begin(slot, offset, piece);
    }
  }
  pumping_ = false;
  if ((error_ || cursor_.at_end()) && !cursor_.fetching() && idle_.size() == slots_.size()) end();
}

void CopyJob::begin(Slot& slot, uint64_t offset, const Piece& piece) {
  slot.start = offset;
  slot.size = piece.length;
  slot.written = 0;
  slot.zeroes = piece.kind == Kind::kZero;
  if (slot.zeroes) {
    write_next(slot);
    return;
  }
  slot.prepare(Op::kRead, offset, piece.length, slot.buffer.data());
  // Beside it, this thread copies what is written.
  slot.flags = kBulk;
  slot.done = [](Request& request, int error) {
    auto& self = static_cast<Slot&>(request);
    self.job.read_done(self, error);
  };
  source_.submit(slot);
}

void CopyJob::read_done(Slot& slot, int error) {
  if (error != 0) fail("read", slot.start, error);
  // The last piece may end inside a unit of the destination.
  memset(slot.buffer.data() + slot.size, 0, align_up(slot.size, unit_) - slot.size);
  write_next(slot);
}

void CopyJob::write_next(Slot& slot) {
  const uint64_t whole = align_up(slot.size, unit_);
  while (!error_ && slot.written < whole) {
    char* const data = slot.buffer.data();
    const Run run = slot.zeroes ? Run{whole, true} : next_run(data, slot.written, whole, sparse_);
    const uint64_t at = std::exchange(slot.written, slot.written + run.length);
    if (run.zero && options_.destination_zero && !slot.zeroes) continue;
    slot.prepare(run.zero ? Op::kWriteZeroes : Op::kWrite, slot.start + at, run.length,
                 run.zero ? nullptr : data + at);
    slot.done = [](Request& request, int e) {
      auto& self = static_cast<Slot&>(request);
      if (e != 0) self.job.fail("write", self.offset, e);
      self.job.write_next(self);
    };
    destination_.submit(slot);
    return;
  }
  finish(slot);
}

void CopyJob::finish(Slot& slot) {
  settled_ += slot.size;
  idle_.push_back(&slot);
  pump();
}

void CopyJob::end() {
  if (flush_.job != nullptr || done_ == nullptr) return;
  if (error_) {
    answer();
    return;
  }
  flush_.job = this;
  flush_.op = Op::kFlush;
  flush_.done = [](Request& request, int error) {
    CopyJob& job = *static_cast<Flush&>(request).job;
    if (error != 0) job.fail("flush", job.end_, error);
    job.answer();
  };
  destination_.submit(flush_);
}

void CopyJob::answer() {
  const auto done = std::exchange(done_, nullptr);
  if (error_)
    done(*error_);
  else
    done({});
}

}  // namespace vbdkit::drivers
