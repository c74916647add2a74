// SPDX-License-Identifier: LGPL-2.1-or-later
//
// ChunkBitmap: which chunks of a disk a job has still to bring over. A range marks every chunk that
// it touches and clears those that it covers, so that what is clear was brought over whole. One bit
// for each chunk: 2 MiB for a disk of 1 TiB in chunks of 64 KiB. Pure; one owner.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <optional>
#include <vector>

namespace vbdkit::drivers {

class ChunkBitmap {
 public:
  struct Run {
    uint64_t offset = 0;  // bytes
    uint64_t length = 0;
  };

  // `size` in bytes; `chunk` in bytes, a power of two.
  ChunkBitmap(uint64_t size, uint64_t chunk)
      : size_(size), shift_(static_cast<unsigned>(std::countr_zero(chunk))) {
    words_.resize((chunks() + 63) / 64);
  }

  uint64_t size() const { return size_; }
  uint64_t chunk() const { return uint64_t{1} << shift_; }
  // Bytes of marked chunks; the last one counts whole.
  uint64_t marked() const { return count_ << shift_; }
  bool none() const { return count_ == 0; }

  void mark(uint64_t offset, uint64_t length) {
    if (length == 0) return;
    const uint64_t end = ((offset + length - 1) >> shift_) + 1;
    for (uint64_t i = offset >> shift_; i < end;) {
      uint64_t& word = words_[i / 64];
      const uint64_t n = std::min<uint64_t>(end - i, 64 - i % 64);
      const uint64_t bits = (n == 64 ? ~uint64_t{0} : bit(n) - 1) << (i % 64);
      count_ += static_cast<uint64_t>(std::popcount(bits & ~word));
      word |= bits;
      i += n;
    }
  }

  void clear(uint64_t offset, uint64_t length) {
    const uint64_t end = offset + length >= size_ ? chunks() : (offset + length) >> shift_;
    for (uint64_t i = (offset + chunk() - 1) >> shift_; i < end; ++i) {
      count_ -= test(i) ? 1 : 0;
      words_[i / 64] &= ~bit(i);
    }
  }

  bool any(uint64_t offset, uint64_t length) const { return first(offset, length, true); }
  bool all(uint64_t offset, uint64_t length) const { return !first(offset, length, false); }

  // The first marked bytes at or behind `from`, in whole chunks (but for the disk's end), no more
  // than `most`, which is at least a chunk.
  std::optional<Run> next(uint64_t from, uint64_t most) const {
    const uint64_t total = chunks();
    uint64_t i = from >> shift_;
    while (i < total && !test(i)) i = words_[i / 64] >> (i % 64) == 0 ? (i / 64 + 1) * 64 : i + 1;
    if (i >= total) return std::nullopt;
    uint64_t end = i + 1;
    while (end < total && (end - i + 1) << shift_ <= most && test(end)) ++end;
    const uint64_t offset = i << shift_;
    return Run{offset, std::min(end << shift_, size_) - offset};
  }

 private:
  uint64_t chunks() const { return (size_ + chunk() - 1) >> shift_; }
  static uint64_t bit(uint64_t i) { return uint64_t{1} << (i % 64); }
  bool test(uint64_t i) const { return (words_[i / 64] & bit(i)) != 0; }
  bool first(uint64_t offset, uint64_t length, bool state) const {
    if (length == 0) return false;
    for (uint64_t i = offset >> shift_; i <= (offset + length - 1) >> shift_; ++i)
      if (test(i) == state) return true;
    return false;
  }

  const uint64_t size_;
  const unsigned shift_;
  uint64_t count_ = 0;  // marked chunks
  std::vector<uint64_t> words_;
};

}  // namespace vbdkit::drivers
