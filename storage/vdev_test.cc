// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/vdev.h"

#include <gtest/gtest.h>

namespace vbdkit::storage {
namespace {

TEST(Vdev, NumbersAreThoseOfXenVbdInterface) {
  EXPECT_EQ(parse_vdev("xvda"), 51712u);
  EXPECT_EQ(parse_vdev("xvda1"), 51713u);
  EXPECT_EQ(parse_vdev("xvdb"), 51728u);
  EXPECT_EQ(parse_vdev("xvdp15"), 51967u);
  EXPECT_EQ(parse_vdev("xvdq"), (1u << 28) | (16u << 8));
  EXPECT_EQ(parse_vdev("xvda16"), (1u << 28) | 16u);
  EXPECT_EQ(parse_vdev("d1p2"), 51730u);
  EXPECT_EQ(parse_vdev("hda"), 768u);
  EXPECT_EQ(parse_vdev("hdb3"), 768u + 64 + 3);
  EXPECT_EQ(parse_vdev("hdc"), 5632u);
  EXPECT_EQ(parse_vdev("sdb1"), 2048u + 16 + 1);
  EXPECT_EQ(parse_vdev("51712"), 51712u);
}

TEST(Vdev, RefusesWhatIsNoName) {
  for (const char* name : {"", "xvd", "xvdA", "xvda1x", "hde", "sdq", "d", "dp1", "d0p", "nvme0",
                           "xvdzzzzzzzzzz", "51712x", "-1"})
    EXPECT_EQ(parse_vdev(name), std::nullopt) << name;
}

TEST(Vdev, NamesAreReadBackAsTheSameNumber) {
  for (const char* name :
       {"xvda", "xvdp15", "xvdq", "xvdaa", "xvdzz3", "hda", "hdd63", "sda", "sdp15"})
    EXPECT_EQ(vdev_name(parse_vdev(name).value_or(0)), name);
  EXPECT_EQ(vdev_name(7), "7");
  // A partition number that has the long form only.
  EXPECT_EQ(vdev_name(*parse_vdev("xvda16")), "xvda16");
}

}  // namespace
}  // namespace vbdkit::storage
