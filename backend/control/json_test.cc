// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/control/json.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

namespace vbdkit::control {
namespace {

using Kind = JsonFramer::Kind;

TEST(JsonWriter, WritesWhatTheParserReadsBack) {
  JsonWriter w;
  w.begin_object().field("name", "a\"b\\c\n\x01").field("size", UINT64_MAX).field("ro", false);
  w.key("list").begin_array().number(1).null().string("ü").end_array().end_object();
  const auto parsed = Json::parse(w.take());
  ASSERT_TRUE(parsed);
  EXPECT_EQ(parsed->member("name").string(), "a\"b\\c\n\x01");
  EXPECT_EQ(parsed->member("size").number(), UINT64_MAX);
  EXPECT_EQ(parsed->member("ro").boolean(), false);
  EXPECT_EQ(parsed->member("list").size(), 3u);
  EXPECT_EQ(parsed->member("list").at(2).string(), "ü");
}

TEST(JsonWriter, ReplacesBytesThatAreNotUtf8) {
  // A stray continuation, an overlong slash, a surrogate, a sequence cut short.
  for (const char* bad : {"\x80", "\xc0\xaf", "\xed\xa0\x80", "\xf0\x9f\x98"}) {
    JsonWriter w;
    w.string(std::string("x") + bad);
    const auto parsed = Json::parse(w.take());
    ASSERT_TRUE(parsed);
    EXPECT_TRUE(parsed->string()->starts_with("x\xef\xbf\xbd"));
  }
}

TEST(Json, AnswersNothingWhereTheTypeIsAnother) {
  const auto parsed = Json::parse(R"({"n":-1,"f":1.5,"s":"x","a":[]})");
  ASSERT_TRUE(parsed);
  EXPECT_FALSE(parsed->member("n").number());
  EXPECT_FALSE(parsed->member("f").number());
  EXPECT_FALSE(parsed->member("s").number());
  EXPECT_FALSE(parsed->member("a").string());
  EXPECT_TRUE(parsed->member("absent").is_null());
  EXPECT_TRUE(parsed->member("s").member("below").is_null());
  EXPECT_TRUE(parsed->member("a").at(7).is_null());
}

TEST(Json, RefusesWhatIsNotJson) {
  for (const char* bad : {"", "{", "{]", "[1,]", "{\"a\"}", "nul", "{} {}", "\"\xff\""})
    EXPECT_FALSE(Json::parse(bad)) << bad;
}

TEST(JsonFramer, CutsAStreamWhereverItWasSplit) {
  const std::string stream = " {\"a\":\"}]\\\"\"}\r\n[1,[2]]{\"b\":{}}rubbish here\n{\"c\":\"{\"}";
  const std::vector<std::pair<Kind, std::string>> expected = {
      {Kind::kMessage, "{\"a\":\"}]\\\"\"}"},
      {Kind::kMessage, "[1,[2]]"},
      {Kind::kMessage, "{\"b\":{}}"},
      {Kind::kGarbage, "rubbish here"},
      {Kind::kMessage, "{\"c\":\"{\"}"}};
  for (size_t piece = 1; piece <= stream.size(); ++piece) {
    JsonFramer framer(1024);
    std::vector<std::pair<Kind, std::string>> got;
    for (size_t at = 0; at < stream.size(); at += piece) {
      framer.append(std::string_view(stream).substr(at, piece));
      for (auto frame = framer.next(); frame.kind != Kind::kMore; frame = framer.next())
        got.emplace_back(frame.kind, frame.text);
    }
    EXPECT_EQ(got, expected) << "in pieces of " << piece;
  }
}

TEST(JsonFramer, GivesUpOnWhatIsTooLongOrTooDeep) {
  JsonFramer longer(64);
  longer.append("{\"k\":\"" + std::string(64, 'x'));
  EXPECT_EQ(longer.next().kind, Kind::kTooLong);

  JsonFramer garbage(64);
  garbage.append(std::string(65, 'x'));
  EXPECT_EQ(garbage.next().kind, Kind::kTooLong);

  JsonFramer deep(64 * 1024);
  deep.append(std::string(JsonFramer::kMaxDepth, '['));
  EXPECT_EQ(deep.next().kind, Kind::kMore);
  deep.append("[");
  EXPECT_EQ(deep.next().kind, Kind::kTooLong);
}

TEST(JsonFramer, SurvivesRandomBytes) {
  std::mt19937 random(1);
  const std::string alphabet = "{}[]\"\\,:a1 \n\t\xff";
  size_t messages = 0;
  for (int round = 0; round < 2000; ++round) {
    JsonFramer framer(256);
    std::string text;
    for (int i = 0; i < 200; ++i) text += alphabet[random() % alphabet.size()];
    framer.append(text);
    size_t total = 0;
    for (auto frame = framer.next(); frame.kind == Kind::kMessage || frame.kind == Kind::kGarbage;
         frame = framer.next()) {
      total += frame.text.size();
      if (frame.kind != Kind::kMessage) continue;
      ++messages;
      if (const auto parsed = Json::parse(frame.text)) {
        EXPECT_FALSE(parsed->dump().empty());
      }
    }
    EXPECT_LE(total, text.size());
  }
  EXPECT_GT(messages, 0u);
}

}  // namespace
}  // namespace vbdkit::control
