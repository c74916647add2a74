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
