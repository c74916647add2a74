// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Latency percentiles from a fixed table: 32 steps per power of two, so within about 3 %. Adding
// allocates nothing. One thread each; merged afterwards.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

namespace vbdkit::sim {

class Latency {
 public:
  void add(uint64_t nanoseconds) {
    ++table_[index_of(nanoseconds)];
    ++count_;
    sum_ += nanoseconds;
    if (nanoseconds > max_) max_ = nanoseconds;
  }
  void merge(const Latency& other) {
    for (size_t i = 0; i < table_.size(); ++i) table_[i] += other.table_[i];
    count_ += other.count_;
    sum_ += other.sum_;
    if (other.max_ > max_) max_ = other.max_;
  }
  uint64_t max() const { return max_; }
  uint64_t mean() const { return count_ == 0 ? 0 : sum_ / count_; }
  // The value that `fraction` of all lie at or below.
  uint64_t percentile(double fraction) const {
    const auto wanted = static_cast<uint64_t>(fraction * static_cast<double>(count_));
    uint64_t seen = 0;
    for (size_t i = 0; i < table_.size(); ++i) {
      seen += table_[i];
      if (seen > wanted) return upper_bound_of(i);
    }
    return max_;
  }

 private:
  static constexpr unsigned kStepBits = 5;
  static constexpr uint64_t kSteps = 1U << kStepBits;
  static size_t index_of(uint64_t v) {
    if (v < kSteps) return v;
    const auto shift = static_cast<unsigned>(std::bit_width(v)) - 1 - kStepBits;
    return (shift + 1) * kSteps + ((v >> shift) - kSteps);
  }
  static uint64_t upper_bound_of(size_t index) {
    if (index < kSteps) return index;
    const size_t shift = index / kSteps - 1;
    return ((index % kSteps + kSteps + 1) << shift) - 1;
  }

  std::array<uint64_t, (64 - kStepBits + 1) * kSteps> table_{};
  uint64_t count_ = 0;
  uint64_t sum_ = 0;
  uint64_t max_ = 0;
};

}  // namespace vbdkit::sim
