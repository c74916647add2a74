// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/crash_replay.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "drivers/chain/image_file.h"
#include "drivers/iov.h"

namespace vbdkit::drivers {

Result<SparseBytes> SparseBytes::load(const std::string& path) {
  VBDKIT_ASSIGN(const ImageFile file, ImageFile::open(path, ImageFile::Mode::kRead));
  VBDKIT_ASSIGN(const Bytes size, file.size());
  SparseBytes bytes;
  Page page;
  for (uint64_t at = 0; at < size.v; at += kPage) {
    const size_t n = std::min<uint64_t>(kPage, size.v - at);
    VBDKIT_TRY(file.read(at, std::span(page).first(n)));
    bytes.write(at, page.data(), n);
  }
  return bytes;
}

Result<void> SparseBytes::save(const std::string& path) const {
  unlink(path.c_str());
  VBDKIT_ASSIGN(ImageFile file, ImageFile::open(path, ImageFile::Mode::kCreate));
  VBDKIT_TRY(file.resize(Bytes{size_}));
  for (const auto& [number, page] : pages_)
    VBDKIT_TRY(
        file.write(number * kPage, std::span(page).first(std::min(kPage, size_ - number * kPage))));
  return {};
}

void SparseBytes::resize(uint64_t size) {
  if (size < size_) {
    const uint64_t old = size_;
    zero(size, old - size);
    std::erase_if(pages_, [&](const auto& p) { return p.first * kPage >= size; });
  }
  size_ = size;
}

void SparseBytes::read(uint64_t offset, std::byte* to, size_t length) const {
  while (length > 0) {
    const size_t n = std::min<uint64_t>(length, kPage - offset % kPage);
    const auto it = pages_.find(offset / kPage);
    if (it == pages_.end())
      memset(to, 0, n);
    else
      memcpy(to, it->second.data() + offset % kPage, n);
    to += n;
    offset += n;
    length -= n;
  }
}

void SparseBytes::write(uint64_t offset, const std::byte* from, size_t length) {
  size_ = std::max(size_, offset + length);
  while (length > 0) {
    const size_t n = std::min<uint64_t>(length, kPage - offset % kPage);
    auto it = pages_.find(offset / kPage);
    if (it != pages_.end() ||
        std::any_of(from, from + n, [](std::byte b) { return b != std::byte{}; })) {
      if (it == pages_.end()) it = pages_.emplace(offset / kPage, Page{}).first;
      memcpy(it->second.data() + offset % kPage, from, n);
    }
    from += n;
    offset += n;
    length -= n;
  }
}

void SparseBytes::zero(uint64_t offset, uint64_t length) {
  size_ = std::max(size_, offset + length);
  while (length > 0) {
    const uint64_t n = std::min<uint64_t>(length, kPage - offset % kPage);
    const auto it = pages_.find(offset / kPage);
    if (it != pages_.end()) {
      if (n == kPage)
        pages_.erase(it);
      else
        memset(it->second.data() + offset % kPage, 0, n);
    }
    offset += n;
    length -= n;
  }
}

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
  InFlight entry{&request, kNever};
  if (request.op != Op::kRead) {
    Record record;
    record.op = request.op;
    record.offset = request.offset;
    record.length = request.length;
    record.fua = (request.flags & kFua) != 0;
    record.submitted = events_++;
    if (request.op == Op::kWrite) {
      record.data.resize(request.length);
      copy_from_iov(request.iov, 0, reinterpret_cast<char*>(record.data.data()), request.length);
    }
    entry.record = records_.size();
    records_.push_back(std::move(record));
  }
  in_flight_.push_back(entry);
}

void CrashRecorder::resize(uint64_t size) {
  Record record;
  record.resize = true;
  record.length = size;
  record.submitted = events_++;
  record.completed = events_++;
  records_.push_back(std::move(record));
  content_.resize(size);
}

void CrashRecorder::complete_one(std::mt19937_64& random) {
  const size_t i = random() % in_flight_.size();
  const InFlight entry = in_flight_[i];
  in_flight_.erase(in_flight_.begin() + static_cast<ptrdiff_t>(i));
  Request& request = *entry.request;
  if (entry.record == kNever) {
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
  Record& record = records_[entry.record];
  record.completed = events_++;
  if (record.op == Op::kWrite)
    content_.write(record.offset, record.data.data(), record.data.size());
  else if (record.op != Op::kFlush)
    content_.zero(record.offset, record.length);
  request.done(request, 0);
}

void CrashRecorder::complete_all(std::mt19937_64& random) {
  while (!idle()) complete_one(random);
}

SparseBytes CrashRecorder::after_cut(size_t cut, Loss loss, std::mt19937_64& random) const {
  size_t flush = 0;  // what was completed before this event is durable
  for (const Record& r : records_)
    if (!r.resize && r.op == Op::kFlush && r.completed < cut) flush = std::max(flush, r.submitted);
  SparseBytes disk = initial_;
  for (const Record& r : records_) {
    if (r.submitted >= cut) break;
    if (!r.resize && r.op == Op::kFlush) continue;
    const bool completed = r.completed < cut;
    const bool durable = r.completed < flush || (r.fua && completed);
    enum { kNone, kSome, kAll } part = completed ? kAll : kNone;
    if (!durable && loss == Loss::kRandom) part = std::array{kNone, kSome, kAll}[random() % 3];
    if (part == kNone) continue;
    if (r.resize) {
      disk.resize(r.length);
      continue;
    }
    for (uint64_t at = 0; at < r.length; at += kSectorSize) {
      if (part == kSome && random() % 2 == 0) continue;
      const uint64_t n = std::min(kSectorSize, r.length - at);
      if (r.op == Op::kWrite)
        disk.write(r.offset + at, r.data.data() + at, n);
      else
        disk.zero(r.offset + at, n);
    }
  }
  return disk;
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
