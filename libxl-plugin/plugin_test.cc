// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Plugins in the very program in which libxl runs them (xen-patches/): what it answers. What a
// running vbdkitd makes of it is in tests/sim/plugin_test.cc, what libxl does then in tests/xen.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "drivers/image_format.h"

namespace vbdkit {
namespace {

namespace fs = std::filesystem;

class PluginTest : public ::testing::Test {
 protected:
  struct Answer {
    int status = -1;   // as of waitpid
    std::string text;  // the helper's stdout
  };

  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "vbdkit-plugin-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
    // No daemon there.
    ::setenv("VBDKIT_RUNTIME_DIR", dir_.c_str(), 1);
  }
  void TearDown() override { fs::remove_all(dir_); }

  static Answer call(const std::string& plugin, const std::string& call) {
    // The plugin's own output goes to stderr and shall not be mixed with the answer.
    const std::string command =
        "exec libxl-plugin/libxl-disk-plugin " + plugin + " " + call + " 2>/dev/null";
    FILE* pipe = ::popen(command.c_str(), "r");
    Answer answer;
    for (int c; (c = std::fgetc(pipe)) != EOF;) answer.text += static_cast<char>(c);
    answer.status = ::pclose(pipe);
    return answer;
  }
  static std::string said(const std::string& plugin, const std::string& what) {
    const Answer answer = call(plugin, what);
    EXPECT_EQ(answer.status, 0) << answer.text;
    return answer.text;
  }
  std::string vbdkit(const std::string& what) const {
    return said("$PWD/libxl-plugin/.libs/vbdkit.so", what);
  }
  static std::string test_plugin(const std::string& what) {
    return said("$PWD/libxl-plugin/test_plugin.so", what);
  }

  std::string qcow2(const std::string& name, const std::string& parent = {}) const {
    const std::string path = dir_ + "/" + name;
    const auto made = drivers::find_image_format("qcow2")->create(
        {.path = path,
         .size = parent.empty() ? Bytes{1 << 20} : Bytes{},
         .parent = parent,
         .parent_format = parent.empty() ? "" : "qcow2"});
    EXPECT_TRUE(made.ok()) << made.error().message();
    return path;
  }

  std::string dir_;
};

TEST_F(PluginTest, AnswersAndKeepsThePluginsOutputApart) {
  EXPECT_EQ(test_plugin("validate vdev=xvda"), "ok \n");
  EXPECT_EQ(test_plugin("start backend_path=/local/domain/0/backend/vbd3/1/51712"),
            "ok /local/domain/0/backend/vbd3/1/51712\n");
  EXPECT_EQ(test_plugin("stop"), "ok \n");
}

TEST_F(PluginTest, MessageIsOneLine) {
  EXPECT_EQ(test_plugin("validate 'target=validate=two\nlines'"), "error told to say two lines\n");
  const std::string longest = test_plugin("start target=start=$(printf %9000s x | tr ' ' y)");
  EXPECT_TRUE(longest.starts_with("error told to say yyy")) << longest;
  EXPECT_LT(longest.size(), 4096u);
}

TEST_F(PluginTest, FailureWithoutMessageIsAFailure) {
  EXPECT_EQ(test_plugin("stop target=stop=fail"),
            "error stop failed for a reason it does not tell\n");
}

TEST_F(PluginTest, RefusesWhatThePluginDoesNotDeclare) {
  EXPECT_EQ(test_plugin("validate format=odd"), "ok \n");
  EXPECT_EQ(test_plugin("validate format=qcow2"),
            "error format 'qcow2' is unknown to it (known: raw, odd)\n");
  EXPECT_EQ(test_plugin("validate writable=1"), "error its disks are read-only (access=r)\n");
  EXPECT_EQ(test_plugin("validate cdrom=1"), "error it has no CD-ROMs\n");
}

TEST_F(PluginTest, CrashLeavesNoAnswer) {
  const Answer crash = call("$PWD/libxl-plugin/test_plugin.so", "validate target=validate=crash");
  EXPECT_TRUE(WIFSIGNALED(crash.status)) << crash.status;
  EXPECT_EQ(crash.text, "");
  EXPECT_EQ(test_plugin("validate target=validate=exit"), "");
}

TEST_F(PluginTest, SaysWhatIsNoPlugin) {
  const std::string missing = dir_ + "/none.so";
  EXPECT_EQ(said(missing, "validate"),
            "error there is no such plugin (" + missing + ": No such file or directory)\n");
  const std::string text = dir_ + "/text.so";
  std::ofstream(text) << "no object";
  EXPECT_EQ(said(text, "validate").substr(0, 6), "error ");
}

TEST_F(PluginTest, ImageIsFoundGoodBeforeTheDaemonIsAsked) {
  const std::string image = qcow2("a.qcow2");
  const std::string answer = vbdkit("validate vdev=xvda writable=1 format=qcow2 target=" + image);
  EXPECT_TRUE(answer.starts_with("error vbdkitd is not running (")) << answer;
}

TEST_F(PluginTest, NamesWhatIsWrongWithAnImage) {
  const std::string parent = qcow2("b.qcow2");
  const std::string leaf = qcow2("a.qcow2", parent);
  fs::remove(parent);
  const std::string told = vbdkit("validate format=qcow2 target=" + leaf);
  EXPECT_TRUE(
      told.starts_with("error qcow2: open " + leaf + ": its parent is missing; looked for "))
      << told;
  EXPECT_NE(told.find("b.qcow2"), std::string::npos) << told;
  for (const std::string format : {"raw", "qcow2", "vhd"}) {
    const std::string none = dir_ + "/none." + format;
    EXPECT_EQ(vbdkit("validate format=" + format + " target=" + none),
              "error " + format + ": open " + none + ": No such file or directory\n");
  }
  EXPECT_NE(vbdkit("validate format=vhd target=" + leaf).find("vhd"), std::string::npos);
}

TEST_F(PluginTest, NamesWhatIsWrongWithASpec) {
  EXPECT_NE(vbdkit("validate format=spec 'target=throtle:iops=5|raw:/a'").find("throtle"),
            std::string::npos);
  EXPECT_EQ(vbdkit("validate format=vmdk target=/a"),
            "error format 'vmdk' is unknown to it (known: raw, qcow2, vhd, spec)\n");
  EXPECT_NE(vbdkit("validate format=qcow2 target=a.qcow2").find("begins with /"),
            std::string::npos);
}

}  // namespace
}  // namespace vbdkit
