// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/chain/window_builder.h"

#include <algorithm>
#include <cerrno>

namespace vbdkit::drivers {

WindowBuilder::WindowBuilder(const Layers& layers, uint16_t first, uint64_t window, uint64_t index,
                             std::span<const uint16_t> ids)
    : layers_(layers),
      ids_(ids),
      window_(window),
      index_(index),
      first_(first),
      asked_(first),
      merged_(first) {}

void WindowBuilder::start(std::function<void(int error)> done) {
  done_ = std::move(done);
  const uint64_t begin = index_ * window_;
  absent_.push_back({begin, begin + window_});
  pump();
}

void WindowBuilder::remapped(uint64_t offset, uint64_t length, Source source) {
  changes_.push_back({offset, offset + length, source});
}

void WindowBuilder::pump() {
  again_ = true;
  if (pumping_) return;
  pumping_ = true;
  while (std::exchange(again_, false)) {
    while (merged_ < asked_ && asks_[merged_ - first_].answered) merge(merged_++);
    // A layer that answers at once is merged before the next is asked.
    if (ask_next()) again_ = true;
  }
  pumping_ = false;
  if (outstanding_ > 0) return;
  for (const Range& range : absent_) place(range, Source::nowhere());
  absent_.clear();
  const auto done = std::move(done_);
  done(error_);
}

bool WindowBuilder::ask_next() {
  if (error_ != 0 || absent_.empty() || asked_ == layers_.size() || outstanding_ >= allowance_)
    return false;
  ask(asked_++);
  return true;
}

void WindowBuilder::ask(uint16_t layer) {
  Ask& ask = asks_.emplace_back();
  const uint64_t size = layers_[layer]->info().size.v;
  const uint64_t begin = absent_.front().start;
  const uint64_t end = std::min(absent_.back().end, size);
  ask.request.offset = begin;
  if (begin >= end) {
    ask.answered = true;
    return;
  }
  ask.request.length = end - begin;
  ask.request.done = [this, &ask](int error) {
    ask.answered = true;
    if (error != 0 && error_ == 0) error_ = error;
    --outstanding_;
    // The layer had to look, and what it said was not enough: ask more at a time.
    if (!pumping_ && allowance_ < kMaxLayers) allowance_ *= 2;
    pump();
  };
  ++outstanding_;
  layers_[layer]->map(ask.request);
}

// Takes what the layer has of the absent ranges. What lies beyond its end is zero, whatever its own
// parents hold there.
void WindowBuilder::merge(uint16_t layer) {
  const MapRequest& answer = asks_[layer - first_].request;
  if (error_ != 0) return;
  const uint64_t size = layers_[layer]->info().size.v;
  std::vector<Range> rest;
  size_t i = 0;
  uint64_t at = answer.offset;  // where segment i starts
  for (Range range : absent_) {
    if (range.end > size) {
      place({std::max(range.start, size), range.end}, Source::nowhere());
      range.end = size;
    }
    while (range.start < range.end) {
      while (i < answer.segments.size() && at + answer.segments[i].length <= range.start)
        at += answer.segments[i++].length;
      if (i == answer.segments.size()) {
        error_ = EIO;  // the layer answered less than it was asked for
        return;
      }
      const Segment& segment = answer.segments[i];
      const uint64_t end = std::min(range.end, at + segment.length);
      if (segment.kind == Segment::Kind::kAbsent) {
        if (!rest.empty() && rest.back().end == range.start)
          rest.back().end = end;
        else
          rest.push_back({range.start, end});
      } else if (segment.kind == Segment::Kind::kData) {
        const auto source = Source::data(id_of(layer), at, segment.file_offset);
        if (!source) {
          error_ = EOVERFLOW;
          return;
        }
        place({range.start, end}, *source);
      } else {
        place({range.start, end}, Source::of_kind(segment.kind, id_of(layer)));
      }
      range.start = end;
    }
  }
  absent_ = std::move(rest);
}

Window WindowBuilder::take() {
  std::sort(pieces_.begin(), pieces_.end(),
            [](const Piece& a, const Piece& b) { return a.start < b.start; });
  const uint64_t begin = index_ * window_;
  const auto sector = [&](uint64_t offset) {
    return static_cast<uint32_t>((offset - begin) / kSectorSize);
  };
  Window window(index_);
  for (const Piece& piece : pieces_) window.append(sector(piece.start), piece.source);
  for (const Piece& change : changes_) {
    const uint64_t start = std::max(change.start, begin);
    const uint64_t end = std::min(change.end, begin + window_);
    if (start < end)
      window.assign(sector(start), sector(end), sector(begin + window_), change.source);
  }
  return window;
}

}  // namespace vbdkit::drivers
