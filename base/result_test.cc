// SPDX-License-Identifier: LGPL-2.1-or-later
#include "base/result.h"

#include <gtest/gtest.h>

#include <memory>

#include "base/fd.h"
#include "base/units.h"

namespace vbdkit {
namespace {

Result<std::unique_ptr<int>> make(bool good) {
  if (!good) return Error(ErrorKind::kCorrupt, "bad magic 0x1f, expected 0x2e");
  return std::make_unique<int>(7);
}

Result<int> use(bool good) {
  VBDKIT_ASSIGN(auto p, make(good));
  return *p;
}

TEST(Result, CarriesAMoveOnlyValue) {
  Result<int> r = use(true);
  ASSERT_TRUE(r.ok());
  EXPECT_EQ(7, *r);
}

TEST(Result, HandsAnErrorUpUnchangedAndContextPutsTheAskerInFront) {
  Result<int> r = use(false);
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(ErrorKind::kCorrupt, r.error().kind());
  Error e = std::move(r).error().context("vhd: open /srv/a.vhd");
  EXPECT_EQ("vhd: open /srv/a.vhd: bad magic 0x1f, expected 0x2e", e.message());
  EXPECT_EQ(EIO, e.sys_errno());
}

TEST(Error, FromErrnoSaysWhatAndWhyAndKeepsTheNumber) {
  Result<Fd> r = Fd::open("/nonexistent/file", O_RDONLY);
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(ErrorKind::kNotFound, r.error().kind());
  EXPECT_EQ(ENOENT, r.error().sys_errno());
  EXPECT_EQ("open /nonexistent/file: No such file or directory", r.error().message());
}

TEST(Units, RangeInsideSurvivesValuesThatWouldWrap) {
  EXPECT_TRUE(range_inside(0, 0, 0));
  EXPECT_TRUE(range_inside(8, 8, 16));
  EXPECT_FALSE(range_inside(8, 9, 16));
  EXPECT_FALSE(range_inside(UINT64_MAX, 2, 16));
  EXPECT_FALSE(range_inside(8, UINT64_MAX, 16));
}

TEST(Units, ASectorIs512BytesWhateverTheDevice) {
  EXPECT_EQ(4096u, to_bytes(Sectors{8}).v);
  EXPECT_EQ(8u, to_sectors(Bytes{4607}).v);
}

}  // namespace
}  // namespace vbdkit
