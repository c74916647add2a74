// SPDX-License-Identifier: LGPL-2.1-or-later
#include "base/code_pages.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <cstring>

namespace vbdkit {
namespace {

// KiB that are mapped of the region with this program's code.
uint64_t resident_code() {
  const auto here = reinterpret_cast<uintptr_t>(&resident_code);
  FILE* const maps = fopen("/proc/self/smaps", "re");
  if (maps == nullptr) return 0;
  char line[512];
  bool ours = false;
  uint64_t resident = 0;
  while (fgets(line, sizeof line, maps) != nullptr) {
    uintptr_t begin = 0;
    uintptr_t end = 0;
    uint64_t kib = 0;
    if (sscanf(line, "%lx-%lx ", &begin, &end) == 2)
      ours = begin <= here && here < end;
    else if (ours && sscanf(line, "Rss: %lu kB", &kib) == 1)
      resident = kib;
  }
  fclose(maps);
  return resident;
}

TEST(CodePages, WhatIsNotUsedAgainIsNotCountedAgain) {
  const uint64_t before = resident_code();
  release_code_pages();
  const uint64_t after = resident_code();
  EXPECT_LT(after, before);
  EXPECT_GT(after, 0u);  // we are here
}

TEST(CodePages, ConstantsAndRelocatedPointersAreWhatTheyWere) {
  static const char* const words[] = {"grant", "ring", "leaf"};
  release_code_pages();
  EXPECT_STREQ("grant", words[0]);
  EXPECT_STREQ("leaf", words[2]);
}

}  // namespace
}  // namespace vbdkit
