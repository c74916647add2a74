// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/nbd/negotiation.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

namespace vbdkit::nbd {
namespace {

template <typename T>
std::string be(T v) {
  std::string s(sizeof v, '\0');
  store_be(reinterpret_cast<uint8_t*>(s.data()), v);
  return s;
}

std::string flags(uint32_t v = kClientFixedNewstyle | kClientNoZeroes) { return be(v); }

std::string option(Option o, std::string_view data = {}) {
  return be(kOptionMagic) + be(static_cast<uint32_t>(o)) + be(static_cast<uint32_t>(data.size())) +
         std::string(data);
}

std::string text(std::string_view s) {
  return be(static_cast<uint32_t>(s.size())) + std::string(s);
}

std::string go(std::string_view name, std::vector<Info> infos = {}) {
  std::string data = text(name) + be(static_cast<uint16_t>(infos.size()));
  for (Info i : infos) data += be(static_cast<uint16_t>(i));
  return data;
}

std::string meta(std::string_view name, std::vector<std::string_view> queries) {
  std::string data = text(name) + be(static_cast<uint32_t>(queries.size()));
  for (auto q : queries) data += text(q);
  return data;
}

struct Reply {
  Option option;
  OptionReply type;
  std::string data;
};

std::vector<Reply> replies(std::string_view out) {
  std::vector<Reply> list;
  while (out.size() >= 20) {
    const auto* p = reinterpret_cast<const uint8_t*>(out.data());
    EXPECT_EQ(load_be<uint64_t>(p), kOptionReplyMagic);
    const uint32_t length = load_be<uint32_t>(p + 16);
    list.push_back({static_cast<Option>(load_be<uint32_t>(p + 8)),
                    static_cast<OptionReply>(load_be<uint32_t>(p + 12)),
                    std::string(out.substr(20, length))});
    out.remove_prefix(20 + length);
  }
  EXPECT_TRUE(out.empty());
  return list;
}

class NbdNegotiation : public testing::Test {
 protected:
  static Export exported() {
    Export e;
    e.name = "disk";
    e.description = "a test";
    e.size = 1 << 20;
    e.minimum_block = 512;
    e.flags = kHasFlags | kSendFlush;
    e.contexts = {"base:allocation", "x-test:dirty"};
    return e;
  }

  // Feeds `in` to the end or until the state is another than kMore.
  Negotiation::State feed(std::string_view in) {
    out_.clear();
    while (true) {
      const auto step = n_.step({reinterpret_cast<const uint8_t*>(in.data()), in.size()}, out_);
      in.remove_prefix(step.consumed);
      if (step.state != Negotiation::State::kMore || step.consumed == 0) return step.state;
    }
  }
  // The final answer to one option.
  Reply last(Option o, std::string_view data = {}) {
    feed(option(o, data));
    const auto list = replies(out_);
    return list.empty() ? Reply{} : list.back();
  }

  Negotiation n_{exported()};
  std::string out_;
};

TEST_F(NbdNegotiation, GreetsWithBothMagics) {
  n_.greet(out_);
  EXPECT_EQ(out_, std::string("NBDMAGICIHAVEOPT") + be(uint16_t{3}));
}

TEST_F(NbdNegotiation, WantsFixedNewstyleAndKnownFlags) {
  EXPECT_EQ(feed(flags(0)), Negotiation::State::kBroken);
  Negotiation other(exported());
  n_ = std::move(other);
  EXPECT_EQ(feed(flags(0x80000001)), Negotiation::State::kBroken);
}

TEST_F(NbdNegotiation, ExportNameEntersAndPadsUnlessToldNotTo) {
  EXPECT_EQ(feed(flags() + option(Option::kExportName, "disk")), Negotiation::State::kTransmission);
  EXPECT_EQ(out_, be(uint64_t{1 << 20}) + be(uint16_t{kHasFlags | kSendFlush}));
  n_ = Negotiation(exported());
  EXPECT_EQ(feed(flags(kClientFixedNewstyle) + option(Option::kExportName, "")),
            Negotiation::State::kTransmission);
  EXPECT_EQ(out_.size(), 10u + 124u);
  n_ = Negotiation(exported());
  EXPECT_EQ(feed(flags() + option(Option::kExportName, "other")), Negotiation::State::kBroken);
}

TEST_F(NbdNegotiation, GoTellsWhatWasAskedAndEnters) {
  feed(flags());
  EXPECT_EQ(feed(option(Option::kGo, go("disk", {Info::kName, Info::kDescription, Info::kBlockSize,
                                                 static_cast<Info>(77)}))),
            Negotiation::State::kTransmission);
  const auto list = replies(out_);
  ASSERT_EQ(list.size(), 5u);
  EXPECT_EQ(list[0].data, be(uint16_t{0}) + be(uint64_t{1 << 20}) + be(uint16_t{5}));
  EXPECT_EQ(list[1].data, be(uint16_t{1}) + "disk");
  EXPECT_EQ(list[2].data, be(uint16_t{2}) + "a test");
  EXPECT_EQ(list[3].data,
            be(uint16_t{3}) + be(uint32_t{512}) + be(uint32_t{4096}) + be(uint32_t{32 << 20}));
  EXPECT_EQ(list[4].type, OptionReply::kAck);
}

TEST_F(NbdNegotiation, InfoStaysAndUnknownNamesAreRefused) {
  feed(flags());
  EXPECT_EQ(last(Option::kInfo, go("")).type, OptionReply::kAck);
  EXPECT_EQ(last(Option::kInfo, go("other")).type, OptionReply::kErrUnknown);
  EXPECT_EQ(last(Option::kGo, go("other")).type, OptionReply::kErrUnknown);
  EXPECT_EQ(last(Option::kGo, go("")).type, OptionReply::kAck);
}

TEST_F(NbdNegotiation, MalformedGoIsInvalidAndGoesOn) {
  feed(flags());
  const std::string good = go("disk", {Info::kBlockSize});
  for (size_t n = 0; n < good.size(); ++n)
    EXPECT_EQ(last(Option::kGo, good.substr(0, n)).type, OptionReply::kErrInvalid) << n;
  EXPECT_EQ(last(Option::kGo, good + "x").type, OptionReply::kErrInvalid);
  EXPECT_EQ(last(Option::kGo, be(uint32_t{0xfffffff0}) + "abc").type, OptionReply::kErrInvalid);
  EXPECT_EQ(last(Option::kList).type, OptionReply::kAck);
}

TEST_F(NbdNegotiation, ListNamesTheExport) {
  feed(flags() + option(Option::kList));
  const auto list = replies(out_);
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0].type, OptionReply::kServer);
  EXPECT_EQ(list[0].data, text("disk") + "a test");
  EXPECT_EQ(last(Option::kList, "x").type, OptionReply::kErrInvalid);
}

TEST_F(NbdNegotiation, UnknownOptionsAndTlsAreRefusedPolitely) {
  feed(flags());
  EXPECT_EQ(last(static_cast<Option>(4), "abc").type, OptionReply::kErrUnsup);
  EXPECT_EQ(last(static_cast<Option>(11)).type, OptionReply::kErrUnsup);
  EXPECT_EQ(last(static_cast<Option>(0xffffffff)).type, OptionReply::kErrUnsup);
  EXPECT_EQ(last(Option::kStartTls).type, OptionReply::kErrPolicy);
  EXPECT_EQ(last(Option::kStartTls, "x").type, OptionReply::kErrInvalid);
}

TEST_F(NbdNegotiation, StructuredRepliesBringDf) {
  feed(flags());
  EXPECT_EQ(last(Option::kStructuredReply, "x").type, OptionReply::kErrInvalid);
  EXPECT_FALSE(n_.structured());
  EXPECT_EQ(last(Option::kStructuredReply).type, OptionReply::kAck);
  EXPECT_TRUE(n_.structured());
  feed(option(Option::kInfo, go("")));
  EXPECT_EQ(replies(out_)[0].data.substr(10), be(uint16_t{kHasFlags | kSendFlush | kSendDf}));
}

TEST_F(NbdNegotiation, ListsContextsByNameNamespaceOrAll) {
  feed(flags());
  const auto names = [&](std::vector<std::string_view> queries) {
    feed(option(Option::kListMetaContext, meta("disk", std::move(queries))));
    std::vector<std::string> found;
    for (const Reply& r : replies(out_))
      if (r.type == OptionReply::kMetaContext) found.push_back(r.data.substr(4));
    return found;
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(names({}), (Names{"base:allocation", "x-test:dirty"}));
  EXPECT_EQ(names({"base:"}), (Names{"base:allocation"}));
  EXPECT_EQ(names({"base:allocation", "base:"}), (Names{"base:allocation"}));
  EXPECT_EQ(names({"x-test:"}), (Names{"x-test:dirty"}));
  EXPECT_EQ(names({"qemu:", "nonsense"}), (Names{}));
}

TEST_F(NbdNegotiation, SelectsContextsAndForgetsThemWithTheNextTry) {
  feed(flags());
  EXPECT_EQ(last(Option::kSetMetaContext, meta("disk", {"base:allocation"})).type,
            OptionReply::kErrInvalid);  // structured replies first
  feed(option(Option::kStructuredReply));
  feed(option(Option::kSetMetaContext, meta("disk", {"x-test:dirty", "base:"})));
  const auto list = replies(out_);
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0].data, be(uint32_t{2}) + "x-test:dirty");
  EXPECT_EQ(n_.contexts(), std::vector<uint32_t>{2});
  EXPECT_EQ(last(Option::kSetMetaContext, meta("other", {"base:allocation"})).type,
            OptionReply::kErrUnknown);
  EXPECT_TRUE(n_.contexts().empty());
  EXPECT_EQ(last(Option::kSetMetaContext, meta("disk", {})).type, OptionReply::kAck);
  EXPECT_TRUE(n_.contexts().empty());
}

TEST_F(NbdNegotiation, MalformedMetaQueriesAreInvalid) {
  feed(flags() + option(Option::kStructuredReply));
  const std::string good = meta("disk", {"base:allocation"});
  for (size_t n = 0; n < good.size(); ++n)
    EXPECT_EQ(last(Option::kSetMetaContext, good.substr(0, n)).type, OptionReply::kErrInvalid) << n;
  // A count that its data cannot hold.
  EXPECT_EQ(last(Option::kSetMetaContext, text("disk") + be(uint32_t{0xffffffff})).type,
            OptionReply::kErrInvalid);
}

TEST_F(NbdNegotiation, AHugeOptionEndsTheSessionWithoutBeingRead) {
  feed(flags());
  std::string header = option(Option::kGo);
  store_be(reinterpret_cast<uint8_t*>(header.data()) + 12, uint32_t{0xffffffff});
  EXPECT_EQ(feed(header), Negotiation::State::kAborted);
  EXPECT_EQ(replies(out_).back().type, OptionReply::kErrTooBig);
}

TEST_F(NbdNegotiation, AbortIsAcknowledgedAndEnds) {
  feed(flags());
  EXPECT_EQ(feed(option(Option::kAbort, "bye")), Negotiation::State::kAborted);
  EXPECT_EQ(replies(out_).back().type, OptionReply::kAck);
}

TEST_F(NbdNegotiation, WrongOptionMagicEndsIt) {
  feed(flags());
  std::string wrong = option(Option::kList);
  wrong[0] = 'X';
  EXPECT_EQ(feed(wrong), Negotiation::State::kBroken);
}

TEST_F(NbdNegotiation, AnswersTheSameHoweverTheBytesArrive) {
  const std::string in = flags() + option(Option::kStructuredReply) + option(Option::kList) +
                         option(Option::kSetMetaContext, meta("disk", {"base:allocation"})) +
                         option(Option::kGo, go("disk", {Info::kBlockSize}));
  ASSERT_EQ(feed(in), Negotiation::State::kTransmission);
  const std::string whole = out_;

  Negotiation bytewise(exported());
  std::string pending;
  std::string out;
  Negotiation::State state = Negotiation::State::kMore;
  for (char c : in) {
    pending += c;
    const auto step =
        bytewise.step({reinterpret_cast<const uint8_t*>(pending.data()), pending.size()}, out);
    pending.erase(0, step.consumed);
    state = step.state;
  }
  EXPECT_EQ(state, Negotiation::State::kTransmission);
  EXPECT_TRUE(pending.empty());
  EXPECT_EQ(out, whole);
}

}  // namespace
}  // namespace vbdkit::nbd
