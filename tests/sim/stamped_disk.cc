// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/stamped_disk.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace vbdkit::sim {
namespace {

constexpr uint64_t kBaseStamp = 1;

struct Label {
  uint64_t id;
  uint64_t sector;
  uint64_t stamp;
};

void fill_sector(const Label& label, std::byte* data) {
  std::array<uint64_t, StampedDisk::kSector / 8> words{};
  uint64_t state = label.id * 0xd1342543de82ef95 + label.sector * 0x9e3779b97f4a7c15 + label.stamp;
  for (uint64_t& word : words) {
    state = state * 6364136223846793005 + 1442695040888963407;
    word = state ^ state >> 29;
  }
  std::memcpy(words.data(), &label, sizeof label);
  std::memcpy(data, words.data(), sizeof words);
}

bool base_is_zero(uint64_t sector) { return (sector / 128) % 2 == 1; }

}  // namespace

// What a sector says of itself.
struct StampedDisk::Found {
  bool zero = false;
  bool broken = false;  // not even one whole write
  Label label{};
};

std::vector<std::byte> StampedDisk::base(uint64_t sectors) {
  std::vector<std::byte> content(sectors * kSector);
  for (uint64_t s = 0; s < sectors; ++s)
    if (!base_is_zero(s)) fill_sector({0, s, kBaseStamp}, content.data() + s * kSector);
  return content;
}

StampedDisk::StampedDisk(uint64_t sectors, uint64_t id)
    : sectors_(sectors), id_(id), values_(sectors) {
  for (uint64_t s = 0; s < sectors; ++s) values_[s] = kBaseStamp * 2 + (base_is_zero(s) ? 1 : 0);
  last_flush_ = since();
}

StampedDisk::Since::~Since() {
  const std::lock_guard lock(disk_.mutex_);
  disk_.remembered_.erase(disk_.remembered_.find(first_));
  disk_.forget();
}

uint64_t StampedDisk::oldest_in_flight() const {
  return in_flight_.empty() ? next_ : *in_flight_.begin();
}

void StampedDisk::forget() {
  uint64_t needed = oldest_in_flight();
  if (!remembered_.empty()) needed = std::min(needed, *remembered_.begin());
  log_.erase(log_.begin(), log_.lower_bound(needed));
}

uint64_t StampedDisk::begin(uint64_t sector, uint64_t count, bool zero) {
  const std::lock_guard lock(mutex_);
  const uint64_t stamp = next_;
  log_[stamp] = {sector, count, zero, false, oldest_in_flight() - 1};
  in_flight_.insert(stamp);
  ++next_;
  return stamp;
}

void StampedDisk::end(uint64_t stamp) {
  const std::lock_guard lock(mutex_);
  Write& write = log_.at(stamp);
  write.answered = true;
  for (uint64_t s = write.sector; s < write.sector + write.count; ++s)
    values_[s] = stamp * 2 + (write.zero ? 1 : 0);
  in_flight_.erase(stamp);
  forget();
}

void StampedDisk::fill(uint64_t stamp, uint64_t sector, std::span<std::byte> data) const {
  for (size_t at = 0; at < data.size(); at += kSector)
    fill_sector({id_, sector + at / kSector, stamp}, data.data() + at);
}

StampedDisk::Found StampedDisk::look(uint64_t sector, const std::byte* data) const {
  Found found;
  std::memcpy(&found.label, data, sizeof found.label);
  found.zero = std::all_of(data, data + kSector, [](std::byte b) { return b == std::byte{0}; });
  if (found.zero) return found;
  std::array<std::byte, kSector> whole{};
  fill_sector(found.label, whole.data());
  const bool base = found.label.stamp == kBaseStamp;
  found.broken = std::memcmp(whole.data(), data, kSector) != 0 || found.label.sector != sector ||
                 found.label.id != (base ? 0 : id_);
  return found;
}

bool StampedDisk::is(Value value, const Found& found) const {
  if (found.broken) return false;
  return value % 2 == 1 ? found.zero : !found.zero && found.label.stamp == value / 2;
}

namespace {

std::string name_of(bool zero, bool broken, const Label& label) {
  if (zero) return "zeroes";
  return std::string(broken ? "a broken or foreign sector (" : "(") + "disk " +
         std::to_string(label.id) + " sector " + std::to_string(label.sector) + " write " +
         std::to_string(label.stamp) + ")";
}

}  // namespace

std::optional<std::string> StampedDisk::wrong(uint64_t sector,
                                              std::span<const std::byte> data) const {
  const std::lock_guard lock(mutex_);
  for (size_t at = 0; at < data.size(); at += kSector, ++sector) {
    const Found found = look(sector, data.data() + at);
    if (!is(values_[sector], found))
      return "sector " + std::to_string(sector) + " should have write " +
             std::to_string(values_[sector] / 2) + (values_[sector] % 2 == 1 ? " (zeroes)" : "") +
             " and has " + name_of(found.zero, found.broken, found.label);
  }
  return std::nullopt;
}

std::unique_ptr<StampedDisk::Since> StampedDisk::since() {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<Since> now(new Since(*this));
  now->values_ = values_;
  now->first_ = oldest_in_flight();
  now->crashes_ = crashes_;
  now->crashed_ = crashed_;
  remembered_.insert(now->first_);
  return now;
}

std::optional<std::string> StampedDisk::misfit(const Since& since,
                                               std::span<const std::byte> content, bool ordered,
                                               std::vector<Value>* taken) const {
  std::vector<std::vector<Value>> may(sectors_);
  for (uint64_t s = 0; s < sectors_; ++s) may[s].push_back(since.values_[s]);
  for (auto it = log_.lower_bound(since.first_); it != log_.end(); ++it)
    for (uint64_t s = it->second.sector; s < it->second.sector + it->second.count; ++s)
      may[s].push_back(it->first * 2 + (it->second.zero ? 1 : 0));
  // What each sector has at the newest: zeroes do not tell of which write they are.
  std::vector<Value> has(sectors_);
  uint64_t newest = 0;
  for (uint64_t s = 0; s < sectors_; ++s) {
    const Found found = look(s, content.data() + s * kSector);
    const auto value =
        std::find_if(may[s].rbegin(), may[s].rend(), [&](Value v) { return is(v, found); });
    if (value == may[s].rend())
      return "sector " + std::to_string(s) + " has " +
             name_of(found.zero, found.broken, found.label) + "; at the beginning it had write " +
             std::to_string(since.values_[s] / 2) + ", and " + std::to_string(may[s].size() - 1) +
             " came since";
    has[s] = *value;
    if (*value % 2 == 0) newest = std::max(newest, *value / 2);
  }
  const auto last = log_.find(newest);
  const uint64_t floor = ordered && last != log_.end() ? last->second.floor : 0;
  for (auto it = log_.lower_bound(since.first_); it != log_.end() && it->first <= floor; ++it)
    for (uint64_t s = it->second.sector; s < it->second.sector + it->second.count; ++s)
      if (has[s] / 2 < it->first)
        return "sector " + std::to_string(s) + " has write " + std::to_string(has[s] / 2) +
               " and not " + std::to_string(it->first) + ", which was answered before " +
               std::to_string(newest) + " began, which is there";
  if (taken != nullptr) *taken = std::move(has);
  return std::nullopt;
}

std::optional<std::string> StampedDisk::wrong_copy(const Since& since,
                                                   std::span<const std::byte> copy) const {
  const std::lock_guard lock(mutex_);
  // What is lost in a crash may have been in the copy, and what came before as well.
  if (since.crashed_ || since.crashes_ != crashes_) return std::nullopt;
  return misfit(since, copy, true, nullptr);
}

void StampedDisk::flushed(std::unique_ptr<Since> at) {
  // Two flushes may be answered in any order.
  if (at->first_ >= last_flush_->first_) last_flush_.swap(at);
}

void StampedDisk::crash() {
  const std::lock_guard lock(mutex_);
  ++crashes_;
  crashed_ = true;
}

std::optional<std::string> StampedDisk::recover(std::span<const std::byte> content) {
  std::vector<Value> taken;
  {
    const std::lock_guard lock(mutex_);
    if (auto wrong = misfit(*last_flush_, content, false, &taken)) return wrong;
    values_ = std::move(taken);
    in_flight_.clear();
    crashed_ = false;
  }
  last_flush_ = since();
  return std::nullopt;
}

}  // namespace vbdkit::sim
