// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Opening chains of VHDs: what is found, what is refused and how the error names it; what depth
// costs; growing.
#include <gtest/gtest.h>
#include <unistd.h>

#include "drivers/chain/open_chain.h"
#include "drivers/crash_replay.h"
#include "drivers/vhd/check.h"
#include "drivers/vhd/create.h"
#include "drivers/vhd/test_disk.h"
#include "drivers/vhd/test_image.h"

namespace vbdkit::drivers::vhd {
namespace {

constexpr uint64_t kSize = 8 << 20;  // bytes

class VhdChain : public testing::Test {
 protected:
  std::string path(unsigned i) const { return directory_ / ("image" + std::to_string(i) + ".vhd"); }
  // Images 0 (the base) to `depth` - 1 (the leaf).
  void make(unsigned depth) {
    for (unsigned i = 0; i < depth; ++i) make_one(path(i), i == 0 ? "" : path(i - 1));
  }
  void make_one(const std::string& image, const std::string& parent) {
    CreateOptions options{.size = Bytes{kSize}, .block_size = kMinBlock};
    if (!parent.empty()) {
      options.type = DiskType::kDifferencing;
      options.parent = parent;
    }
    const auto created = create(image, options);
    ASSERT_TRUE(created.ok()) << created.error().message();
  }
  std::string error_of(const std::string& spec, ErrorKind kind) {
    const auto opened = disk_.open(spec);
    EXPECT_FALSE(opened.ok());
    if (opened.ok()) return "";
    EXPECT_EQ(opened.error().kind(), kind) << opened.error().message();
    return opened.error().message();
  }
  static std::vector<std::byte> pattern(uint64_t tag, uint64_t offset, size_t length) {
    std::vector<std::byte> bytes(length);
    WriteOracle::fill(tag, offset, bytes);
    return bytes;
  }

  TestDirectory directory_;
  TestDisk disk_;
};

TEST_F(VhdChain, AMissingParentIsNamedWithAllStepsToIt) {
  make(3);
  unlink(path(0).c_str());
  const std::string error = error_of("vhd:" + path(2), ErrorKind::kNotFound);
  EXPECT_NE(error.find("open " + path(2) + ", its parent " + path(1)), std::string::npos) << error;
  EXPECT_NE(error.find("looked for " + path(0)), std::string::npos) << error;
}

TEST_F(VhdChain, AnImagePutOnAnotherParentMeanwhileIsLookedAtAgain) {
  make(4);
  Logger log("test", LogLevel::kWarning);
  const auto reactor = io::Reactor::create({}, log);
  ASSERT_TRUE(reactor.ok());
  ChainOpening opening({"vhd", path(3), {}}, {}, {**reactor, log, {false, false}});
  ASSERT_TRUE(opening.step().ok());
  ASSERT_TRUE(opening.step().ok());
  // Its file's times will show the change.
  while (!FileStamp::of(path(2))->settled) {
  }
  // Image 2, which is open and was read, loses its parent as if that had been merged away.
  ASSERT_TRUE(set_parent(path(2), path(0), false).ok());
  unlink(path(1).c_str());
  Result<bool> more = true;
  while (more && *more) more = opening.step();
  ASSERT_TRUE(more.ok()) << more.error().message();
  const auto chain = opening.take_layers();
  ASSERT_TRUE(chain.ok());
  EXPECT_EQ(chain->paths, (std::vector<std::string>{path(3), path(2), path(0)}));
}

TEST_F(VhdChain, ALoopIsRefused) {
  make(3);
  make_one(directory_ / "again.vhd", path(2));
  ASSERT_TRUE(set_parent(path(1), directory_ / "again.vhd", false).ok());
  const std::string error = error_of("vhd:" + path(2), ErrorKind::kCorrupt);
  EXPECT_NE(error.find("again.vhd, its parent " + path(2)), std::string::npos) << error;
  EXPECT_NE(error.find("loop"), std::string::npos) << error;
}

TEST_F(VhdChain, AnotherImageInTheParentsPlaceIsRefused) {
  make(2);
  unlink(path(0).c_str());
  make_one(path(0), "");
  const std::string error = error_of("vhd:" + path(1), ErrorKind::kCorrupt);
  EXPECT_NE(error.find("UUID"), std::string::npos) << error;
}

TEST_F(VhdChain, ARawParentMustBeAllowed) {
  const std::string base = directory_ / "base";
  auto file = ImageFile::open(base, ImageFile::Mode::kCreate);
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE(file->write(0, pattern(1, 0, kSize)).ok());
  CreateOptions options{.type = DiskType::kDifferencing, .parent = base, .raw_parent = true};
  ASSERT_TRUE(create(path(0), options).ok());
  error_of("vhd:" + path(0), ErrorKind::kPermission);
  ASSERT_TRUE(disk_.open("vhd,raw-parent=on:" + path(0)).ok());
  EXPECT_EQ(disk_.read(4096, 8192), pattern(1, 4096, 8192));
}

TEST_F(VhdChain, ParentsAreFoundAfterTheDirectoryMoved) {
  make(3);
  ASSERT_TRUE(disk_.open("vhd:" + path(0)).ok());
  disk_.write(0, pattern(5, 0, 4096));
  disk_.close();
  const std::string moved = directory_.path() + "-moved";
  std::filesystem::rename(directory_.path(), moved);
  const auto opened = disk_.open("vhd:" + moved + "/image2.vhd");
  ASSERT_TRUE(opened.ok()) << opened.error().message();
  EXPECT_EQ(disk_.read(0, 4096), pattern(5, 0, 4096));
  disk_.close();
  std::filesystem::rename(moved, directory_.path());
}

TEST_F(VhdChain, EachLayerShowsThroughWhereThoseAboveHaveNothing) {
  constexpr unsigned kDepth = 30;
  for (unsigned i = 0; i < kDepth; ++i) {
    make_one(path(i), i == 0 ? "" : path(i - 1));
    ASSERT_TRUE(disk_.open("vhd:" + path(i)).ok());
    // Overlapping steps: the end of each is covered by the next.
    disk_.write(i * 65536, pattern(i + 1, i * 65536, 2 * 65536));
    disk_.close();
  }
  ASSERT_TRUE(disk_.open("vhd:" + path(kDepth - 1), true).ok());
  for (unsigned i = 0; i < kDepth; ++i)
    ASSERT_EQ(disk_.read(i * 65536, 65536), pattern(i + 1, i * 65536, 65536)) << i;
  EXPECT_EQ(disk_.read(kSize - 4096, 4096), std::vector<std::byte>(4096));
}

// The same reads, whatever lies between the leaf and the data.
TEST_F(VhdChain, AWarmMapMakesReadsAtDepth64CostAsManyFileOperationsAsAtDepth1) {
  uint64_t operations[2];
  for (const unsigned depth : {1u, 64u}) {
    for (unsigned i = 0; i < depth; ++i) {
      unlink(path(i).c_str());
      make_one(path(i), i == 0 ? "" : path(i - 1));
      if (i != 0 && i != 20) continue;
      ASSERT_TRUE(disk_.open("vhd:" + path(i)).ok());
      disk_.write(i * 4096, pattern(i + 1, i * 4096, 1 << 20));
      disk_.close();
    }
    ASSERT_TRUE(disk_.open("vhd:" + path(depth - 1)).ok());
    disk_.read(0, 1 << 20);
    const uint64_t before = disk_.counters().file_ops;
    for (uint64_t at = 0; at < 1 << 20; at += 4096) disk_.read(at, 4096);
    operations[depth > 1] = disk_.counters().file_ops - before;
    disk_.close();
  }
  EXPECT_EQ(operations[0], 256u);
  EXPECT_EQ(operations[0], operations[1]);
}

TEST_F(VhdChain, GrowsInPlaceAndBeyondItsReserve) {
  make(1);
  ASSERT_TRUE(disk_.open("vhd:" + path(0)).ok());
  disk_.write(kSize - 4096, pattern(1, kSize - 4096, 4096));
  uint64_t last = kSize;
  // The table has room for 4 times the first size in whole sectors: 128 blocks of 512 KiB.
  for (const uint64_t size : {kSize * 2, kSize * 8, kSize * 64}) {
    const auto grown = disk_.node().resize(Bytes{size});
    ASSERT_TRUE(grown.ok()) << grown.error().message();
    EXPECT_EQ(disk_.node().info().size.v, size);
    EXPECT_EQ(disk_.read(kSize - 4096, 4096), pattern(1, kSize - 4096, 4096));
    EXPECT_EQ(disk_.read(last, 4096), std::vector<std::byte>(4096));
    disk_.write(size - 8192, pattern(size, size - 8192, 8192));
    last = size;
  }
  EXPECT_FALSE(disk_.node().resize(Bytes{kSize}).ok());
  disk_.close();
  const auto report = check(path(0), false);
  ASSERT_TRUE(report.ok());
  EXPECT_TRUE(report->errors.empty()) << report->errors.front();
  ASSERT_TRUE(disk_.open("vhd:" + path(0), true).ok());
  EXPECT_EQ(disk_.read(kSize - 4096, 4096), pattern(1, kSize - 4096, 4096));
  for (const uint64_t size : {kSize * 2, kSize * 8, kSize * 64})
    EXPECT_EQ(disk_.read(size - 8192, 8192), pattern(size, size - 8192, 8192));
}

TEST_F(VhdChain, ADamagedTailIsMendedFromTheCopy) {
  make(1);
  ASSERT_TRUE(disk_.open("vhd:" + path(0)).ok());
  disk_.write(0, pattern(3, 0, 4096));
  disk_.close();
  {
    auto file = ImageFile::open(path(0), ImageFile::Mode::kWrite);
    const uint64_t size = file->size()->v;
    ASSERT_TRUE(file->write(size - 512, std::vector<std::byte>(512)).ok());
  }
  EXPECT_EQ(check(path(0), false)->remains.size(), 1u);
  ASSERT_TRUE(disk_.open("vhd:" + path(0)).ok());
  EXPECT_EQ(disk_.read(0, 4096), pattern(3, 0, 4096));
  disk_.close();
  EXPECT_TRUE(check(path(0), false)->remains.empty());
}

// As Virtual PC before 2004 wrote it; the block before it is full.
TEST_F(VhdChain, AFooterOf511BytesIsReplacedWhereItStands) {
  make(1);
  ASSERT_TRUE(disk_.open("vhd:" + path(0)).ok());
  disk_.write(0, pattern(3, 0, kMinBlock));
  disk_.close();
  std::filesystem::resize_file(path(0), std::filesystem::file_size(path(0)) - 1);
  EXPECT_TRUE(check(path(0), false)->remains.empty());
  ASSERT_TRUE(disk_.open("vhd:" + path(0)).ok());
  ASSERT_TRUE(disk_.node().resize(Bytes{kSize + kMinBlock}).ok());
  disk_.write(kSize, pattern(4, kSize, kMinBlock));
  EXPECT_EQ(disk_.read(0, kMinBlock), pattern(3, 0, kMinBlock));
  disk_.close();
  ASSERT_TRUE(disk_.open("vhd:" + path(0)).ok());
  EXPECT_EQ(disk_.read(0, kMinBlock), pattern(3, 0, kMinBlock));
  EXPECT_EQ(disk_.read(kSize, kMinBlock), pattern(4, kSize, kMinBlock));
  disk_.close();
  const auto checked = check(path(0), false);
  EXPECT_TRUE(checked->errors.empty() && checked->remains.empty());
}

// A table that sends the guest into the image's own structures or beyond the file.
TEST_F(VhdChain, BlocksInForbiddenPlacesAreRefused) {
  make(1);
  for (const uint32_t entry : {0u, 1u, 3u, 0xfffffffeu, 0x00ffffffu}) {
    auto file = ImageFile::open(path(0), ImageFile::Mode::kWrite);
    const auto metadata = read_metadata(*file);
    std::array<std::byte, 4> bytes;
    store_be(bytes.data(), entry);
    ASSERT_TRUE(file->write(metadata->header.table_offset, bytes).ok());
    const std::string error = error_of("vhd:" + path(0), ErrorKind::kCorrupt);
    EXPECT_NE(error.find("block 0"), std::string::npos) << error;
    ASSERT_TRUE(disk_.open("vhd:" + path(0), true).ok());
    std::vector<std::byte> memory(4096);
    EXPECT_EQ(EIO, disk_.run(Op::kRead, 0, 4096, memory.data()));
    EXPECT_FALSE(check(path(0), false)->errors.empty());
    disk_.close();
  }
}

}  // namespace
}  // namespace vbdkit::drivers::vhd
