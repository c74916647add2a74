// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/chain/window_map.h"

#include <gtest/gtest.h>

#include <random>

namespace vbdkit::drivers {
namespace {

constexpr uint64_t kWindow = 2 << 20;                 // bytes
constexpr uint32_t kSectors = kWindow / kSectorSize;  // of a window

Source data_at(uint16_t layer, uint64_t disk_offset, uint64_t file_offset) {
  return Source::data(layer, disk_offset, file_offset).value();
}

Window whole(uint64_t index, Source source) {
  Window window(index);
  window.append(0, source);
  return window;
}

TEST(Source, KeepsLayerKindAndDistanceBothWays) {
  const Source below = data_at(77, uint64_t{1} << 40, 4096);
  EXPECT_EQ(below.layer(), 77);
  EXPECT_EQ(below.kind(), Segment::Kind::kData);
  EXPECT_EQ(below.file_offset(uint64_t{1} << 40), 4096u);
  EXPECT_EQ(below.file_offset((uint64_t{1} << 40) + 512), 4608u);
  const Source above = data_at(4094, 0, uint64_t{1} << 50);
  EXPECT_EQ(above.file_offset(1024), (uint64_t{1} << 50) + 1024);
  EXPECT_FALSE(Source::data(0, 0, uint64_t{1} << 62).has_value());
  EXPECT_EQ(Source::nowhere().layer(), kNoLayer);
}

// Against an array with one source for every sector.
TEST(Window, AssignMatchesAModelAndStaysMinimal) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    std::vector<Source> model(kSectors, Source::nowhere());
    Window window = whole(0, Source::nowhere());
    for (int step = 0; step < 400; ++step) {
      const auto start = static_cast<uint32_t>(random() % kSectors);
      const auto length = static_cast<uint32_t>(random() % (seed % 2 ? 9 : kSectors - start)) + 1;
      const uint32_t end = std::min(kSectors, start + length);
      const Source source = data_at(static_cast<uint16_t>(random() % 5), 0, random() % 3 * 8192);
      window.assign(start, end, kSectors, source);
      std::fill(model.begin() + start, model.begin() + end, source);
    }
    size_t runs = 1;
    for (uint32_t s = 1; s < kSectors; ++s) runs += model[s] != model[s - 1];
    EXPECT_EQ(window.segments(), runs);
    for (uint32_t s = 0; s < kSectors; ++s) {
      const Window::Run run = window.find(s, kSectors);
      ASSERT_EQ(run.source, model[s]) << s;
      ASSERT_GT(run.end, s);
      for (uint32_t i = s; i < run.end; ++i) ASSERT_EQ(model[i], model[s]);
      ASSERT_TRUE(run.end == kSectors || model[run.end] != model[s]);
    }
  }
}

TEST(Window, OfTheLargestSizeReachesItsLastSector) {
  constexpr uint32_t kLargest = kMaxWindow / kSectorSize;
  Window window = whole(0, Source::nowhere());
  window.assign(kLargest - 1, kLargest, kLargest, data_at(0, 0, 512));
  EXPECT_EQ(window.find(0, kLargest).end, kLargest - 1);
  EXPECT_EQ(window.find(kLargest - 1, kLargest).end, kLargest);
}

TEST(Window, SourcesNoLongerUsedDoNotAddUp) {
  Window window = whole(0, Source::nowhere());
  for (uint64_t i = 1; i < 100'000; ++i)
    window.assign(8, 16, kSectors, data_at(1, 0, i * kSectorSize));
  EXPECT_LT(window.memory(), 1024u);
}

TEST(WindowMap, FindsWhatWasInserted) {
  WindowMap map(kWindow, 1 << 20);
  EXPECT_FALSE(map.find(0).has_value());
  map.insert(whole(3, data_at(2, 3 * kWindow, 512)));
  const auto run = map.find(3 * kWindow + 1024);
  ASSERT_TRUE(run.has_value());
  EXPECT_EQ(run->length, kWindow - 1024);
  EXPECT_EQ(run->source.file_offset(3 * kWindow + 1024), 512u + 1024u);
  EXPECT_FALSE(map.find(4 * kWindow).has_value());
}

TEST(WindowMap, AssignReachesOverWindowsAndSkipsUnknownOnes) {
  WindowMap map(kWindow, 1 << 20);
  map.insert(whole(0, Source::nowhere()));
  map.insert(whole(2, Source::nowhere()));
  const Source source = data_at(0, 0, 1 << 20);
  map.assign(kWindow - 512, kWindow + 1024, source);
  EXPECT_EQ(map.find(kWindow - 512)->source, source);
  EXPECT_FALSE(map.find(kWindow).has_value());
  EXPECT_EQ(map.find(2 * kWindow)->length, 512u);
  EXPECT_EQ(map.find(2 * kWindow + 512)->source, Source::nowhere());
}

// The clock removes windows from the middle of probe sequences; the rest must stay reachable.
TEST(WindowMap, EvictsWithinTheLimitAndKeepsTheRestReachable) {
  constexpr size_t kLimit = 64 << 10;
  WindowMap map(kWindow, kLimit);
  std::mt19937_64 random(1);
  for (int i = 0; i < 20'000; ++i) {
    const uint64_t index = random() % 100'000;
    map.insert(whole(index, data_at(0, index * kWindow, 0)));
    ASSERT_TRUE(map.contains(index));
    ASSERT_LE(map.memory(), kLimit);
  }
  size_t found = 0;
  for (uint64_t index = 0; index < 100'000; ++index) {
    if (!map.contains(index)) continue;
    ++found;
    EXPECT_EQ(map.find(index * kWindow)->source, data_at(0, index * kWindow, 0));
  }
  EXPECT_EQ(found, map.windows());
  EXPECT_GT(found, 100u);
}

TEST(WindowMap, KeepsWhatIsUsedOverWhatIsNot) {
  WindowMap map(kWindow, 64 << 10);
  map.insert(whole(1'000'000, Source::nowhere()));
  for (uint64_t index = 0; index < 10'000; ++index) {
    map.insert(whole(index, Source::nowhere()));
    ASSERT_TRUE(map.find(1'000'000 * kWindow).has_value());
  }
}

// The bound that the manual states: 2 TiB, every second sector from another layer.
TEST(WindowMap, FullyFragmentedTwoTebibytesStayWithinTheLimit) {
  constexpr size_t kLimit = 4 << 20;
  constexpr uint64_t kBig = 16 << 20;
  constexpr uint32_t kBigSectors = kBig / kSectorSize;
  WindowMap map(kBig, kLimit);
  Window fragmented(0);
  for (uint32_t s = 0; s < kBigSectors; ++s)
    fragmented.append(s, data_at(s % 2, 0, (s % 2) * (uint64_t{1} << 30)));
  ASSERT_EQ(fragmented.segments(), kBigSectors);
  for (uint64_t index = 0; index < (uint64_t{2} << 40) / kBig; ++index) {
    Window window = whole(index, Source::nowhere());
    if (index % 2048 == 0)
      for (uint32_t s = 0; s < kBigSectors; s += 2)
        window.assign(s, s + 1, kBigSectors, data_at(1, 0, 1 << 20));
    map.insert(std::move(window));
    ASSERT_LE(map.memory(), kLimit);
  }
}

}  // namespace
}  // namespace vbdkit::drivers
