// SPDX-License-Identifier: LGPL-2.1-or-later
//
// FreeSpace: which clusters of the file are free, and what has been taken or given back since the
// refcounts in the file were last made to say so (refcounts.h does that, in a flush). Taking from
// what is known costs no I/O and does not wait; refill() looks for more: first in the refcounts,
// from the file's beginning on, then by growing the file.
// Thread: the reactor of the layer.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "drivers/qcow2/slice_cache.h"

namespace vbdkit::drivers::qcow2 {

// Clusters of the file.
struct HostRange {
  uint64_t first = 0;
  uint64_t count = 0;
  bool zeroed = false;  // never written: reads as zeroes
};

class FreeSpace {
 public:
  // `readers`: others read the file meanwhile, so that what is given back is not used again.
  FreeSpace(Image& image, SliceCache& cache, bool readers)
      : image_(image), cache_(cache), readers_(readers), turn_(image.ready) {}

  // After the refcount table has been read; `l1` for knowing metadata when it turns up as free. An
  // error where tables lie over each other.
  Result<void> start(const std::vector<uint64_t>& refcount_table, const std::vector<uint64_t>& l1);

  // 1 to `most` clusters in one piece, or count 0: refill() first.
  HostRange take(uint64_t most);
  // As take(), after looking for more where needed. The error is an errno.
  struct Taken {
    int error = 0;
    HostRange range;
  };
  Task<Taken> take_or_wait(uint64_t most);
  // So many in one piece, at the file's end. Does not wait.
  Taken take_contiguous(uint64_t count);

  // No longer referred to by the metadata in memory: one reference less, once that is in the file.
  void give_back(uint64_t first, uint64_t count);
  bool has_readers() const { return readers_; }
  void readers_gone();
  // Free in the refcounts.
  void add_free(uint64_t first, uint64_t count);
  // Inside the file as it was opened. What the refcounts say beyond is left from some crash.
  bool was_in_file(uint64_t cluster) const { return cluster < scan_end_; }

  // What a flush has to bring into the refcounts.
  std::vector<HostRange> take_allocated() { return std::exchange(allocated_, {}); }
  std::vector<HostRange> take_given_back() { return std::exchange(given_back_, {}); }
  void return_allocated(std::vector<HostRange> ranges);
  void return_given_back(std::vector<HostRange> ranges);
  // The refcounts say it all.
  bool settled() const { return allocated_.empty() && given_back_.empty(); }
  size_t given_back_count() const { return given_back_.size(); }

  // What the image uses of the file, when nothing was taken beyond.
  uint64_t end_of_use() const { return fresh_first_; }
  bool grown() const { return fresh_first_ != fresh_end_; }

 private:
  Task<int> refill();
  Task<int> scan();
  Task<int> scan_slice(uint64_t first, uint64_t count);
  int grow(uint64_t least);
  void taken(uint64_t first, uint64_t count);
  bool withheld(uint64_t cluster) const {
    const auto after = withheld_.upper_bound(cluster);
    return after != withheld_.begin() &&
           cluster - std::prev(after)->first < std::prev(after)->second;
  }
  static void insert(std::map<uint64_t, uint64_t>& ranges, uint64_t first, uint64_t count);

  Image& image_;
  SliceCache& cache_;
  bool readers_;
  Waiters turn_;
  bool refilling_ = false;

  // Free, but others may still read it: first cluster → count.
  std::map<uint64_t, uint64_t> withheld_;
  std::map<uint64_t, uint64_t> free_;  // first cluster → count; may hold old data
  uint64_t fresh_first_ = 0;           // [fresh_first_, fresh_end_): grown by us, zeroes
  uint64_t fresh_end_ = 0;
  uint64_t scanned_ = 0;  // clusters before this one are in free_, in use, or taken
  uint64_t scan_end_ = 0;
  std::vector<uint64_t> blocks_;    // refcount blocks' offsets, while scanning
  std::vector<uint64_t> metadata_;  // clusters that cannot be free, sorted, while scanning

  std::vector<HostRange> allocated_;
  std::vector<HostRange> given_back_;
};

}  // namespace vbdkit::drivers::qcow2
