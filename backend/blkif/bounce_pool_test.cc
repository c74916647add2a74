// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/blkif/bounce_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>

namespace vbdkit::blkif {
namespace {

constexpr uint64_t kLargest = uint64_t{xen::kPageSize} << BouncePool::kMaxOrder;

TEST(BouncePoolTest, IsBounded) {
  BouncePool pool;
  std::vector<char*> runs;
  while (char* run = pool.take(kLargest)) runs.push_back(run);
  EXPECT_EQ(runs.size(), BouncePool::kMaxBlocks);
  EXPECT_EQ(pool.take(1), nullptr);
  for (char* run : runs) pool.give_back(run, kLargest);
  EXPECT_TRUE(pool.unused());
}

TEST(BouncePoolTest, RunsNeverOverlapAndJoinAgain) {
  BouncePool pool;
  std::mt19937 random(1);
  std::map<char*, uint64_t> taken;
  for (int i = 0; i < 20000; ++i) {
    if (!taken.empty() && random() % 2 == 0) {
      auto it = std::next(taken.begin(), static_cast<long>(random() % taken.size()));
      // Whoever overlapped with it would have written over this.
      for (uint64_t at = 0; at < it->second; at += 512)
        ASSERT_EQ(it->first[at], static_cast<char>(it->second / 512));
      pool.give_back(it->first, it->second);
      taken.erase(it);
      continue;
    }
    const uint64_t bytes = (random() % 2048 + 1) * 512;
    if (char* run = pool.take(bytes)) {
      ASSERT_EQ(reinterpret_cast<uintptr_t>(run) % xen::kPageSize, 0u);
      memset(run, static_cast<char>(bytes / 512), bytes);
      taken[run] = bytes;
    }
  }
  for (auto [run, bytes] : taken) pool.give_back(run, bytes);
  EXPECT_TRUE(pool.unused());
  // All in one piece again.
  for (uint32_t i = 0; i < BouncePool::kMaxBlocks; ++i) EXPECT_NE(pool.take(kLargest), nullptr);
}

TEST(BouncePoolTest, GivesMemoryBackOnlyWhileUnused) {
  BouncePool pool;
  char* run = pool.take(4096);
  run[0] = 1;
  pool.trim();
  EXPECT_EQ(run[0], 1);
  pool.give_back(run, 4096);
  pool.trim();
  EXPECT_EQ(run[0], 0);
  EXPECT_FALSE(pool.touched());
}

}  // namespace
}  // namespace vbdkit::blkif
