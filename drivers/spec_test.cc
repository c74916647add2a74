// SPDX-License-Identifier: LGPL-2.1-or-later
#include <gtest/gtest.h>

#include "drivers/options.h"
#include "drivers/registry.h"
#include "drivers/spec.h"

namespace vbdkit::drivers {
namespace {

GraphSpec parse_ok(std::string_view text) {
  auto graph = parse_graph(text);
  EXPECT_TRUE(graph.ok()) << text << ": " << graph.error().message();
  return graph ? std::move(graph).value() : GraphSpec{{NodeSpec{}}};
}

std::string error_of(std::string_view text) {
  auto graph = parse_graph(text);
  EXPECT_FALSE(graph.ok()) << text;
  if (graph) return {};
  EXPECT_EQ(ErrorKind::kInvalid, graph.error().kind());
  return graph.error().message();
}

TEST(Spec, ALeafHasAPathAndOptionsBeforeIt) {
  const GraphSpec graph = parse_ok("raw,direct=off,locking=off:/srv/a:b,c=d.img");
  ASSERT_EQ(1u, graph.nodes.size());
  EXPECT_EQ("raw", graph.leaf().driver);
  EXPECT_EQ("/srv/a:b,c=d.img", graph.leaf().path);
  const std::map<std::string, std::string> options = {{"direct", "off"}, {"locking", "off"}};
  EXPECT_EQ(options, graph.leaf().options);
}

TEST(Spec, AFiltersArgumentIsAListOfOptions) {
  const GraphSpec graph = parse_ok("throttle,bps=1M:iops=2000|raw:/srv/a.img");
  ASSERT_EQ(2u, graph.nodes.size());
  const std::map<std::string, std::string> options = {{"bps", "1M"}, {"iops", "2000"}};
  EXPECT_EQ(options, graph.nodes[0].options);
  EXPECT_EQ("raw:/srv/a.img", graph.leaf().to_string());
}

TEST(Spec, BothFormsSayTheSame) {
  EXPECT_EQ(parse_ok("throttle:iops=5|raw,direct=off:/srv/a.img"),
            parse_ok(R"({"driver":"throttle","iops":5,
                         "next":{"driver":"raw","direct":false,"path":"/srv/a.img"}})"));
}

TEST(Spec, TheCanonicalFormParsesToTheSameGraph) {
  for (const char* text : {
           "raw:/srv/a.img",
           "ram,size=1G",
           "throttle|throttle,iops=5:iops-burst=9|raw,direct=off,align=4K:/a=b,c:d e",
           R"({"driver":"raw","path":"/srv/a|b\"\\.img"})",
           R"({"driver":"throttle","iops":7,"next":{"driver":"raw","path":"|","discard":true}})",
           R"({"driver":"throttle","iops":"a,b:c|d","next":{"driver":"ram","size":"1:2"}})",
           "throttle:iops=\xff:|raw:/\xff",
       }) {
    const GraphSpec graph = parse_ok(text);
    EXPECT_EQ(graph, parse_ok(graph.to_string())) << text << " -> " << graph.to_string();
  }
}

TEST(Spec, OnlyAPathThatTheTextFormCannotHoldForcesJson) {
  EXPECT_EQ("throttle:iops=7|raw:/a",
            parse_ok(R"({"driver":"throttle","iops":7,"next":{"driver":"raw","path":"/a"}})")
                .to_string());
  EXPECT_EQ(R"({"driver":"raw","path":"a|b"})",
            parse_ok(R"({"path":"a|b","driver":"raw"})").to_string());
}

struct Refusal {
  const char* text;
  const char* error;  // DRIVERS stands for the list of all
};

class SpecRefusal : public testing::TestWithParam<Refusal> {};

// "null, ram, raw, …": the drivers there are.
std::string known_drivers() {
  std::string list;
  for (const DriverEntry& entry : driver_table())
    list += (list.empty() ? "" : ", ") + std::string(entry.name);
  return list;
}

TEST_P(SpecRefusal, NamesTheBadPart) {
  std::string expected = std::string("node spec '") + GetParam().text + "': " + GetParam().error;
  constexpr std::string_view kDrivers = "DRIVERS";
  if (const size_t at = expected.find(kDrivers); at != std::string::npos)
    expected.replace(at, kDrivers.size(), known_drivers());
  EXPECT_EQ(expected, error_of(GetParam().text));
}

constexpr Refusal kRefusals[] = {
    {"", "empty"},
    {"raw", "raw: no path given"},
    {"raw:", "raw: no path given"},
    {"qed:/a", "unknown driver 'qed' (known: DRIVERS)"},
    {"/srv/a.img", "unknown driver '/srv/a.img' (known: DRIVERS); a file is raw:/srv/a.img"},
    {"ram,size=1G:/a", "ram: takes no path, but has '/a'"},
    {"ram,sise=1G", "ram: unknown key 'sise' (known: size)"},
    {"throttle:iop=5|raw:/a",
     "throttle: unknown key 'iop' (known: bps, bps-burst, bps-read, bps-read-burst, bps-write, "
     "bps-write-burst, iops, iops-burst, iops-read, iops-read-burst, iops-write, "
     "iops-write-burst)"},
    {"throttle:iops|raw:/a", "throttle: 'iops': expected key=value"},
    {"throttle:iops=1,iops=2|raw:/a", "throttle: key 'iops' given twice"},
    {"throttle:=1|raw:/a", "throttle: option without a key"},
    {"throttle:iops=1,|raw:/a", "throttle: '': expected key=value"},
    {"throttle:iops=1", "throttle: a filter needs a node after it"},
    {"raw:/a|raw:/b", "raw: not a filter, so nothing may follow"},
    {"raw:/a|", "raw: not a filter, so nothing may follow"},
    {"throttle|", "unknown driver '' (known: DRIVERS)"},
    {"{", "not valid JSON, at byte 2"},
    {R"({"driver":"null","size":3e999})", "not valid JSON: a number is out of range"},
    {"{}", "a node needs the key 'driver' with a string"},
    {R"({"driver":5})", "a node needs the key 'driver' with a string"},
    {R"({"driver":"raw","path":5})", "raw: key 'path': expected a string"},
    {R"({"driver":"raw","path":"a\u0000b"})", "raw: key 'path': contains a NUL character"},
    {R"({"driver":"ram","size":-1})",
     "ram: key 'size': expected a string, a whole number, true or false"},
    {R"({"driver":"ram","size":[[1]]})",
     "ram: key 'size': expected a string, a whole number, true or false"},
    {R"({"driver":"throttle","next":"raw"})", "a node must be a JSON object"},
    {R"({"driver":"raw","path":"/a","next":{"driver":"ram"}})",
     "raw: not a filter, so nothing may follow"},
};

INSTANTIATE_TEST_SUITE_P(Spec, SpecRefusal, testing::ValuesIn(kRefusals));

TEST(Spec, RefusesANulCharacterThatWouldCutAPath) {
  EXPECT_NE(std::string::npos,
            error_of(std::string_view("raw:/a\0/b", 9)).find("contains a NUL character"));
}

TEST(Spec, RefusesMoreNodesThanTheLimitInBothForms) {
  std::string text;
  for (size_t i = 0; i < kMaxNodes; ++i) text += "throttle|";
  EXPECT_NE(std::string::npos, error_of(text + "raw:/a").find("more than 32 nodes"));
  EXPECT_EQ(kMaxNodes, parse_ok(text.substr(strlen("throttle|")) + "raw:/a").nodes.size());

  std::string json;
  for (size_t i = 0; i < kMaxNodes; ++i) json += R"({"driver":"throttle","next":)";
  json += R"({"driver":"raw","path":"/a"})" + std::string(kMaxNodes, '}');
  EXPECT_NE(std::string::npos, error_of(json).find("more than 32 nodes"));
}

TEST(Spec, ALongOrDeepSpecIsRefusedWithAShortError) {
  const std::string too_long = "raw:" + std::string(kMaxSpecLength, 'a');
  EXPECT_NE(std::string::npos, error_of(too_long).find("longer than 65536 bytes"));
  EXPECT_GT(400u, error_of(too_long).size());
  const std::string deep = R"({"driver":"ram","size":)" + std::string(30000, '[');
  EXPECT_NE(std::string::npos, error_of(deep).find("not valid JSON"));
}

TEST(Options, SizesTakeSuffixesAndRefuseWhatDoesNotFit) {
  EXPECT_EQ(512u, parse_size("512").value());
  EXPECT_EQ(65536u, parse_size("64k").value());
  EXPECT_EQ(uint64_t{3} << 40, parse_size("3T").value());
  EXPECT_EQ(UINT64_MAX, parse_size("18446744073709551615").value());
  for (const char* bad : {"", "K", "1.5G", "-1", "+1", " 1", "1 ", "1KB", "0x10", "16777216T",
                          "18446744073709551616"})
    EXPECT_FALSE(parse_size(bad).ok()) << bad;
}

TEST(Options, AnErrorNamesDriverKeyValueAndWhatWasExpected) {
  const NodeSpec spec{"raw", "/a", {{"align", "12Q"}, {"direct", "maybe"}, {"n", "4K"}}};
  const OptionReader reader(spec);
  EXPECT_EQ("raw: direct=maybe: expected on or off", reader.flag("direct", true).error().message());
  EXPECT_EQ("raw: align=12Q: expected a size in bytes, or with a suffix K, M, G or T",
            reader.size("align", 0).error().message());
  EXPECT_EQ("raw: n=4K: expected a number", reader.number("n", 0).error().message());
  EXPECT_EQ(7u, reader.number("absent", 7).value());
}

}  // namespace
}  // namespace vbdkit::drivers
