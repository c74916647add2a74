// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Images go both ways between us and those who implemented the format elsewhere: QEMU (fixed and
// dynamic; its driver ignores parents) and libvhdi.
#include <gtest/gtest.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "drivers/crash_replay.h"
#include "drivers/vhd/check.h"
#include "drivers/vhd/create.h"
#include "drivers/vhd/test_disk.h"
#include "drivers/vhd/test_image.h"

namespace vbdkit::drivers::vhd {
namespace {

constexpr uint64_t kSize = 20 << 20;  // bytes; no CHS geometry has exactly this size

class VhdInterchange : public testing::Test {
 protected:
  // The output of a command, which must succeed.
  static std::string shell(const std::string& command) {
    FILE* const pipe = popen((command + " 2>&1").c_str(), "r");
    std::string output;
    char piece[4096];
    while (const size_t n = fread(piece, 1, sizeof(piece), pipe)) output.append(piece, n);
    const int status = pclose(pipe);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << command << ": " << output;
    return output;
  }
  static std::vector<std::byte> pattern(uint64_t tag, uint64_t offset, size_t length) {
    std::vector<std::byte> bytes(length);
    WriteOracle::fill(tag, offset, bytes);
    return bytes;
  }
  // What QEMU reads from the image.
  std::vector<std::byte> by_qemu(const std::string& image) {
    const std::string raw = directory_ / "by-qemu.raw";
    shell("qemu-img convert -f vpc -O raw " + image + " " + raw);
    const auto file = ImageFile::open(raw, ImageFile::Mode::kRead);
    std::vector<std::byte> bytes(file->size()->v);
    EXPECT_TRUE(file->read(0, bytes).ok());
    return bytes;
  }
  std::vector<std::byte> by_us(const std::string& image) {
    EXPECT_TRUE(disk_.open("vhd:" + image, true).ok());
    auto bytes = disk_.read(0, disk_.node().info().size.v);
    disk_.close();
    return bytes;
  }

  TestDirectory directory_;
  TestDisk disk_;
  const std::string image_ = directory_ / "image.vhd";
};

TEST_F(VhdInterchange, QemuReadsWhatWeWrite) {
  for (const DiskType type : {DiskType::kDynamic, DiskType::kFixed}) {
    ASSERT_TRUE(create(image_, {.type = type, .size = Bytes{kSize}}).ok());
    ASSERT_TRUE(disk_.open("vhd:" + image_).ok());
    std::vector<std::byte> model(kSize);
    for (const uint64_t at : {uint64_t{0}, uint64_t{3} << 20, (uint64_t{6} << 20) + 512}) {
      const auto bytes = pattern(at + 1, at, 70 * 512);
      disk_.write(at, bytes);
      std::copy(bytes.begin(), bytes.end(), model.begin() + static_cast<ptrdiff_t>(at));
    }
    disk_.close();
    EXPECT_EQ(by_qemu(image_), model);
    std::filesystem::remove(image_);
  }
}

TEST_F(VhdInterchange, WeReadWhatQemuWrites) {
  for (const char* options : {"subformat=dynamic", "subformat=fixed",
                              "subformat=dynamic,force_size=on", "subformat=fixed,force_size=on"}) {
    SCOPED_TRACE(options);
    shell("qemu-img create -f vpc -o " + std::string(options) + " " + image_ + " 20M");
    shell(
        "qemu-io -f vpc -c 'write -P 17 0 512' -c 'write -P 34 5M 100k' -c 'write -P 51 19M 64k' " +
        image_);
    const auto content = by_us(image_);
    EXPECT_EQ(content, by_qemu(image_));
    EXPECT_EQ(content[(5 << 20) + 1000], std::byte{34});
    // And on it goes: we write, QEMU reads.
    ASSERT_TRUE(disk_.open("vhd:" + image_).ok());
    disk_.write(7 << 20, pattern(9, 7 << 20, 8192));
    disk_.write(4096, pattern(9, 4096, 8192));
    disk_.close();
    const auto after = by_qemu(image_);
    EXPECT_EQ(after, by_us(image_));
    EXPECT_EQ(0, memcmp(&after[4096], pattern(9, 4096, 8192).data(), 8192));
    std::filesystem::remove(image_);
  }
}

// QEMU puts the first block of an empty image right behind the block table.
TEST_F(VhdInterchange, QemusFirstBlockHarmsNoBatmap) {
  ASSERT_TRUE(create(image_, {.size = Bytes{kSize}, .batmap = true}).ok());
  shell("qemu-io -f vpc -c 'write -P 17 0 2M' " + image_);
  const auto report = check(image_, false);
  ASSERT_TRUE(report.ok()) << report.error().message();
  EXPECT_TRUE(report->errors.empty()) << report->errors.front();
  EXPECT_TRUE(report->remains.empty()) << report->remains.front();
  ASSERT_TRUE(disk_.open("vhd:" + image_).ok());
  disk_.write(4 << 20, pattern(1, 4 << 20, 2 << 20));
  disk_.close();
  EXPECT_TRUE(check(image_, false)->errors.empty());
  const auto content = by_us(image_);
  EXPECT_EQ(content, by_qemu(image_));
  EXPECT_EQ(content[1 << 20], std::byte{17});
}

TEST_F(VhdInterchange, QemuReadsAGrownImage) {
  ASSERT_TRUE(create(image_, {.size = Bytes{kSize}}).ok());
  ASSERT_TRUE(disk_.open("vhd:" + image_).ok());
  disk_.write(0, std::vector<std::byte>(4096, std::byte{0x11}));
  ASSERT_TRUE(disk_.node().resize(Bytes{kSize * 2000}).ok());
  disk_.write(kSize * 1999, std::vector<std::byte>(4096, std::byte{0x22}));
  disk_.close();
  const std::string info = shell("qemu-img info -f vpc --output=json " + image_);
  EXPECT_NE(info.find(std::to_string(kSize * 2000)), std::string::npos) << info;
  const std::string output =
      shell("qemu-io -r -f vpc -c 'read -P 0x11 0 4k' -c 'read -P 0 4k 4k' " +
            ("-c 'read -P 0x22 " + std::to_string(kSize * 1999)) + " 4k' " + image_);
  EXPECT_EQ(output.find("verification failed"), std::string::npos) << output;
}

// Without force_size, QEMU makes the disk as large as the geometry it has worked out.
TEST_F(VhdInterchange, OurGeometryIsQemus) {
  for (const char* size : {"5M", "40M", "600M", "3G", "40G", "100G"}) {
    shell("qemu-img create -f vpc " + image_ + " " + size);
    const auto file = ImageFile::open(image_, ImageFile::Mode::kRead);
    const auto metadata = read_metadata(*file);
    ASSERT_TRUE(metadata.ok()) << metadata.error().message();
    EXPECT_EQ(geometry_of(Bytes{metadata->footer.current_size}).bytes(),
              metadata->footer.geometry.bytes())
        << size;
    std::filesystem::remove(image_);
  }
}

TEST_F(VhdInterchange, LibvhdiKnowsOurImages) {
  ASSERT_TRUE(create(image_, {.size = Bytes{kSize}}).ok());
  EXPECT_NE(shell("vhdiinfo " + image_).find("Dynamic"), std::string::npos);
  const std::string child = directory_ / "child.vhd";
  ASSERT_TRUE(create(child, {.type = DiskType::kDifferencing, .parent = image_}).ok());
  const std::string info = shell("vhdiinfo " + child);
  EXPECT_NE(info.find("Differential"), std::string::npos) << info;
  EXPECT_NE(info.find("image.vhd"), std::string::npos) << info;
}

}  // namespace
}  // namespace vbdkit::drivers::vhd
