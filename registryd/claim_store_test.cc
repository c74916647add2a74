// SPDX-License-Identifier: LGPL-2.1-or-later
#include "registryd/claim_store.h"

#include <gtest/gtest.h>

namespace vbdkit::registryd {
namespace {

TEST(Claims, ExcludeEachOtherAsLocksDo) {
  using enum Mode;
  for (const Mode other : {kRead, kWrite, kSharedRead, kSharedWrite}) {
    EXPECT_TRUE(exclude(kWrite, other));
    EXPECT_TRUE(exclude(other, kWrite));
  }
  EXPECT_FALSE(exclude(kRead, kRead));
  EXPECT_FALSE(exclude(kRead, kSharedRead));
  EXPECT_FALSE(exclude(kSharedRead, kSharedWrite));
  EXPECT_FALSE(exclude(kSharedWrite, kSharedWrite));
  EXPECT_TRUE(exclude(kRead, kSharedWrite));
  EXPECT_TRUE(exclude(kSharedWrite, kRead));
}

TEST(Claims, WhoMergesToleratesReadersOnly) {
  using enum Mode;
  EXPECT_FALSE(exclude(kMerge, kRead));
  EXPECT_FALSE(exclude(kRead, kMerge));
  for (const Mode other : {kMerge, kWrite, kSharedRead, kSharedWrite}) {
    EXPECT_TRUE(exclude(kMerge, other));
    EXPECT_TRUE(exclude(other, kMerge));
  }
}

TEST(Claims, AReaderComesToAMergeOnlyWithTheImageBetween) {
  const Claim merging{.image = "san/i1",
                      .host = "a",
                      .holder = "vbdkit-1",
                      .mode = Mode::kMerge,
                      .path = {},
                      .through = "san/i2"};
  const Wish leaf{.image = "san/i3", .mode = Mode::kWrite, .path = {}};
  const Wish between{.image = "san/i2", .mode = Mode::kRead, .path = {}};
  const Wish parent{.image = "san/i1", .mode = Mode::kRead, .path = {}};
  EXPECT_FALSE(excludes(merging, parent, {leaf, between, parent}));
  EXPECT_TRUE(excludes(merging, parent, {leaf, parent}));
  Claim header = merging;
  header.through.clear();
  EXPECT_TRUE(excludes(header, parent, {leaf, between, parent}));
  // Whoever was there before the merge is its own business.
  const Claim reader{
      .image = "san/i1", .host = "b", .holder = "3f2a", .mode = Mode::kRead, .path = {}};
  const Wish merge{.image = "san/i1", .mode = Mode::kMerge, .path = {}, .through = "san/i2"};
  EXPECT_FALSE(excludes(reader, merge, {merge}));
}

TEST(Claims, AreReadFromTheirKey) {
  const KeyValue kv{.key = "/v/images/san1/i47/host-b/3f2a",
                    .value = R"({"mode":"write","path":"/srv/a","pid":7,"start-time":99})",
                    .create_revision = 12};
  const auto claim = parse_claim("/v/", kv);
  ASSERT_TRUE(claim);
  EXPECT_EQ(claim->image, "san1/i47");
  EXPECT_EQ(claim->host, "host-b");
  EXPECT_EQ(claim->holder, "3f2a");
  EXPECT_EQ(claim->mode, Mode::kWrite);
  EXPECT_EQ(claim->path, "/srv/a");
  EXPECT_EQ(claim->pid, 7);
  EXPECT_EQ(claim->revision, 12);
}

TEST(Claims, WhatIsNoneIsNotTakenForOne) {
  const std::string value = R"({"mode":"write"})";
  for (const char* key : {"", "/v/", "/v/images/", "/v/images/a", "/v/images/a/b", "/v/images//b",
                          "/w/images/a/b/c/d"})
    EXPECT_FALSE(parse_claim("/v/", {.key = key, .value = value})) << key;
  for (const char* broken : {"", "{", "[]", R"({"mode":"own"})", R"({"mode":7})"})
    EXPECT_FALSE(parse_claim("/v/", {.key = "/v/images/a/i1/h/u", .value = broken})) << broken;
}

}  // namespace
}  // namespace vbdkit::registryd
