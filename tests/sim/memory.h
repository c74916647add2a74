// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Mapping owns one mmap; make_memfd makes what is mapped. Move-only; any thread.
#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include "base/fd.h"
#include "base/result.h"

namespace vbdkit::sim {

class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& o) noexcept
      : start_(std::exchange(o.start_, nullptr)), size_(std::exchange(o.size_, 0)) {}
  Mapping& operator=(Mapping&& o) noexcept {
    std::swap(start_, o.start_);
    std::swap(size_, o.size_);
    return *this;
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  // Shared, readable and writable, from offset 0.
  static Result<Mapping> map(const Fd& fd, size_t size);

  std::byte* data() const { return static_cast<std::byte*>(start_); }
  size_t size() const { return size_; }
  template <typename T>
  T* as(size_t offset = 0) const {
    return reinterpret_cast<T*>(data() + offset);
  }

 private:
  Mapping(void* start, size_t size) : start_(start), size_(size) {}
  void* start_ = nullptr;
  size_t size_ = 0;
};

Result<Fd> make_memfd(const std::string& name, size_t size);

}  // namespace vbdkit::sim
