// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The flush of a WriteLayer: data durable, then what FlushPlan says, step by step. One runs at a
// time; flushes that come meanwhile are answered by the next.
#include <algorithm>

#include "drivers/vhd/write_layer.h"

namespace vbdkit::drivers::vhd {

void WriteLayer::flush(Request& request) {
  flushes_waiting_.push(request);
  if (stage_ == Stage::kIdle) start_flush();
}

FlushPlan WriteLayer::make_plan() {
  // In the file's order.
  std::sort(dirty_.begin(), dirty_.end(), [&](const Bitmap* a, const Bitmap* b) {
    return blocks_.bitmap_offset(a->block) < blocks_.bitmap_offset(b->block);
  });
  return blocks_.plan(std::exchange(dirty_, {}), bitmaps_);
}

void WriteLayer::drop_plan(bool written) {
  for (Bitmap* bitmap : plan_.bitmaps) {
    if (!written) mark_dirty(*bitmap);
    bitmaps_.unpin(*bitmap);
  }
  if (written)
    blocks_.written(plan_);
  else
    blocks_.restore(plan_);
  plan_ = {};
}

void WriteLayer::start_flush() {
  while (!flushes_waiting_.empty()) flushes_.push(flushes_waiting_.pop());
  plan_ = make_plan();
  enter(Stage::kData);
}

void WriteLayer::enter(Stage stage) {
  stage_ = stage;
  switch (stage) {
    case Stage::kIdle:
      end_flush(0);
      return;
    case Stage::kData:
    case Stage::kFirstDurable:
    case Stage::kSecondDurable:
      sync_file();
      return;
    case Stage::kFirst:
      write_chunks(plan_.first);
      return;
    case Stage::kSecond:
      write_chunks(plan_.second);
      return;
  }
}

void WriteLayer::stage_done(int error) {
  if (error != 0) {
    end_flush(error);
    return;
  }
  switch (stage_) {
    case Stage::kData:
      enter(plan_.empty() ? Stage::kIdle : Stage::kFirst);
      return;
    case Stage::kFirst:
      enter(Stage::kFirstDurable);
      return;
    case Stage::kFirstDurable:
      enter(plan_.second.empty() ? Stage::kIdle : Stage::kSecond);
      return;
    case Stage::kSecond:
      enter(Stage::kSecondDurable);
      return;
    case Stage::kSecondDurable:
    case Stage::kIdle:
      enter(Stage::kIdle);
      return;
  }
}

void WriteLayer::sync_file() {
  sync_.layer = this;
  sync_.request.op = Op::kFlush;
  sync_.request.done = [](Request& r, int error) {
    reinterpret_cast<FlushIo*>(&r)->layer->stage_done(error);
  };
  file_->submit(sync_.request);
}

void WriteLayer::write_chunks(const std::vector<FlushPlan::Chunk>& chunks) {
  chunk_writes_.clear();
  chunk_writes_.resize(chunks.size());
  flush_error_ = 0;
  chunks_pending_ = chunks.size() + 1;
  for (size_t i = 0; i < chunks.size(); ++i) {
    FlushIo& io = chunk_writes_[i];
    io.layer = this;
    io.iov = {plan_.memory[chunks[i].first].bytes.data(), chunks[i].sectors * kSectorSize};
    io.request.op = Op::kWrite;
    io.request.iov = &io.iov;
    io.request.iov_count = 1;
    io.request.offset = chunks[i].offset;
    io.request.length = io.iov.iov_len;
    io.request.done = [](Request& r, int error) {
      WriteLayer& layer = *reinterpret_cast<FlushIo*>(&r)->layer;
      if (error != 0) layer.flush_error_ = error;
      if (--layer.chunks_pending_ == 0) layer.stage_done(layer.flush_error_);
    };
    file_->submit(io.request);
  }
  if (--chunks_pending_ == 0) stage_done(flush_error_);
}

void WriteLayer::end_flush(int error) {
  drop_plan(error == 0);
  // What is answered now may submit again; those flushes are for the next round.
  RequestQueue answered;
  while (!flushes_.empty()) answered.push(flushes_.pop());
  RequestQueue held;
  while (!held_.empty()) held.push(held_.pop());
  stage_ = Stage::kIdle;
  while (!answered.empty()) {
    Request& request = answered.pop();
    request.done(request, error);
  }
  while (!held.empty()) {
    Request& request = held.pop();
    if (error != 0)
      request.done(request, error);
    else
      write(request);
  }
  if (stage_ == Stage::kIdle && !flushes_waiting_.empty()) start_flush();
}

Result<void> WriteLayer::finish() {
  VBDKIT_TRY(write_all());
  return trim();
}

Result<void> WriteLayer::write_all() {
  // The second time for the batmap, which waits for what it tells of.
  while (!dirty_.empty() || blocks_.dirty()) {
    plan_ = make_plan();
    const Result<void> written = write_plan();
    drop_plan(written.ok());
    VBDKIT_TRY(written);
  }
  return {};
}

Result<void> WriteLayer::write_plan() {
  VBDKIT_TRY(control_.flush());
  VBDKIT_TRY(write_now(plan_.first));
  VBDKIT_TRY(control_.flush());
  if (plan_.second.empty()) return {};
  VBDKIT_TRY(write_now(plan_.second));
  return control_.flush();
}

Result<void> WriteLayer::write_now(const std::vector<FlushPlan::Chunk>& chunks) {
  for (const FlushPlan::Chunk& chunk : chunks) {
    const std::byte* const from = plan_.memory[chunk.first].bytes.data();
    VBDKIT_TRY(control_.write(chunk.offset, {from, chunk.sectors * kSectorSize}));
  }
  return {};
}

// Takes back the room for blocks that were not added.
Result<void> WriteLayer::trim() {
  const uint64_t end = blocks_.tight_end();
  if (!blocks_.grown() || control_.block_device() || end >= blocks_.file_size()) return {};
  VBDKIT_TRY(control_.write(end - kFooterSize, encode_footer(blocks_.metadata().footer)));
  VBDKIT_TRY(control_.flush());
  VBDKIT_TRY(control_.resize(Bytes{end}));
  return control_.flush();
}

}  // namespace vbdkit::drivers::vhd
