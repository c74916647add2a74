// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What a connection does about each command, and how it answers.
#include <algorithm>

#include "backend/nbd/block_status.h"
#include "backend/nbd/connection.h"
#include "backend/nbd/slot.h"

namespace vbdkit::nbd {
namespace {

constexpr unsigned kSlotsPerBlock = 16;
constexpr uint32_t kCacheStep = 1 << 20;

uint8_t write_flags(const RequestHeader& header) {
  return header.flags & kCmdFua ? drivers::kFua : uint8_t{0};
}

}  // namespace

RequestLimits Connection::limits() const {
  const drivers::NodeInfo& info = server_.sink.info();
  RequestLimits l;
  l.size = align_down(info.size.v, info.request_alignment);
  l.alignment = info.request_alignment;
  l.read_only = server_.read_only();
  l.can_trim = info.can_discard;
  l.fast_zero = info.can_write_zeroes;
  l.structured = structured_;
  l.contexts = !contexts_.empty();
  return l;
}

Slot& Connection::take_slot(const RequestHeader& header) {
  if (free_slots_ == nullptr) {
    auto block = std::make_unique<Slot[]>(kSlotsPerBlock);
    for (unsigned i = kSlotsPerBlock; i-- > 0;) {
      block[i].connection = this;
      block[i].next_slot = free_slots_;
      free_slots_ = &block[i];
    }
    slot_blocks_.push_back(std::move(block));
  }
  if (in_flight_++ == 0) server_.active();
  Slot& slot = *free_slots_;
  free_slots_ = slot.next_slot;
  slot.header = header;
  return slot;
}

void Connection::free_slot(Slot& slot) {
  slot.buffer.reset();
  slot.status.reset();
  bytes_in_flight_ -= std::exchange(slot.data_bytes, 0);
  slot.refused = WireError::kNone;
  slot.reply_data = {};
  slot.next_slot = free_slots_;
  free_slots_ = &slot;
  --in_flight_;
}

bool Connection::take_buffer(Slot& slot, size_t bytes) {
  slot.buffer = server_.pool.take(bytes);
  if (!slot.buffer) return false;
  slot.data = {slot.buffer.data(), bytes};
  slot.data_bytes = static_cast<uint32_t>(bytes);
  bytes_in_flight_ += bytes;
  return true;
}

void Connection::begin(Slot& slot) {
  const RequestHeader& h = slot.header;
  switch (slot.command()) {
    case Command::kRead:
      if (take_buffer(slot, h.length))
        submit(slot, drivers::Op::kRead, 0);
      else
        reply(slot, WireError::kNoMem);
      return;
    case Command::kWrite:
      submit(slot, drivers::Op::kWrite, write_flags(h));
      return;
    case Command::kFlush:
      submit(slot, drivers::Op::kFlush, 0);
      return;
    case Command::kTrim:
      submit(slot, drivers::Op::kDiscard, write_flags(h));
      return;
    case Command::kWriteZeroes:
      submit(
          slot, drivers::Op::kWriteZeroes,
          static_cast<uint8_t>(write_flags(h) | (h.flags & kCmdNoHole ? 0 : drivers::kMayUnmap)));
      return;
    case Command::kBlockStatus:
      begin_status(slot);
      return;
    case Command::kCache:
      slot.cached = 0;
      if (take_buffer(slot, std::min(h.length, kCacheStep)))
        cache_step(slot);
      else
        reply(slot, WireError::kNoMem);
      return;
    case Command::kDisc:
      return;  // has no slot: take_request()
  }
}

void Connection::submit(Slot& slot, drivers::Op op, uint8_t flags) {
  const bool flush = op == drivers::Op::kFlush;
  const bool carries = op == drivers::Op::kRead || op == drivers::Op::kWrite;
  slot.op = op;
  slot.flags = flags;
  slot.iov = carries ? &slot.data : nullptr;
  slot.iov_count = carries ? 1 : 0;
  slot.offset = flush ? 0 : slot.header.offset;
  slot.length = flush ? 0 : slot.header.length;
  slot.done = [](drivers::Request& request, int error) {
    auto& done = static_cast<Slot&>(request);
    done.connection->reply(done, to_wire_error(error));
  };
  server_.sink.submit(slot);
}

// Reads the range and forgets it: what is below the sink (page cache, cache filters) remembers.
void Connection::cache_step(Slot& slot) {
  slot.op = drivers::Op::kRead;
  slot.flags = 0;
  slot.data.iov_len = std::min(slot.header.length - slot.cached, kCacheStep);
  slot.iov = &slot.data;
  slot.iov_count = 1;
  slot.offset = slot.header.offset + slot.cached;
  slot.length = slot.data.iov_len;
  slot.done = [](drivers::Request& request, int error) {
    auto& step = static_cast<Slot&>(request);
    step.cached += static_cast<uint32_t>(step.length);
    Connection& c = *step.connection;
    if (error != 0 || step.cached == step.header.length || c.phase_ == Phase::kClosed)
      c.reply(step, to_wire_error(error));
    else
      c.cache_step(step);
  };
  server_.sink.submit(slot);
}

void Connection::begin_status(Slot& slot) {
  slot.status = std::make_unique<StatusWork>();
  drivers::StatusRequest& question = slot.status->question;
  question.offset = slot.header.offset;
  question.length = slot.header.length;
  question.max_extents = slot.header.flags & kCmdReqOne ? 1 : kMaxExtents;
  question.done = [&slot](int error) { slot.connection->status_done(slot, error); };
  if (std::ranges::any_of(contexts_, [](const auto& c) { return c.bitmap.empty(); }))
    server_.status.block_status(question);
  else
    question.done(0);
}

void Connection::status_done(Slot& slot, int error) {
  StatusWork& work = *slot.status;
  if (error != 0) {
    reply(slot, to_wire_error(error));
    return;
  }
  for (const StatusContext& context : contexts_) {
    StatusChunk chunk(slot.header, server_.sink.info().request_alignment);
    if (!context.bitmap.empty()) {
      chunk.add_changes(server_.status.dirty_bitmap(context.bitmap));
    } else if (work.question.extents.empty()) {
      reply(slot, WireError::kIo);
      return;
    } else {
      chunk.add_allocation(work.question.extents);
    }
    chunk.append_to(work.chunks, context.id, &context == &contexts_.back());
  }
  reply(slot, WireError::kNone);
}

void Connection::reply(Slot& slot, WireError error) {
  count(slot, error);
  if (phase_ == Phase::kClosed) {
    free_slot(slot);
    server_.reactor.defer(flush_);
    return;
  }
  const RequestHeader& h = slot.header;
  uint8_t* const out = slot.reply_header;
  size_t n = 0;
  const Command command = slot.command();
  // Reads and status questions want the structured form also for errors, once it was negotiated;
  // for the rest the simple one is shorter.
  const bool chunked =
      structured_ && (command == Command::kRead || command == Command::kBlockStatus);
  if (chunked && error != WireError::kNone) {
    n = encode_error_chunk(out, h.cookie, error);
  } else if (chunked && command == Command::kRead) {
    n = encode_data_chunk(out, h.cookie, h.offset, h.length);
  } else if (!chunked) {
    n = encode_simple_reply(out, h.cookie, error);
  }
  slot.header_bytes = static_cast<uint32_t>(n);
  if (error == WireError::kNone && command == Command::kRead) slot.reply_data = slot.data;
  if (error == WireError::kNone && slot.status)
    slot.reply_data = {slot.status->chunks.data(), slot.status->chunks.size()};
  ready_.push(slot);
  server_.reactor.defer(flush_);
}

void Connection::count(const Slot& slot, WireError error) {
  ServerStats& stats = server_.stats;
  const bool good = error == WireError::kNone;
  if (!good) ++stats.errors;
  switch (slot.command()) {
    case Command::kRead:
      ++stats.reads;
      if (good) stats.bytes_read += slot.header.length;
      return;
    case Command::kWrite:
      ++stats.writes;
      if (good) stats.bytes_written += slot.header.length;
      return;
    case Command::kFlush:
      ++stats.flushes;
      return;
    default:
      ++stats.others;
      return;
  }
}

}  // namespace vbdkit::nbd
