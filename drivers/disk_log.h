// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For tests: what was done to a file, and what of it a power cut leaves. Events are counted by
// whoever keeps the log; several files may have one order (libcrashreplay.la).
//
// Rules of the simulated disk: a flush makes durable what was completed before it was submitted;
// FUA makes its own request durable; sectors of 512 bytes are written whole or not at all; a change
// of size may be lost like a write. One thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <random>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/result.h"

namespace vbdkit::drivers {

// Bytes of a sparse file.
class SparseBytes {
 public:
  static Result<SparseBytes> load(const std::string& path);
  // Makes or replaces the file.
  Result<void> save(const std::string& path) const;

  uint64_t size() const { return size_; }
  void resize(uint64_t size);
  void read(uint64_t offset, std::byte* to, size_t length) const;
  void write(uint64_t offset, const std::byte* from, size_t length);  // grows the file
  void zero(uint64_t offset, uint64_t length);                        // grows the file

 private:
  static constexpr uint64_t kPage = 4096;
  using Page = std::array<std::byte, kPage>;

  uint64_t size_ = 0;
  std::unordered_map<uint64_t, Page> pages_;  // by number; what is not here is zero
};

class DiskLog {
 public:
  enum class Loss {
    kNothing,  // all that was completed is there
    kRandom,   // what was not durable is there, or not, or in part
  };
  struct Change {
    enum class Kind { kWrite, kZero, kResize, kFlush };
    static constexpr size_t kNever = SIZE_MAX;

    Kind kind = Kind::kWrite;
    bool fua = false;
    bool keeps_size = false;  // of kZero
    uint64_t offset = 0;
    uint64_t length = 0;  // of kResize: the new size
    std::vector<std::byte> data = {};
    size_t submitted = 0;       // event
    size_t completed = kNever;  // event; of one that failed: never

    void apply(SparseBytes& disk) const;
  };

  explicit DiskLog(SparseBytes initial) : initial_(std::move(initial)) {}

  bool empty() const { return changes_.empty(); }
  // In the order of their submission. Returns its index.
  size_t add(Change change);
  const Change& completed(size_t index, size_t event);
  // A cut happens before the event of that number. What was completed before the event that is
  // returned is durable then.
  size_t durable_until(size_t cut) const;
  SparseBytes after_cut(size_t cut, Loss loss, std::mt19937_64& random) const;

 private:
  SparseBytes initial_;
  std::deque<Change> changes_;
};

}  // namespace vbdkit::drivers
