// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/qcow2/flusher.h"

namespace vbdkit::drivers::qcow2 {
namespace {

// With lazy refcounts, so many runs of clusters may wait to be counted.
constexpr size_t kMaxUncounted = 65536;

}  // namespace

Task<int> Flusher::flush() {
  // A round that runs may have begun before what the caller wants covered.
  const uint64_t number = ++asked_;
  while (covered_ < number) {
    if (running_) {
      co_await turn_.wait();
      continue;
    }
    running_ = true;
    const uint64_t covers = asked_;
    last_error_ = co_await round();
    covered_ = covers;
    running_ = false;
    turn_.wake_all();
  }
  co_return last_error_;
}

Task<int> Flusher::set_dirty_bit(bool dirty) {
  const uint64_t bits = image_.header.incompatible;
  const uint64_t wanted = dirty ? bits | kDirtyBit : bits & ~kDirtyBit;
  if (bits == wanted) co_return 0;
  image_.header.incompatible = wanted;
  const int error = co_await image_.write_header();
  if (error != 0) image_.header.incompatible = bits;
  co_return error;
}

Task<int> Flusher::count_allocated(Round& r) {
  std::vector<HostRange>& ranges = r.allocated;
  ranges.insert(ranges.begin(), uncounted_.begin(), uncounted_.end());
  uncounted_.clear();
  const bool later = image_.header.lazy_refcounts() && !closing_ && r.given_back.empty() &&
                     ranges.size() < kMaxUncounted;
  if (later) {
    uncounted_ = std::move(ranges);
    ranges.clear();
    if (uncounted_.empty()) co_return 0;
    co_return co_await set_dirty_bit(true);
  }
  int error = co_await refcounts_.add(ranges);
  if (error == 0) error = co_await refcounts_.write();
  co_return error;
}

Task<int> Flusher::move_l1(Round& r) {
  Header& h = image_.header;
  const HostRange old{h.l1_offset >> image_.g.cluster_bits,
                      image_.g.clusters_for(uint64_t{h.l1_entries} * 8), false};
  const uint64_t to = r.l1.first << image_.g.cluster_bits;
  int error = co_await tables_.move_l1(r.tables, to);
  if (error == 0) error = co_await image_.flush();
  if (error != 0) co_return error;
  h.l1_offset = to;
  h.l1_entries = static_cast<uint32_t>(r.tables.l1.size());
  if (old.count > 0) r.given_back.push_back(old);
  r.header = true;
  co_return 0;
}

Task<int> Flusher::write_tables(Round& r) {
  if (!r.tables.empty()) {
    int error = co_await tables_.write(r.tables);
    if (error == 0 && r.tables.l1_moves) error = co_await move_l1(r);
    if (error == 0 && !r.header) error = co_await image_.flush();
    if (error != 0) co_return error;
  }
  if (!r.header) co_return 0;
  int error = co_await image_.write_header();
  if (error == 0) error = co_await image_.flush();
  co_return error;
}

Task<int> Flusher::round() {
  if (image_.corrupt) co_return EIO;
  Round r;
  if (tables_.l1_must_move()) {
    const FreeSpace::Taken taken =
        space_.take_contiguous(image_.g.clusters_for(tables_.l1().size() * 8));
    if (taken.error != 0) co_return taken.error;
    r.l1 = taken.range;
  }
  r.tables = tables_.begin_flush();
  r.allocated = space_.take_allocated();
  r.given_back = space_.take_given_back();
  r.header = std::exchange(header_changed_, false);
  const bool header = r.header;
  if (r.tables.empty() && r.given_back.empty() && !r.header && !closing_) {
    // What was taken for writes under way is counted when something points at it.
    space_.return_allocated(std::move(r.allocated));
    co_return co_await image_.flush();
  }
  int error = co_await count_allocated(r);
  if (error == 0) error = co_await image_.flush();
  if (error == 0) error = co_await write_tables(r);
  tables_.end_flush(std::move(r.tables), error);
  space_.return_allocated(std::move(r.allocated));
  if (error != 0) {
    header_changed_ |= header;
    space_.return_given_back(std::move(r.given_back));
    co_return error;
  }
  // Nothing points at these any more; if the rest is lost, so is their space.
  error = co_await refcounts_.subtract(r.given_back);
  if (error == 0) error = co_await refcounts_.write();
  space_.return_given_back(std::move(r.given_back));
  co_return error;
}

Task<int> Flusher::settle() {
  const int error = co_await close();
  closing_ = false;
  co_return error;
}

Task<int> Flusher::close() {
  const bool nothing = tables_.clean() && space_.settled() && uncounted_.empty() &&
                       !header_changed_ && !image_.header.dirty();
  if (nothing) co_return 0;
  closing_ = true;
  int error = co_await flush();
  // A second round for what the first one gave back: a table that was replaced.
  if (error == 0 && space_.given_back_count() > 0) error = co_await flush();
  if (error == 0 && image_.header.dirty()) {
    error = co_await image_.flush();
    if (error == 0) error = co_await set_dirty_bit(false);
  }
  if (error == 0) error = co_await image_.flush();
  co_return error;
}

}  // namespace vbdkit::drivers::qcow2
