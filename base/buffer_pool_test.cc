// SPDX-License-Identifier: LGPL-2.1-or-later
#include "base/buffer_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <vector>

namespace vbdkit {
namespace {

TEST(NbdBufferPool, BuffersArePageAlignedWritableAndApart) {
  BufferPool pool;
  std::vector<BufferPool::Buffer> buffers;
  std::set<uint8_t*> addresses;
  for (size_t bytes : {size_t{1}, size_t{4096}, size_t{4097}, size_t{65536}, size_t{65537},
                       BufferPool::kMaxBytes}) {
    for (int i = 0; i < 3; ++i) {
      auto b = pool.take(bytes);
      ASSERT_TRUE(b);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data()) % 4096, 0u);
      std::memset(b.data(), static_cast<int>(bytes & 0xff), bytes);
      EXPECT_TRUE(addresses.insert(b.data()).second);
      buffers.push_back(std::move(b));
    }
  }
  for (const auto& b : buffers) EXPECT_EQ(addresses.count(b.data()), 1u);
}

TEST(NbdBufferPool, ASteadyLoadMapsNothingNew) {
  BufferPool pool;
  const auto load = [&] {
    std::vector<BufferPool::Buffer> held;
    for (int i = 0; i < 40; ++i) held.push_back(pool.take(4096));
    for (int i = 0; i < 8; ++i) held.push_back(pool.take(131072));
  };
  load();
  const size_t mapped = pool.mapped_bytes();
  for (int i = 0; i < 100; ++i) load();
  EXPECT_EQ(pool.mapped_bytes(), mapped);
}

TEST(NbdBufferPool, TrimGivesAllBackAndIsNotTheEnd) {
  BufferPool pool;
  {
    auto small = pool.take(4096);
    auto large = pool.take(1 << 20);
  }
  EXPECT_GT(pool.mapped_bytes(), 0u);
  pool.trim();
  EXPECT_EQ(pool.mapped_bytes(), 0u);
  EXPECT_TRUE(pool.take(4096));
}

TEST(NbdBufferPool, TrimLeavesTakenBuffersAlone) {
  BufferPool pool;
  auto small = pool.take(4096);
  auto large = pool.take(1 << 20);
  small.data()[0] = 1;
  large.data()[0] = 2;
  pool.trim();
  EXPECT_EQ(small.data()[0], 1);
  EXPECT_EQ(large.data()[0], 2);
}

TEST(NbdBufferPool, DoesNotHoardLargeBuffers) {
  BufferPool pool;
  {
    std::vector<BufferPool::Buffer> held;
    for (int i = 0; i < 4; ++i) held.push_back(pool.take(BufferPool::kMaxBytes));
  }
  EXPECT_LE(pool.mapped_bytes(), size_t{8} << 20);
}

}  // namespace
}  // namespace vbdkit
