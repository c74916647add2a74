// SPDX-License-Identifier: LGPL-2.1-or-later
//
// HotplugTest: a World with vbdkitd running in it, and libxl's part of adding and removing a disk:
// nodes, InitWait, the hotplug script with libxl's environment. What the daemon started and a test
// left behind is ended with the fixture.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "backend/control/qmp_client.h"
#include "backend/runtime_dir.h"
#include "tests/sim/verified_disk.h"
#include "tests/sim/world_test_base.h"

namespace vbdkit::sim {

class HotplugTest : public WorldTest {
 protected:
  // What the script has said and how it ended.
  struct ScriptResult {
    int status = -1;  // exit status
    std::string output;
  };

  void SetUp() override {
    WorldTest::SetUp();
    if (HasFatalFailure()) return;
    runtime_dir_ = world().dir() + "/run";
    std::filesystem::create_directory(world().dir() + "/shm");
    start_daemon();
  }

  void TearDown() override {
    if (daemon_ != nullptr) {
      EXPECT_TRUE(daemon_->stop(soon()));
    }
    for (const pid_t pid : instance_pids()) ::kill(pid, SIGKILL);
    WorldTest::TearDown();
  }

  virtual unsigned threads() const { return 1; }
  // Whom the instances become; nobody: they stay who they are.
  virtual std::string user() const { return {}; }

  static std::string program(const std::string& name) { return build_dir() + "/../../" + name; }

  std::vector<std::string> daemon_arguments() const {
    std::vector<std::string> arguments = {program("vbdkitd"),
                                          "--runtime-dir",
                                          runtime_dir_,
                                          "--backend",
                                          program("vbdkit-backend"),
                                          "--backend-arg",
                                          "--log-level",
                                          "--backend-arg",
                                          "info",
                                          "--backend-arg",
                                          "--threads",
                                          "--backend-arg",
                                          std::to_string(threads()),
                                          "--sysfs",
                                          world_dir() + "/sys",
                                          "--xen-run-dir",
                                          world_dir(),
                                          "--xentop-dir",
                                          world_dir() + "/shm",
                                          "--log-level",
                                          "debug"};
    if (!user().empty())
      for (const std::string& word : {std::string("--user"), user()})
        arguments.insert(arguments.end(), {"--backend-arg", word});
    return arguments;
  }

  void start_daemon() {
    daemon_ = must(world().launch("vbdkitd-" + std::to_string(++daemons_), daemon_arguments()));
    const auto deadline = soon();
    // The socket is made when the daemon has looked at everything.
    while (!daemon_client()) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "vbdkitd does not answer";
      ASSERT_TRUE(daemon_->running());
      ::usleep(1000);
    }
  }

  Result<control::QmpClient> daemon_client() const {
    return control::QmpClient::connect(runtime_dir_ + "/vbdkitd.sock");
  }

  // A raw image of zeroes.
  std::string image(const std::string& name, uint64_t bytes = 16 << 20) const {
    const std::string path = world_dir() + "/" + name;
    std::ofstream file(path, std::ios::app);
    file.close();
    std::filesystem::resize_file(path, bytes);
    return path;
  }

  ScriptResult run_script(const Disk& disk, const std::string& action) {
    Process::Environment environment = world().environment();
    environment["script"] = "/etc/xen/scripts/block-vbdkit";
    environment["XENBUS_TYPE"] =
        disk.backend_path.find("/vbd3/") == std::string::npos ? "vbd" : "vbd3";
    environment["XENBUS_PATH"] = disk.backend_path.substr(std::string("/local/domain/0/").size());
    environment["XENBUS_BASE_PATH"] = "backend";
    environment["VBDKITD"] = program("vbdkitd");
    environment["VBDKIT_RUNTIME_DIR"] = runtime_dir_;
    const std::string log = world_dir() + "/script-" + std::to_string(++scripts_) + ".log";
    auto process = must(Process::start({program("hotplug/block-vbdkit"), action},
                                       {.environment = environment, .log_path = log}));
    const int status = must(process->wait(in(std::chrono::seconds(40))));
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), process->log()};
  }

  // As libxl adds a disk; the script's outcome is the disk's.
  Disk add(Guest& guest, const DiskConfig& config, ScriptResult* script) {
    const Disk disk = must(world().toolstack().attach(guest.domid(), config));
    must(world().toolstack().wait_backend(disk, XenbusStateInitWait, soon()));
    *script = run_script(disk, "add");
    return disk;
  }

  Disk add(Guest& guest, const DiskConfig& config) {
    ScriptResult script;
    const Disk disk = add(guest, config, &script);
    EXPECT_EQ(script.status, 0) << script.output;
    return disk;
  }

  // As libxl removes one.
  void remove(const Disk& disk) {
    must(world().toolstack().request_detach(disk, false));
    must(world().toolstack().wait_backend(disk, XenbusStateClosed, soon()));
    EXPECT_EQ(run_script(disk, "remove").status, 0);
    must(world().toolstack().remove_nodes(disk));
  }

  std::string node(const Disk& disk, const std::string& name) {
    const auto value = world().store().read(disk.backend_path + "/" + name);
    return value ? *value : std::string();
  }

  std::vector<std::string> instance_dirs() const {
    std::vector<std::string> out;
    std::error_code error;
    for (const auto& entry :
         std::filesystem::directory_iterator(runtime_dir_ + "/instances", error))
      out.push_back(entry.path());
    return out;
  }

  std::vector<pid_t> instance_pids() const {
    std::vector<pid_t> out;
    for (const std::string& dir : instance_dirs()) {
      pid_t pid = 0;
      if (RuntimeDir::alive(dir) && std::ifstream(dir + "/pid") >> pid && pid > 1)
        out.push_back(pid);
    }
    return out;
  }

  template <typename Condition>
  void wait_until(const char* what, Condition condition) {
    const auto deadline = soon();
    while (!condition()) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "still not: " << what;
      ::usleep(1000);
    }
  }

  const std::string& world_dir() const { return const_cast<HotplugTest*>(this)->world().dir(); }
  const std::string& runtime_dir() const { return runtime_dir_; }
  Process& daemon() { return *daemon_; }

 private:
  std::string runtime_dir_;
  Process* daemon_ = nullptr;
  int daemons_ = 0;
  int scripts_ = 0;
};

}  // namespace vbdkit::sim
