// SPDX-License-Identifier: LGPL-2.1-or-later
//
// QEMU's own Xen disk backend, unchanged, in the simulated Xen: what works for it is Xen enough.
#include <algorithm>
#include <fstream>
#include <vector>

#include "tests/sim/world_test_base.h"

namespace vbdkit::sim {
namespace {

constexpr uint64_t kImageSize = 16 << 20;

class QdiskTest : public WorldTest {
 protected:
  std::string make_image() {
    const std::string path = world().dir() + "/disk.img";
    std::ofstream(path).close();
    EXPECT_EQ(::truncate(path.c_str(), kImageSize), 0);
    return path;
  }
  Disk attach(Guest& guest, DiskConfig config) {
    config.backend = BackendType::kQdisk;
    return must(world().toolstack().attach(guest.domid(), config));
  }
};

std::vector<std::byte> pattern(size_t size, unsigned seed) {
  std::vector<std::byte> data(size);
  for (size_t i = 0; i < size; ++i)
    data[i] = static_cast<std::byte>((i * 7 + i / 512 + seed) % 251);
  return data;
}

TEST_F(QdiskTest, ReadsBackWhatWasWritten) {
  Guest& guest = *must(world().create_guest());
  const Disk disk = attach(guest, {.target = make_image()});
  must(world().launch_qdisk(guest));
  auto front = must(Frontend::create(guest, disk.devid, {.padding_zero = false}));
  must(front->connect(soon()));
  EXPECT_EQ(front->features().sectors, kImageSize / 512);
  const auto written = pattern(64 << 10, 1);
  EXPECT_EQ(must(front->write(8, written, soon())), BLKIF_RSP_OKAY);
  EXPECT_EQ(must(front->flush(soon())), BLKIF_RSP_OKAY);
  std::vector<std::byte> read(written.size());
  EXPECT_EQ(must(front->read(8, read, soon())), BLKIF_RSP_OKAY);
  EXPECT_EQ(read, written);
  must(front->close(soon()));
}

}  // namespace
}  // namespace vbdkit::sim
