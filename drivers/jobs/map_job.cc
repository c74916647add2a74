// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/jobs/map_job.h"

#include <algorithm>
#include <cerrno>

namespace vbdkit::drivers {

MapJob::MapJob(const Chain& chain, std::function<void(const MapRun&)> found)
    : chain_(chain),
      found_(std::move(found)),
      window_(std::clamp(chain.leaf().info().map_window, kMinWindow, kMaxWindow)),
      end_(chain.leaf().info().size.v) {}

MapJob::~MapJob() = default;

void MapJob::start(std::function<void(int error)> done) {
  done_ = std::move(done);
  pump();
}

// Answers may come inside the asking: then the loop goes on by itself.
void MapJob::pump() {
  if (pumping_) return;
  pumping_ = true;
  while (error_ == 0 && !waiting_ && position_ < end_) {
    if (cancelled_) {
      error_ = ECANCELED;
      break;
    }
    const uint64_t index = position_ / window_;
    if (!known_ || known_->index() != index) {
      build();
      continue;
    }
    const auto sector = static_cast<uint32_t>(position_ % window_ / kSectorSize);
    const Window::Run run = known_->find(sector, static_cast<uint32_t>(window_ / kSectorSize));
    const uint64_t length = std::min(uint64_t{run.end - sector} * kSectorSize, end_ - position_);
    const Source& source = run.source;
    MapRun found{position_, length, source.kind(), source.layer(), 0};
    if (source.layer() == kNoLayer) found.kind = Segment::Kind::kAbsent;
    if (found.kind == Segment::Kind::kData) found.file_offset = source.file_offset(position_);
    position_ += length;
    if (found.kind == Segment::Kind::kData && chain_.layers[found.layer]->info().format == "raw") {
      holes_in_ = found;
      look_for_holes();
    } else {
      add(found);
    }
  }
  pumping_ = false;
  if (waiting_ || done_ == nullptr) return;
  if (last_) found_(*std::exchange(last_, std::nullopt));
  const auto done = std::exchange(done_, nullptr);
  done(error_);
}

void MapJob::build() {
  waiting_ = true;
  builder_ = std::make_unique<WindowBuilder>(chain_.layers, 0, window_, position_ / window_);
  builder_->start([this](int error) {
    waiting_ = false;
    error_ = error;
    if (error == 0) known_ = builder_->take();
    pump();
  });
}

void MapJob::look_for_holes() {
  waiting_ = true;
  status_.offset = holes_in_->file_offset;
  status_.length = holes_in_->length;
  status_.max_extents = 64;
  status_.extents.clear();
  status_.done = [this](int error) { take_status(error); };
  chain_.layers[holes_in_->layer]->file().block_status(status_);
}

void MapJob::take_status(int error) {
  waiting_ = false;
  MapRun& run = *holes_in_;
  error_ = error;
  for (const Extent& extent : status_.extents) {
    MapRun part = run;
    part.length = std::min(extent.length, run.length);
    if (part.length == 0) break;
    if (extent.zero) {
      part.kind = Segment::Kind::kZero;
      part.file_offset = 0;
    }
    add(part);
    run.offset += part.length;
    run.file_offset += part.length;
    run.length -= part.length;
  }
  if (error == 0 && run.length > 0)
    look_for_holes();
  else
    pump();
}

void MapJob::add(const MapRun& run) {
  if (last_ && last_->kind == run.kind &&
      (run.kind == Segment::Kind::kAbsent || last_->layer == run.layer) &&
      (run.kind != Segment::Kind::kData || last_->file_offset + last_->length == run.file_offset)) {
    last_->length += run.length;
    return;
  }
  if (last_) found_(*last_);
  last_ = run;
}

}  // namespace vbdkit::drivers
