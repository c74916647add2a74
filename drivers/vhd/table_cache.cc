// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/vhd/table_cache.h"

#include <algorithm>

namespace vbdkit::drivers::vhd {

void TableCache::get(uint32_t first, std::span<uint32_t> entries,
                     std::function<void(int error)> done) {
  while (!entries.empty()) {
    const uint32_t number = first / kPageEntries;
    const uint32_t at = first % kPageEntries;
    const size_t n = std::min<size_t>(entries.size(), kPageEntries - at);
    if (empty_[number]) {
      std::fill_n(entries.begin(), n, kUnused);
    } else if (const Page* page = find(number)) {
      std::copy_n(page->entries.begin() + at, n, entries.begin());
    } else {
      load(number, [this, first, entries, done = std::move(done)](int error) {
        if (error != 0)
          done(error);
        else
          get(first, entries, done);
      });
      return;
    }
    first += static_cast<uint32_t>(n);
    entries = entries.subspan(n);
  }
  done(0);
}

TableCache::Page* TableCache::find(uint32_t number) {
  for (const auto& page : kept_) {
    if (page->number != number) continue;
    page->used = true;
    return page.get();
  }
  return nullptr;
}

void TableCache::load(uint32_t number, std::function<void(int error)> waiter) {
  auto& slot = loads_[number];
  if (slot != nullptr) {
    slot->waiters.push_back(std::move(waiter));
    return;
  }
  slot = std::make_unique<Load>();
  Load& load = *slot;
  load.cache = this;
  load.waiters.push_back(std::move(waiter));
  load.page = std::make_unique<Page>();
  load.page->number = number;
  const uint32_t entries = std::min(kPageEntries, blocks_ - number * kPageEntries);
  // Whole sectors; the table's end in the file is padded to one.
  load.iov = {load.page->entries.data(), align_up(uint64_t{entries} * 4, kSectorSize)};
  load.request.op = Op::kRead;
  load.request.iov = &load.iov;
  load.request.iov_count = 1;
  load.request.offset = offset_ + uint64_t{number} * kPageEntries * 4;
  load.request.length = load.iov.iov_len;
  load.request.done = [](Request& r, int error) {
    Load& l = *reinterpret_cast<Load*>(&r);
    l.cache->loaded(l, error);
  };
  file_.submit(load.request);
}

void TableCache::loaded(Load& done, int error) {
  const uint32_t number = done.page->number;
  const auto node = loads_.extract(number);
  Load& load = *node.mapped();
  if (error == 0) {
    auto& entries = load.page->entries;
    const uint32_t known = std::min(kPageEntries, blocks_ - number * kPageEntries);
    for (uint32_t i = 0; i < known; ++i) entries[i] = __builtin_bswap32(entries[i]);
    std::fill(entries.begin() + known, entries.end(), kUnused);
    if (std::all_of(entries.begin(), entries.end(), [](uint32_t e) { return e == kUnused; }))
      empty_[number] = true;
    else
      keep(std::move(load.page));
  }
  for (const auto& waiter : load.waiters) waiter(error);
}

void TableCache::keep(std::unique_ptr<Page> page) {
  if (kept_.size() < kMaxPages) {
    kept_.push_back(std::move(page));
    return;
  }
  while (std::exchange(kept_[hand_]->used, false)) hand_ = (hand_ + 1) % kMaxPages;
  kept_[hand_] = std::move(page);
  hand_ = (hand_ + 1) % kMaxPages;
}

}  // namespace vbdkit::drivers::vhd
