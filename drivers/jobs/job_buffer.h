// SPDX-License-Identifier: LGPL-2.1-or-later
//
// JobBuffer: memory for the data that a job moves, as direct I/O takes it; not initialised. And the
// test whether such data are all zero.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "base/units.h"

namespace vbdkit::drivers {

class JobBuffer {
 public:
  static constexpr size_t kAlignment = 4096;

  explicit JobBuffer(size_t size)
      : data_(static_cast<char*>(aligned_alloc(kAlignment, align_up(size, kAlignment)))) {
    if (data_ == nullptr) abort();
  }
  char* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(char* p) const { free(p); }
  };
  std::unique_ptr<char, Free> data_;
};

// Compares the memory with itself, one byte further: as fast as memcmp is.
inline bool all_zero(const char* data, size_t length) {
  if (length == 0) return true;
  return data[0] == 0 && memcmp(data, data + 1, length - 1) == 0;
}

}  // namespace vbdkit::drivers
