// SPDX-License-Identifier: LGPL-2.1-or-later
#include "registryd/etcd_messages.h"

#include <gtest/gtest.h>

#include <random>

#include "backend/control/json.h"
#include "registryd/base64.h"

namespace vbdkit::registryd {
namespace {

using control::Json;

// The vectors of RFC 4648, section 10.
TEST(Base64, IsThatOfTheStandard) {
  const std::pair<const char*, const char*> kVectors[] = {
      {"", ""},
      {"f", "Zg=="},
      {"fo", "Zm8="},
      {"foo", "Zm9v"},
      {"foob", "Zm9vYg=="},
      {"fooba", "Zm9vYmE="},
      {"foobar", "Zm9vYmFy"},
  };
  for (const auto& [bytes, text] : kVectors) {
    EXPECT_EQ(to_base64(bytes), text);
    EXPECT_EQ(from_base64(text), bytes);
  }
}

TEST(Base64, RefusesWhatIsNone) {
  for (const char* text : {"Z", "Zg", "Zg=", "Zg===", "====", "Zg=a", "Z=a=", "Zm9v!m9v", "=m9v",
                           "Zg==Zg==", "Zm 9", "\xff\xff\xff\xff"})
    EXPECT_FALSE(from_base64(text)) << text;
}

TEST(Base64, GivesBackAnyBytes) {
  std::mt19937 rng(1);
  for (size_t length = 0; length < 200; ++length) {
    std::string bytes(length, '\0');
    for (char& c : bytes) c = static_cast<char>(rng());
    EXPECT_EQ(from_base64(to_base64(bytes)), bytes);
  }
}

TEST(EtcdMessages, APrefixEndsBehindItsLastKey) {
  EXPECT_EQ(end_of_prefix("a/"), "a0");
  EXPECT_EQ(end_of_prefix("a\xff"), "b");
  EXPECT_EQ(end_of_prefix("\xff\xff"), std::string(1, '\0'));
}

TEST(EtcdMessages, ATransactionIsWhatTheGatewayTakes) {
  Txn txn;
  txn.if_absent("h").if_unchanged("i/", 41).put("k", "v", 7).remove("r").read_prefix("i/");
  EXPECT_EQ(txn.actions(), 3u);
  const auto json = Json::parse(txn.text());
  ASSERT_TRUE(json);
  const Json compare = json->member("compare");
  ASSERT_EQ(compare.size(), 2u);
  EXPECT_EQ(compare.at(0).member("target").string(), "CREATE");
  EXPECT_EQ(compare.at(0).member("create_revision").string(), "0");
  EXPECT_EQ(compare.at(1).member("range_end").string(), to_base64("i0"));
  EXPECT_EQ(compare.at(1).member("result").string(), "LESS");
  EXPECT_EQ(compare.at(1).member("mod_revision").string(), "42");
  const Json put = json->member("success").at(0).member("request_put");
  EXPECT_EQ(put.member("value").string(), to_base64("v"));
  EXPECT_EQ(put.member("lease").string(), "7");
}

TEST(EtcdMessages, ReadsWhatTheGatewaySays) {
  const auto range = parse_range(
      R"({"header":{"cluster_id":"1","revision":"9"},"kvs":[{"key":"YQ==","create_revision":"3",)"
      R"("mod_revision":"5","version":"2","value":"Yg==","lease":"77"}],"more":true,"count":"8"})");
  ASSERT_TRUE(range) << range.error().message();
  EXPECT_EQ(range->revision, 9);
  EXPECT_TRUE(range->more);
  ASSERT_EQ(range->values.size(), 1u);
  EXPECT_EQ(range->values[0].key, "a");
  EXPECT_EQ(range->values[0].value, "b");
  EXPECT_EQ(range->values[0].create_revision, 3);
  EXPECT_EQ(range->values[0].lease, 77);

  const auto txn =
      parse_txn(R"({"header":{"revision":"4"},"succeeded":true,"responses":[{"response_put":{}},)"
                R"({"response_range":{"header":{"revision":"4"}}}]})");
  ASSERT_TRUE(txn) << txn.error().message();
  EXPECT_TRUE(txn->succeeded);
  ASSERT_EQ(txn->ranges.size(), 1u);
  EXPECT_TRUE(txn->ranges[0].values.empty());

  const auto lease = parse_keepalive(R"({"result":{"header":{},"ID":"5","TTL":"30"}})");
  ASSERT_TRUE(lease);
  EXPECT_EQ(lease->ttl, 30);
  // A lease that has ended: the time is left out.
  const auto ended = parse_keepalive(R"({"result":{"header":{},"ID":"5"}})");
  ASSERT_TRUE(ended);
  EXPECT_EQ(ended->ttl, 0);
}

TEST(EtcdMessages, WhatMakesNoSenseIsAnError) {
  const char* const kBad[] = {
      "",
      "null",
      "[]",
      "{",
      "\xff\xfe",
      R"({"kvs":[]})",
      R"({"header":7})",
      R"({"header":{"revision":"x"}})",
      R"({"header":{"revision":"99999999999999999999"}})",
      R"({"header":{"revision":"1"},"kvs":{}})",
      R"({"header":{"revision":"1"},"kvs":[7]})",
      R"({"header":{"revision":"1"},"kvs":[{"value":"Yg=="}]})",
      R"({"header":{"revision":"1"},"kvs":[{"key":"Y"}]})",
      R"({"header":{"revision":"1"},"kvs":[{"key":"YQ==","value":5}]})",
      R"({"header":{"revision":"1"},"kvs":[{"key":"YQ==","lease":{}}]})",
      R"({"header":{"revision":"1"},"kvs":[{"key":"YQ==","lease":"1.5"}]})",
  };
  for (const char* text : kBad) {
    const auto range = parse_range(text);
    ASSERT_FALSE(range) << text;
    EXPECT_EQ(range.error().kind(), ErrorKind::kProtocol) << text;
  }
  EXPECT_FALSE(parse_txn(R"({"responses":[]})"));
  EXPECT_FALSE(parse_txn(R"({"header":{"revision":"1"},"responses":[{"response_range":{}}]})"));
  EXPECT_FALSE(parse_grant(R"({"ID":"0","TTL":"5"})"));
  EXPECT_FALSE(parse_grant(R"({"ID":"5","TTL":"-5"})"));
  EXPECT_FALSE(parse_keepalive(R"({"ID":"5","TTL":"5"})"));
}

// Every beginning of an answer, and every one with a byte changed: an error or an answer, no more.
TEST(EtcdMessages, CutAndChangedAnswersAreTaken) {
  const std::string whole =
      R"({"header":{"revision":"4"},"succeeded":true,"responses":[{"response_range":{"header":)"
      R"({"revision":"4"},"kvs":[{"key":"YQ==","value":"Yg==","mod_revision":"2"}]}}]})";
  for (size_t n = 0; n < whole.size(); ++n) EXPECT_FALSE(parse_txn(whole.substr(0, n))) << n;
  std::mt19937 rng(3);
  size_t answers = 0;
  for (unsigned i = 0; i < 20000; ++i) {
    std::string changed = whole;
    changed[rng() % changed.size()] = static_cast<char>(rng());
    answers += parse_txn(changed).ok() ? 1 : 0;
  }
  EXPECT_GT(answers, 0u);
}

TEST(EtcdMessages, AFailureSaysWhatEtcdSays) {
  EXPECT_EQ(parse_failure(R"({"error":"etcdserver: no leader","code":14})", 503).message(),
            "etcd: etcdserver: no leader");
  EXPECT_EQ(parse_failure(R"({"error":{"message":"gone"}})", 500).message(), "etcd: gone");
  EXPECT_EQ(parse_failure("<html>", 502).message(), "etcd: HTTP status 502");
  EXPECT_LT(
      parse_failure(R"({"error":")" + std::string(1 << 20, 'x') + "\"}", 500).message().size(),
      1000u);
}

}  // namespace
}  // namespace vbdkit::registryd
