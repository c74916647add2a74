// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/chain/image_file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace vbdkit::drivers {
namespace {

TEST(SameFile, OtherNamesOfFilesDirectoriesAndDevices) {
  const std::string directory = ::testing::TempDir() + "same_file." + std::to_string(::getpid());
  ASSERT_TRUE(std::filesystem::create_directory(directory));
  const std::string file = directory + "/file";
  const std::string device = directory + "/device";
  std::ofstream(file) << "x";
  std::filesystem::create_hard_link(file, directory + "/link");
  std::filesystem::create_symlink("/dev/null", device);
  EXPECT_TRUE(same_file(file, directory + "/link"));
  EXPECT_TRUE(same_file(directory, directory + "/."));
  EXPECT_TRUE(same_file("/dev/null", device));
  EXPECT_FALSE(same_file("/dev/null", "/dev/zero"));
  EXPECT_FALSE(same_file(file, directory));
  EXPECT_FALSE(same_file(file, directory + "/missing"));
  EXPECT_FALSE(same_file(directory + "/missing", directory + "/missing"));
  std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace vbdkit::drivers
