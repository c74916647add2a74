// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Copies between a request's vector and flat memory. `skip` counts bytes from the start of the
// vector, which must hold skip + length of them. Pure.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace vbdkit::drivers {

// Calls fn(char* piece, size_t length) for the pieces of [skip, skip + length), in order.
template <typename Fn>
void for_each_piece(const iovec* iov, uint64_t skip, uint64_t length, Fn fn) {
  for (; length > 0; ++iov) {
    if (skip >= iov->iov_len) {
      skip -= iov->iov_len;
      continue;
    }
    const size_t n = static_cast<size_t>(std::min<uint64_t>(iov->iov_len - skip, length));
    fn(static_cast<char*>(iov->iov_base) + skip, n);
    length -= n;
    skip = 0;
  }
}

inline void copy_to_iov(const iovec* iov, uint64_t skip, const char* from, uint64_t length) {
  for_each_piece(iov, skip, length, [&](char* piece, size_t n) {
    memcpy(piece, from, n);
    from += n;
  });
}

inline void copy_from_iov(const iovec* iov, uint64_t skip, char* to, uint64_t length) {
  for_each_piece(iov, skip, length, [&](const char* piece, size_t n) {
    memcpy(to, piece, n);
    to += n;
  });
}

inline void zero_iov(const iovec* iov, uint64_t skip, uint64_t length) {
  for_each_piece(iov, skip, length, [](char* piece, size_t n) { memset(piece, 0, n); });
}

}  // namespace vbdkit::drivers
