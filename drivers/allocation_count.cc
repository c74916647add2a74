// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/allocation_count.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<uint64_t> allocations{0};

}  // namespace

void* operator new(size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  void* p = malloc(size == 0 ? 1 : size);
  if (p == nullptr) abort();
  return p;
}
void operator delete(void* p) noexcept { free(p); }
void operator delete(void* p, size_t) noexcept { free(p); }

namespace vbdkit::drivers {

uint64_t allocation_count() { return allocations.load(std::memory_order_relaxed); }

}  // namespace vbdkit::drivers
