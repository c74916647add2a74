// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/chain/window_map.h"

#include <algorithm>
#include <bit>

namespace vbdkit::drivers {
namespace {

constexpr size_t kFirstTable = 64;         // slots
constexpr size_t kAllocatorOverhead = 16;  // bytes a block, as glibc's malloc takes

size_t block_size(size_t bytes) { return bytes == 0 ? 0 : bytes + kAllocatorOverhead; }

}  // namespace

std::optional<Source> Source::data(uint16_t layer, uint64_t disk_offset, uint64_t file_offset) {
  const auto distance = static_cast<int64_t>(file_offset / kSectorSize) -
                        static_cast<int64_t>(disk_offset / kSectorSize);
  constexpr int64_t kLimit = int64_t{1} << (63 - kDistanceShift);
  if (distance >= kLimit || distance < -kLimit) return std::nullopt;
  return Source(Segment::Kind::kData, layer, distance);
}

// Without a branch on what it compares, which a random read's processor could only guess.
size_t Window::index_of(uint32_t sector) const {
  const Entry* at = segments_.data();
  for (size_t left = segments_.size(); left > 1;) {
    const size_t half = left / 2;
    at += at[half].start <= sector ? half : 0;
    left -= half;
  }
  return static_cast<size_t>(at - segments_.data());
}

Window::Run Window::find(uint32_t sector, uint32_t sectors) const {
  const size_t i = segments_.size() == 1 ? 0 : index_of(sector);
  const uint32_t end = i + 1 < segments_.size() ? segments_[i + 1].start : sectors;
  return {end, sources_[segments_[i].source]};
}

uint16_t Window::intern(Source source) {
  // What was added last is what comes again most often.
  const auto it = std::find(sources_.rbegin(), sources_.rend(), source);
  if (it != sources_.rend()) return static_cast<uint16_t>(sources_.rend() - it - 1);
  if (sources_.size() == sources_.capacity()) drop_unused_sources();
  sources_.push_back(source);
  return static_cast<uint16_t>(sources_.size() - 1);
}

// Assigning leaves sources behind that no segment uses; without this they would add up.
void Window::drop_unused_sources() {
  if (sources_.size() < 8) return;
  std::vector<uint16_t> place(sources_.size(), UINT16_MAX);
  for (const Entry& e : segments_) place[e.source] = 0;
  uint16_t next = 0;
  for (size_t i = 0; i < sources_.size(); ++i) {
    if (place[i] != 0) continue;
    place[i] = next;
    sources_[next++] = sources_[i];
  }
  sources_.resize(next);
  for (Entry& e : segments_) e.source = place[e.source];
}

void Window::append(uint32_t start, Source source) {
  if (!segments_.empty() && sources_[segments_.back().source] == source) return;
  const uint16_t index = intern(source);
  segments_.push_back({static_cast<uint16_t>(start), index});
}

void Window::assign(uint32_t start, uint32_t end, uint32_t sectors, Source source) {
  const size_t first = index_of(start);
  const size_t last = index_of(end - 1);
  if (first == last && sources_[segments_[first].source] == source) return;
  const uint16_t index = intern(source);
  // intern() may have renumbered sources, so only now are the neighbours looked at.
  const Entry before = segments_[first];
  const Entry after = segments_[last];
  const uint32_t after_end = last + 1 < segments_.size() ? segments_[last + 1].start : sectors;
  Entry fresh[3];
  size_t n = 0;
  if (before.start < start && before.source != index) fresh[n++] = before;
  const bool joins_left = before.start < start ? before.source == index
                                               : first > 0 && segments_[first - 1].source == index;
  const auto joined_start = static_cast<uint16_t>(before.start < start ? before.start : start);
  if (before.start < start && joins_left)
    fresh[n++] = {joined_start, index};
  else if (!joins_left)
    fresh[n++] = {static_cast<uint16_t>(start), index};
  size_t erase_end = last + 1;
  if (end < after_end) {
    if (after.source != index) fresh[n++] = {static_cast<uint16_t>(end), after.source};
  } else if (erase_end < segments_.size() && segments_[erase_end].source == index) {
    ++erase_end;  // the next segment continues this one
  }
  const size_t old = erase_end - first;
  const auto at = segments_.begin() + static_cast<ptrdiff_t>(first);
  if (n <= old) {
    std::copy(fresh, fresh + n, at);
    segments_.erase(at + static_cast<ptrdiff_t>(n), at + static_cast<ptrdiff_t>(old));
  } else {
    std::copy(fresh, fresh + old, at);
    segments_.insert(at + static_cast<ptrdiff_t>(old), fresh + old, fresh + n);
  }
}

size_t Window::memory() const {
  return block_size(sizeof(Window)) + block_size(sources_.capacity() * sizeof(Source)) +
         block_size(segments_.capacity() * sizeof(Entry));
}

void Window::shrink_to_fit() {
  sources_.shrink_to_fit();
  segments_.shrink_to_fit();
}

WindowMap::WindowMap(uint64_t window, size_t limit)
    : sectors_(static_cast<uint32_t>(window / kSectorSize)), limit_(limit) {
  table_.resize(kFirstTable);
  memory_ = block_size(kFirstTable * sizeof(void*));
}

size_t WindowMap::home_of(uint64_t index) const {
  // Fibonacci hashing: neighbours spread over the table.
  return static_cast<size_t>((index * 0x9e3779b97f4a7c15u) >>
                             (64 - std::countr_zero(table_.size())));
}

size_t WindowMap::slot_of(uint64_t index) const {
  for (size_t s = home_of(index);; s = (s + 1) & (table_.size() - 1)) {
    if (table_[s] == nullptr) return kNone;
    if (table_[s]->index() == index) return s;
  }
}

std::optional<WindowMap::Run> WindowMap::find(uint64_t disk_offset) {
  const size_t slot = slot_of(index_of(disk_offset));
  if (slot == kNone) return std::nullopt;
  Window& window = *table_[slot];
  window.used_ = true;
  const auto sector = static_cast<uint32_t>(disk_offset / kSectorSize) & (sectors_ - 1);
  const Window::Run run = window.find(sector, sectors_);
  return Run{uint64_t{run.end - sector} * kSectorSize, run.source};
}

void WindowMap::insert(Window window) {
  const uint64_t index = window.index();
  erase(index);
  if ((count_ + 1) * 4 > table_.size() * 3) grow_table();
  window.shrink_to_fit();
  auto owned = std::make_unique<Window>(std::move(window));
  memory_ += owned->memory();
  ++count_;
  size_t s = home_of(index);
  while (table_[s] != nullptr) s = (s + 1) & (table_.size() - 1);
  table_[s] = std::move(owned);
  make_room(index);
}

void WindowMap::grow_table() {
  std::vector<std::unique_ptr<Window>> old(table_.size() * 2);
  old.swap(table_);
  memory_ += (table_.size() - old.size()) * sizeof(void*);
  hand_ = 0;
  for (auto& window : old) {
    if (window == nullptr) continue;
    size_t s = home_of(window->index());
    while (table_[s] != nullptr) s = (s + 1) & (table_.size() - 1);
    table_[s] = std::move(window);
  }
}

void WindowMap::remove_slot(size_t slot) {
  memory_ -= table_[slot]->memory();
  --count_;
  table_[slot].reset();
  // Move back what was pushed beyond this slot by the collision with it.
  const size_t mask = table_.size() - 1;
  size_t hole = slot;
  for (size_t s = (slot + 1) & mask; table_[s] != nullptr; s = (s + 1) & mask) {
    const size_t home = home_of(table_[s]->index());
    if (((s - home) & mask) >= ((s - hole) & mask)) {
      table_[hole] = std::move(table_[s]);
      hole = s;
    }
  }
}

void WindowMap::erase(uint64_t index) {
  if (const size_t slot = slot_of(index); slot != kNone) remove_slot(slot);
}

void WindowMap::clear() {
  for (auto& window : table_) {
    if (window == nullptr) continue;
    memory_ -= window->memory();
    window.reset();
  }
  count_ = 0;
}

void WindowMap::make_room(uint64_t keep) {
  while (memory_ > limit_ && count_ > 1) {
    hand_ = (hand_ + 1) & (table_.size() - 1);
    Window* const window = table_[hand_].get();
    if (window == nullptr || window->index() == keep) continue;
    if (window->used_)
      window->used_ = false;
    else
      remove_slot(hand_);
  }
}

void WindowMap::assign(uint64_t disk_offset, uint64_t length, Source source) {
  uint64_t sector = disk_offset / kSectorSize;
  const uint64_t end = sector + length / kSectorSize;
  while (sector < end) {
    const uint64_t index = sector / sectors_;
    const uint64_t base = index * sectors_;
    const uint64_t stop = std::min(end, base + sectors_);
    if (const size_t slot = slot_of(index); slot != kNone) {
      Window& window = *table_[slot];
      memory_ -= window.memory();
      window.assign(static_cast<uint32_t>(sector - base), static_cast<uint32_t>(stop - base),
                    sectors_, source);
      memory_ += window.memory();
      make_room(index);
    }
    sector = stop;
  }
}

}  // namespace vbdkit::drivers
