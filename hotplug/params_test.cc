// SPDX-License-Identifier: LGPL-2.1-or-later
#include "hotplug/params.h"

#include <gtest/gtest.h>

#include "hotplug/device_nodes.h"

namespace vbdkit::hotplug {
namespace {

std::string spec(std::string_view type, std::string_view params) {
  const auto disk = parse_params(type, params);
  return disk ? (disk->shared ? "shared " : "") + disk->spec : "error";
}

TEST(Params, VbdTakesTheTargetAsItStands) {
  EXPECT_EQ(spec("vbd", "raw:/srv/a.img"), "raw:/srv/a.img");
  EXPECT_EQ(spec("vbd", "throttle:iops=5|raw:/srv/a.img"), "throttle:iops=5|raw:/srv/a.img");
  // What only looks like libxl's prefix is the user's own.
  EXPECT_EQ(spec("vbd", "vhd:/srv/a.vhd"), "vhd:/srv/a.vhd");
  EXPECT_EQ(spec("vbd", "aio:/srv/a.img"), "aio:/srv/a.img");
}

TEST(Params, Vbd3DropsTheFormatInFront) {
  EXPECT_EQ(spec("vbd3", "aio:qcow2:/srv/a.qcow2"), "qcow2:/srv/a.qcow2");
  EXPECT_EQ(spec("vbd3", "vhd:vhd:/srv/a.vhd"), "vhd:/srv/a.vhd");
  EXPECT_EQ(spec("vbd3", "raw:/srv/a.img"), "raw:/srv/a.img");  // another toolstack
}

TEST(Params, BarePathIsAnImageOfTheFormat) {
  EXPECT_EQ(spec("vbd", "/srv/a.img"), "raw:/srv/a.img");
  EXPECT_EQ(spec("vbd3", "aio:/srv/a.img"), "raw:/srv/a.img");
  EXPECT_EQ(spec("vbd3", "vhd:/srv/a.vhd"), "vhd:/srv/a.vhd");
}

std::string plugin_spec(std::string_view format, std::string_view target) {
  const auto disk = parse_plugin_disk(format, target);
  return disk ? (disk->shared ? "shared " : "") + disk->spec : "error";
}

TEST(PluginDisk, PathIsAnImageOfTheFormat) {
  EXPECT_EQ(plugin_spec("qcow2", "/srv/a.qcow2"), "qcow2:/srv/a.qcow2");
  EXPECT_EQ(plugin_spec("vhd", "shared|/srv/a.vhd"), "shared vhd:/srv/a.vhd");
  EXPECT_EQ(plugin_spec("raw", "/dev/vg/lv"), "raw:/dev/vg/lv");
}

TEST(PluginDisk, RawOrSpecTakesANodeSpecAsItStands) {
  EXPECT_EQ(plugin_spec("raw", "qcow2:/srv/a.qcow2"), "qcow2:/srv/a.qcow2");
  EXPECT_EQ(plugin_spec("spec", "throttle:iops=5|vhd:/srv/a.vhd"),
            "throttle:iops=5|vhd:/srv/a.vhd");
}

TEST(PluginDisk, RefusesWhatIsNoPathOfTheFormat) {
  EXPECT_EQ(plugin_spec("qcow2", "raw:/srv/a.img"), "error");
  EXPECT_EQ(plugin_spec("qcow2", "a.qcow2"), "error");
  EXPECT_EQ(plugin_spec("vmdk", "/srv/a.vmdk"), "error");
  EXPECT_EQ(plugin_spec("qcow2", ""), "error");
}

TEST(PluginDisk, FormatsEndWithNull) {
  ASSERT_FALSE(plugin_formats().empty());
  EXPECT_EQ(plugin_formats().back(), nullptr);
}

TEST(Params, SharedIsSaidInFront) {
  EXPECT_EQ(spec("vbd", "shared|raw:/srv/a.img"), "shared raw:/srv/a.img");
  EXPECT_EQ(spec("vbd3", "aio:shared|/srv/a.img"), "shared raw:/srv/a.img");
  EXPECT_EQ(spec("vbd", "shared|"), "error");
  EXPECT_EQ(spec("vbd", ""), "error");
}

TEST(Params, ScriptIsOursByItsLastPart) {
  EXPECT_TRUE(is_our_script("/etc/xen/scripts/block-vbdkit"));
  EXPECT_TRUE(is_our_script("block-vbdkit"));
  EXPECT_FALSE(is_our_script("/etc/xen/scripts/block"));
  EXPECT_FALSE(is_our_script("/srv/block-vbdkit/block"));
  EXPECT_FALSE(is_our_script(""));
}

TEST(DeviceName, ReadsWhatItWrites) {
  const auto name = DeviceName::parse("vbd/3/51712");
  ASSERT_TRUE(name);
  EXPECT_EQ(name->to_string(), "vbd/3/51712");
  EXPECT_EQ(name->bus_id(), "vbd-3-51712");
}

TEST(DeviceName, RefusesWhatIsNoDevice) {
  for (const char* bad : {"", "vbd", "vbd/3", "vbd/3/", "vbd/x/1", "vbd/3/1/state", "vbd/3/../1",
                          "vbd/-1/1", "vbd/65536/1", "vbd/3/5e3", "vbd//1"})
    EXPECT_FALSE(DeviceName::parse(bad)) << bad;
}

}  // namespace
}  // namespace vbdkit::hotplug
