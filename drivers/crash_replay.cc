// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/crash_replay.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "drivers/iov.h"

namespace vbdkit::drivers {

using Kind = DiskLog::Change::Kind;

class CrashRecorder::DiskNode final : public Node {
 public:
  explicit DiskNode(CrashRecorder& recorder) : recorder_(recorder) {
    info_.size = Bytes{recorder.content_.size()};
    info_.request_alignment = 512;
    info_.can_discard = true;
    info_.discard_granularity = 512;
    info_.can_write_zeroes = true;
    info_.volatile_cache = true;
  }

  std::string_view driver() const override { return "crash-recorder"; }
  std::string spec() const override { return "crash-recorder"; }
  const NodeInfo& info() const override { return info_; }
  void submit(Request& request) override {
    if (range_inside(request.offset, request.length, info_.size.v))
      recorder_.submit(request);
    else
      request.done(request, EINVAL);
  }
  void block_status(StatusRequest& request) override {
    request.extents.push_back({request.length, true, false});
    request.done(0);
  }
  Result<void> refresh_size() override { return {}; }
  Result<void> resize(Bytes size) override {
    recorder_.resize(size.v);
    info_.size = size;
    return {};
  }
  Result<void> reopen(bool) override { return {}; }

 private:
  CrashRecorder& recorder_;
  NodeInfo info_;
};

NodePtr CrashRecorder::node() { return std::make_unique<DiskNode>(*this); }

void CrashRecorder::submit(Request& request) {
  ++requests_;
  InFlight entry{&request, kNone};
  if (request.op != Op::kRead) {
    DiskLog::Change change;
    change.kind = request.op == Op::kWrite   ? Kind::kWrite
                  : request.op == Op::kFlush ? Kind::kFlush
                                             : Kind::kZero;
    change.offset = request.offset;
    change.length = request.length;
    change.fua = (request.flags & kFua) != 0;
    change.submitted = events_++;
    if (request.op == Op::kWrite) {
      change.data.resize(request.length);
      copy_from_iov(request.iov, 0, reinterpret_cast<char*>(change.data.data()), request.length);
    }
    entry.change = log_.add(std::move(change));
  }
  in_flight_.push_back(entry);
}

void CrashRecorder::resize(uint64_t size) {
  const size_t change = log_.add({.kind = Kind::kResize, .length = size, .submitted = events_++});
  log_.completed(change, events_++).apply(content_);
}

void CrashRecorder::complete_one(std::mt19937_64& random) {
  const size_t i = random() % in_flight_.size();
  const InFlight entry = in_flight_[i];
  in_flight_.erase(in_flight_.begin() + static_cast<ptrdiff_t>(i));
  Request& request = *entry.request;
  if (entry.change == kNone) {
    std::vector<std::byte> data(request.length);
    content_.read(request.offset, data.data(), data.size());
    copy_to_iov(request.iov, 0, reinterpret_cast<const char*>(data.data()), data.size());
    request.done(request, 0);
    return;
  }
  if (failures_ > 0) {
    --failures_;
    request.done(request, failure_);
    return;
  }
  log_.completed(entry.change, events_++).apply(content_);
  request.done(request, 0);
}

void CrashRecorder::complete_all(std::mt19937_64& random) {
  while (!idle()) complete_one(random);
}

WriteOracle::WriteOracle(std::vector<std::byte> base) : base_(std::move(base)) {}

uint64_t WriteOracle::submitted(uint64_t offset, uint64_t length, bool zeroes, size_t event) {
  writes_.push_back({.offset = offset, .length = length, .zeroes = zeroes, .submitted = event});
  return writes_.size();
}

void WriteOracle::completed(uint64_t tag) { writes_[tag - 1].completion = ++completions_; }

void WriteOracle::completed_durably(uint64_t tag, size_t event) {
  completed(tag);
  writes_[tag - 1].durable = event;
}

void WriteOracle::flushed(uint64_t covers, size_t event) { flushes_.push_back({covers, event}); }

void WriteOracle::fill(uint64_t tag, uint64_t offset, std::span<std::byte> to) {
  for (size_t at = 0; at + sizeof(uint64_t) <= to.size(); at += sizeof(uint64_t)) {
    const uint64_t word = (tag << 40) ^ (offset + at);
    memcpy(to.data() + at, &word, sizeof(word));
  }
}

void WriteOracle::expected(uint64_t tag, uint64_t sector, std::span<std::byte> to) const {
  const uint64_t offset = sector * kSectorSize;
  if (tag == 0)
    memcpy(to.data(), base_.data() + offset, to.size());
  else if (writes_[tag - 1].zeroes)
    memset(to.data(), 0, to.size());
  else
    fill(tag, offset, to);
}

std::string WriteOracle::check(size_t cut, std::span<const std::byte> disk) const {
  uint64_t covered = 0;
  for (const Flush& f : flushes_)
    if (f.completed <= cut) covered = std::max(covered, f.covers);
  std::array<std::byte, kSectorSize> content;
  for (uint64_t sector = 0; (sector + 1) * kSectorSize <= disk.size(); ++sector) {
    const uint64_t offset = sector * kSectorSize;
    uint64_t durable = 0;
    bool allowed = false;
    const auto matches = [&](uint64_t tag) {
      expected(tag, sector, content);
      return memcmp(content.data(), disk.data() + offset, kSectorSize) == 0;
    };
    for (uint64_t tag = 1; tag <= writes_.size(); ++tag) {
      const Write& w = writes_[tag - 1];
      if (w.submitted >= cut || offset < w.offset || offset >= w.offset + w.length) continue;
      if (w.completion <= covered || w.durable <= cut) durable = tag;
    }
    for (uint64_t tag = durable + 1; tag <= writes_.size() && !allowed; ++tag) {
      const Write& w = writes_[tag - 1];
      allowed =
          w.submitted < cut && offset >= w.offset && offset < w.offset + w.length && matches(tag);
    }
    if (!allowed && !matches(durable)) {
      uint64_t word = 0;
      memcpy(&word, disk.data() + offset, sizeof(word));
      return "sector " + std::to_string(sector) + " after a cut at event " + std::to_string(cut) +
             ": write " + std::to_string(durable) + " or a later one expected, found the word " +
             std::to_string(word) + " (write " + std::to_string(word >> 40) + ")";
    }
  }
  return {};
}

}  // namespace vbdkit::drivers
