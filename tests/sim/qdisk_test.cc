// SPDX-License-Identifier: LGPL-2.1-or-later
//
// QEMU's own Xen disk backend, unchanged, in the simulated Xen: what works for it is Xen enough.
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <vector>

#include "tests/sim/verified_disk.h"
#include "tests/sim/world_test_base.h"

namespace vbdkit::sim {
namespace {

constexpr uint64_t kImageSize = 8 << 20;

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

// Each way of speaking the protocol that qdisk knows, with every byte checked.
struct Variant {
  const char* name;
  FrontendOptions frontend;
  WorkloadOptions workload = {};
};

void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name; }

class QdiskVariant : public QdiskTest, public ::testing::WithParamInterface<Variant> {};

TEST_P(QdiskVariant, KeepsEveryByte) {
  Guest& guest = *must(world().create_guest());
  const std::string image = make_image();
  const Disk disk = attach(guest, {.target = image});
  Process& qemu = *must(world().launch_qdisk(guest));
  FrontendOptions options = GetParam().frontend;
  options.padding_zero = false;
  auto front = must(Frontend::create(guest, disk.devid, options));
  must(front->connect(soon()));
  VerifiedDisk model(kImageSize / 512);
  const auto report = must(model.run(*front, GetParam().workload, soon()));
  EXPECT_EQ(report.problems, std::vector<std::string>{});
  EXPECT_EQ(report.reads + report.writes + report.flushes + report.discards,
            GetParam().workload.requests);
  EXPECT_GT(report.sectors_checked, 0u);
  const auto all = must(model.check(*front, soon()));
  EXPECT_EQ(all.problems, std::vector<std::string>{});
  EXPECT_EQ(all.sectors_checked, kImageSize / 512);
  EXPECT_EQ(must(front->flush(soon())), BLKIF_RSP_OKAY);
  must(front->close(soon()));
  must(world().wait_no_grants(soon()));
  const ProcessUse use = world().use_of(qemu.pid()).value();
  EXPECT_GT(use.copies, 0u) << "qdisk copies, it does not map";
  // What was written is in the file, not in the simulation.
  std::ifstream file(image, std::ios::binary);
  std::vector<char> sector(512);
  for (uint64_t s = 0; s < model.sectors(); ++s) {
    file.read(sector.data(), 512);
    ASSERT_TRUE(model.holds(s, reinterpret_cast<const std::byte*>(sector.data()))) << s;
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, QdiskVariant,
    ::testing::Values(Variant{"OnePage64", {}}, Variant{"OnePage32", {.abi = Abi::kX86_32}},
                      Variant{"NoProtocolNodeIsNative", {.write_protocol = false}},
                      Variant{"OrderWrittenThoughZero", {.always_write_order = true}},
                      Variant{"SixteenPages64", {.ring_order = 4}, {.depth = 400}},
                      Variant{"FourPages32", {.abi = Abi::kX86_32, .ring_order = 2}},
                      Variant{"DepthOne", {}, {.requests = 300, .depth = 1}},
                      Variant{"Discards", {}, {.discard_percent = 10}}),
    [](const auto& variant) { return variant.param.name; });

TEST_F(QdiskTest, OneWrongByteIsSeen) {
  Guest& guest = *must(world().create_guest());
  const std::string image = make_image();
  const Disk disk = attach(guest, {.target = image});
  must(world().launch_qdisk(guest));
  auto front = must(Frontend::create(guest, disk.devid, {.padding_zero = false}));
  must(front->connect(soon()));
  VerifiedDisk model(kImageSize / 512);
  EXPECT_TRUE(must(model.run(*front, {.requests = 100}, soon())).problems.empty());
  EXPECT_EQ(must(front->flush(soon())), BLKIF_RSP_OKAY);
  std::fstream file(image, std::ios::binary | std::ios::in | std::ios::out);
  file.seekg(777 * 512 + 3);
  const auto byte = static_cast<char>(file.get() ^ 1);
  file.seekp(777 * 512 + 3);
  file.put(byte);
  file.close();
  EXPECT_EQ(must(model.check(*front, soon())).problems,
            std::vector<std::string>{"sector 777 holds wrong bytes"});
}

TEST_F(QdiskTest, DetachLeavesNothingBehind) {
  Guest& guest = *must(world().create_guest());
  const Disk disk = attach(guest, {.target = make_image()});
  must(world().launch_qdisk(guest));
  auto front = must(Frontend::create(guest, disk.devid, {.padding_zero = false}));
  must(front->connect(soon()));
  must(world().toolstack().request_detach(disk, false));
  must(front->wait_backend(XenbusStateClosing, soon()));
  must(front->close(soon()));
  must(world().store().wait_gone(disk.backend_path, soon()));  // QEMU removes it itself
  must(world().wait_no_grants(soon()));
}

TEST_F(QdiskTest, KilledBackendLetsGoOfTheGuest) {
  Guest& guest = *must(world().create_guest());
  const Disk disk = attach(guest, {.target = make_image()});
  Process& qemu = *must(world().launch_qdisk(guest));
  auto front = must(Frontend::create(guest, disk.devid, {.padding_zero = false}));
  must(front->connect(soon()));
  EXPECT_GT(must(world().grants_mapped(guest.domid())), 0u);
  qemu.signal(SIGKILL);
  must(qemu.wait(soon()));
  must(world().wait_no_grants(soon()));
  EXPECT_TRUE(front->queue().end_grants());
}

}  // namespace
}  // namespace vbdkit::sim
