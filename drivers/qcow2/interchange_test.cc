// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Interchange with QEMU, both ways: images that its tools write are read here, images that are
// written here pass its check and read the same there.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <fstream>
#include <map>
#include <random>

#include "drivers/qcow2/check.h"
#include "drivers/qcow2/info.h"
#include "drivers/qcow2/test_disk.h"

namespace vbdkit::drivers::qcow2 {
namespace {

constexpr uint64_t kSize = 6 << 20;  // bytes

struct Case {
  std::string name;
  std::string options;  // as qemu-img create -o takes them
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

class Qcow2Interchange : public testing::TestWithParam<Case> {
 protected:
  static uint64_t chosen_seed() {
    const char* text = getenv("VBDKIT_TEST_SEED");
    return text != nullptr ? strtoull(text, nullptr, 10) : std::random_device{}();
  }

  void SetUp() override {
    if (disk_.run("qemu-img --version >/dev/null 2>&1") != 0) GTEST_SKIP() << "qemu-img is missing";
  }

  static bool has_option(const std::string& text) {
    return GetParam().options.find(text) != std::string::npos;
  }
  void run(const std::string& command) { ASSERT_EQ(0, disk_.run(command)) << command; }
  void create(const std::string& name, const std::string& more = "") {
    const std::string options = GetParam().options.empty() ? "" : "-o " + GetParam().options;
    run("qemu-img create -q -f qcow2 " + options + " " + more + " " + name + " " +
        std::to_string(kSize));
  }
  void qemu_io(const std::string& name, const std::string& commands) {
    run("qemu-io -f qcow2 " + commands + " " + name + " >io.log && ! grep -q failed io.log");
  }

  // What QEMU reads from the image.
  std::vector<uint8_t> qemu_reads(const std::string& name, const std::string& options = "") {
    const std::string raw = disk_.path("as-raw");
    EXPECT_EQ(0, disk_.run("qemu-img convert -f qcow2 -O raw " + options + " " + name + " as-raw"));
    std::ifstream file(raw, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  std::vector<uint8_t> we_read(const std::string& name) {
    disk_.open("qcow2:" + disk_.path(name), {.read_only = true});
    if (HasFatalFailure()) return {};
    auto data = disk_.read(0, disk_.node().info().size.v);
    disk_.close();
    return data;
  }
  void expect_same(const std::string& name) {
    const std::vector<uint8_t> theirs = qemu_reads(name);
    const std::vector<uint8_t> ours = we_read(name);
    ASSERT_EQ(theirs.size(), ours.size());
    const auto [a, b] = std::mismatch(theirs.begin(), theirs.end(), ours.begin());
    ASSERT_TRUE(a == theirs.end()) << "differs at " << a - theirs.begin();
    (void)b;
  }
  void expect_clean(const std::string& name) {
    EXPECT_EQ(0, disk_.run("qemu-img check -q -f qcow2 " + name));
    const auto checked = check_image(disk_.path(name), Repair::kNone);
    ASSERT_TRUE(checked.ok()) << checked.error().message();
    EXPECT_TRUE(checked->clean()) << testing::PrintToString(checked->messages);
  }

  // Random writes, zeroes and discards of ours; `model` follows where it can.
  void scribble(const std::string& name, std::vector<uint8_t>& model, unsigned count) {
    ASSERT_NO_FATAL_FAILURE(disk_.open("qcow2:" + disk_.path(name)));
    for (unsigned i = 0; i < count; ++i) {
      const uint64_t sectors = kSize / kSectorSize;
      const uint64_t first = random_() % sectors;
      const uint64_t n = std::min(1 + random_() % (random_() % 3 ? 32 : 1024), sectors - first);
      const uint64_t offset = first * kSectorSize;
      const uint64_t length = n * kSectorSize;
      const auto kind = random_() % 8;
      if (kind < 5) {
        std::vector<uint8_t> data(length);
        for (auto& byte : data) byte = static_cast<uint8_t>(random_() | 1);
        std::copy(data.begin(), data.end(), model.begin() + static_cast<ptrdiff_t>(offset));
        ASSERT_EQ(0, disk_.submit(Op::kWrite, offset, length, &data));
      } else if (kind < 7) {
        ASSERT_EQ(
            0, disk_.submit(Op::kWriteZeroes, offset, length, nullptr, kind == 5 ? kMayUnmap : 0));
        std::fill_n(model.begin() + static_cast<ptrdiff_t>(offset), length, uint8_t{0});
      } else {
        ASSERT_EQ(0, disk_.submit(Op::kFlush, 0, 0));
      }
    }
    ASSERT_EQ(model, disk_.read(0, kSize));
    disk_.close();
  }

  const uint64_t seed_ = chosen_seed();
  testing::ScopedTrace trace_{__FILE__, __LINE__, "VBDKIT_TEST_SEED=" + std::to_string(seed_)};
  std::mt19937_64 random_{seed_};
  TestDisk disk_;
};

TEST_P(Qcow2Interchange, WhatQemuWroteReadsTheSameHere) {
  create("a");
  qemu_io("a",
          "-c 'write -P 1 0 70k' -c 'write -P 2 1M 300k' -c 'write -P 3 5M 1M' "
          "-c 'write -z 1100k 100k' -c 'write -z -u 5200k 300k' -c 'discard 64k 64k' "
          "-c 'write -P 9 3000k 512'");
  expect_same("a");
}

TEST_P(Qcow2Interchange, WhatWeWroteReadsTheSameInQemu) {
  create("a");
  std::vector<uint8_t> model(kSize);
  ASSERT_NO_FATAL_FAILURE(scribble("a", model, 150));
  expect_clean("a");
  EXPECT_TRUE(model == qemu_reads("a"));
}

TEST_P(Qcow2Interchange, BothWriteInTurn) {
  create("a");
  std::vector<uint8_t> model(kSize);
  for (int round = 0; round < 3; ++round) {
    const uint64_t at = random_() % (kSize - (512 << 10)) / 512 * 512;
    qemu_io("a", "-c 'write -P 5 " + std::to_string(at) + " 200k' -c 'discard " +
                     std::to_string(at) + " 64k'");
    model = qemu_reads("a");
    ASSERT_NO_FATAL_FAILURE(scribble("a", model, 40));
    expect_clean("a");
    ASSERT_TRUE(model == qemu_reads("a"));
  }
}

TEST_P(Qcow2Interchange, BackingFilesOfQemuAreReadAndCopiedFrom) {
  if (has_option("preallocation")) GTEST_SKIP() << "QEMU does not preallocate over backing files";
  create("base");
  qemu_io("base", "-c 'write -P 1 0 3M' -c 'write -P 2 4M 64k'");
  run("qemu-img create -q -f raw plain 5M && qemu-io -f raw -c 'write -P 8 0 5M' plain >/dev/null");
  create("middle", "-b base -F qcow2");
  qemu_io("middle", "-c 'write -P 3 1M 100k' -c 'write -z 2M 100k'");
  create("leaf", "-b middle -F qcow2");
  expect_same("leaf");
  std::vector<uint8_t> model = qemu_reads("leaf");
  ASSERT_NO_FATAL_FAILURE(scribble("leaf", model, 100));
  expect_clean("leaf");
  EXPECT_TRUE(model == qemu_reads("leaf"));

  create("on-raw", "-b plain -F raw");
  model = qemu_reads("on-raw");
  ASSERT_NO_FATAL_FAILURE(scribble("on-raw", model, 60));
  expect_clean("on-raw");
  EXPECT_TRUE(model == qemu_reads("on-raw"));
}

TEST_P(Qcow2Interchange, InternalSnapshotsKeepTheirContent) {
  if (has_option("refcount_bits=1,")) GTEST_SKIP() << "refcounts of one bit allow no snapshots";
  create("a");
  qemu_io("a", "-c 'write -P 1 0 3M' -c 'write -z 512k 100k'");
  std::vector<uint8_t> model = qemu_reads("a");
  const std::vector<uint8_t> first = model;
  run("qemu-img snapshot -c first a");
  ASSERT_NO_FATAL_FAILURE(scribble("a", model, 80));
  const std::vector<uint8_t> second = model;
  run("qemu-img snapshot -c second a");
  ASSERT_NO_FATAL_FAILURE(scribble("a", model, 80));
  expect_clean("a");
  EXPECT_TRUE(model == qemu_reads("a"));
  EXPECT_TRUE(first == qemu_reads("a", "-l first"));
  EXPECT_TRUE(second == qemu_reads("a", "-l second"));
  const auto info = read_info(disk_.path("a"));
  ASSERT_TRUE(info.ok()) << info.error().message();
  ASSERT_EQ(2u, info->snapshots.size());
  EXPECT_EQ("second", info->snapshots[1].name);
  // Without them, nothing is left over.
  run("qemu-img snapshot -d first a && qemu-img snapshot -d second a");
  ASSERT_NO_FATAL_FAILURE(scribble("a", model, 30));
  expect_clean("a");
}

TEST_P(Qcow2Interchange, CompressedClustersAreReadAndReplaced) {
  if (has_option("preallocation")) GTEST_SKIP() << "QEMU does not preallocate and compress";
  for (const char* type : {"zlib", "zstd"}) {
    const bool zstd = type == std::string("zstd");
    if (zstd && has_option("compat=0.10")) continue;
    SCOPED_TRACE(type);
    create("source");
    qemu_io("source", "-c 'write -P 65 0 2M' -c 'write -P 66 3M 130k' -c 'write -P 67 5M 1M'");
    std::string options = GetParam().options;
    if (zstd) options += (options.empty() ? "" : ",") + std::string("compression_type=zstd");
    run("qemu-img convert -c -f qcow2 -O qcow2 " + (options.empty() ? "" : "-o " + options) +
        " source packed");
    expect_same("packed");
    std::vector<uint8_t> model = qemu_reads("packed");
    ASSERT_NO_FATAL_FAILURE(scribble("packed", model, 60));
    expect_clean("packed");
    EXPECT_TRUE(model == qemu_reads("packed"));
  }
}

TEST_P(Qcow2Interchange, GrownImagesHoldWhatTheyHeld) {
  create("a");
  std::vector<uint8_t> model(kSize);
  ASSERT_NO_FATAL_FAILURE(scribble("a", model, 40));
  // Far enough for a larger L1 table.
  const auto info = read_info(disk_.path("a"));
  ASSERT_TRUE(info.ok()) << info.error().message();
  const uint64_t size = info->header.geometry.l2_span() * 300;
  ASSERT_NO_FATAL_FAILURE(disk_.open("qcow2:" + disk_.path("a")));
  const auto grown = disk_.node().resize(Bytes{size});
  ASSERT_TRUE(grown.ok()) << grown.error().message();
  disk_.write(size - 4096, std::vector<uint8_t>(4096, 0x5a));
  disk_.close();
  expect_clean("a");
  qemu_io("a", "-c 'read -P 0x5a " + std::to_string(size - 4096) + " 4k' -c 'read -P 0 " +
                   std::to_string(size - 8192) + " 4k'");
  run("qemu-img resize -q -f qcow2 --shrink a " + std::to_string(kSize));
  EXPECT_TRUE(model == qemu_reads("a"));
  expect_same("a");
}

std::vector<Case> cases() {
  return {
      {"Default", ""},
      {"Version2", "compat=0.10"},
      {"Clusters512", "cluster_size=512"},
      {"Clusters2M", "cluster_size=2M"},
      {"Extended", "extended_l2=on"},
      {"Extended16K", "extended_l2=on,cluster_size=16k"},
      {"Lazy", "lazy_refcounts=on"},
      {"Refcounts1", "refcount_bits=1,cluster_size=4k"},
      {"Refcounts2", "refcount_bits=2"},
      {"Refcounts4", "refcount_bits=4,cluster_size=1k"},
      {"Refcounts8", "refcount_bits=8"},
      {"Refcounts32", "refcount_bits=32,cluster_size=512"},
      {"Refcounts64", "refcount_bits=64,cluster_size=4k"},
      {"Preallocated", "preallocation=metadata"},
  };
}

INSTANTIATE_TEST_SUITE_P(Qemu, Qcow2Interchange, testing::ValuesIn(cases()),
                         [](const auto& named) { return std::string(named.param.name); });

}  // namespace
}  // namespace vbdkit::drivers::qcow2
