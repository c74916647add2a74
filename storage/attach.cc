// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit attach, detach: a running instance's disk as a block device of this host, through the
// kernel's NBD driver, which nbd-client(8) tells of the instance's socket. Which device shows which
// instance is kept as a link, …/attached/nbd0 → ../instances/<uuid>.
#include <dirent.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>

#include "base/fd.h"
#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/instance_argument.h"

namespace vbdkit::storage {

namespace {

constexpr const char* kSysBlock = "/sys/block";

bool exists(const std::string& path) {
  struct stat st {};
  return ::lstat(path.c_str(), &st) == 0;
}

// "nbd0", "nbd1", … in the order of their numbers.
std::vector<std::string> nbd_devices() {
  std::vector<std::string> names;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(kSysBlock), ::closedir);
  if (!dir) return names;
  while (const dirent* entry = ::readdir(dir.get())) {
    const std::string name = entry->d_name;
    if (name.starts_with("nbd")) names.push_back(name);
  }
  std::sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
    return a.size() != b.size() ? a.size() < b.size() : a < b;
  });
  return names;
}

// The kernel has a pid there while a device is connected.
bool connected(const std::string& device) {
  return exists(std::string(kSysBlock) + "/" + device + "/pid");
}

Result<void> run_program(std::vector<std::string> words) {
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t files;
  ::posix_spawn_file_actions_init(&files);
  ::posix_spawn_file_actions_adddup2(&files, STDERR_FILENO, STDOUT_FILENO);  // ours is the answer
  pid_t pid = -1;
  const int error = ::posix_spawnp(&pid, argv[0], &files, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&files);
  if (error != 0) return Error::from_errno(error, "start " + words.front());
  int status = 0;
  if (::waitpid(pid, &status, 0) != pid) return Error::from_errno(errno, "wait for " + words[0]);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  return Error(ErrorKind::kIo, words.front() + " has failed; it says why above");
}

std::string link_of(const Registry& registry, const std::string& device) {
  return registry.runtime_dir() + "/attached/" + device;
}

// The UUID of the instance that we have attached there; empty where we have not.
std::string attached_at(const Registry& registry, const std::string& device) {
  std::string target(256, '\0');
  const ssize_t n = ::readlink(link_of(registry, device).c_str(), target.data(), target.size());
  if (n <= 0 || !connected(device)) return {};
  target.resize(static_cast<size_t>(n));
  return target.substr(target.rfind('/') + 1);
}

Result<std::string> free_device(const po::variables_map& vm) {
  const auto devices = nbd_devices();
  if (devices.empty())
    return Error(ErrorKind::kUnsupported,
                 "the kernel's NBD driver is not there (modprobe nbd loads it)");
  if (vm.count("device") != 0) {
    const std::string path = text_of(vm, "device");
    const std::string name = path.substr(path.rfind('/') + 1);
    if (std::find(devices.begin(), devices.end(), name) == devices.end())
      return usage_error("--device " + path + ": that is no NBD device");
    if (connected(name)) return Error(ErrorKind::kBusy, "/dev/" + name + " is in use");
    return name;
  }
  const auto found = std::find_if_not(devices.begin(), devices.end(), connected);
  if (found == devices.end())
    return Error(ErrorKind::kBusy, "all " + std::to_string(devices.size()) +
                                       " NBD devices are in use (modprobe nbd nbds_max=…)");
  return *found;
}

Result<int> run_attach(const po::variables_map& vm, const Logger& log) {
  const Registry registry = registry_of(vm);
  VBDKIT_ASSIGN(const auto instance, find_instance(registry, text_of(vm, "INSTANCE"), log));
  if (instance.json.member("nbd").is_null())
    return Error(ErrorKind::kUnsupported, title_of(instance) + " has no NBD export");
  VBDKIT_ASSIGN(const std::string device, free_device(vm));
  std::vector<std::string> words = {"nbd-client",     "-unix", instance.nbd_socket(),
                                    "/dev/" + device, "-name", instance.uuid,
                                    "-block-size",    "512"};
  if (vm.count("read-only") != 0) words.emplace_back("-readonly");
  VBDKIT_TRY(run_program(std::move(words)));
  const std::string dir = registry.runtime_dir() + "/attached";
  if (::mkdir(dir.c_str(), 0700) < 0 && errno != EEXIST)
    return Error::from_errno(errno, "mkdir " + dir);
  const std::string link = link_of(registry, device);
  ::unlink(link.c_str());  // of a device that was disconnected by others
  if (::symlink(("../instances/" + instance.uuid).c_str(), link.c_str()) < 0)
    return Error::from_errno(errno, "link " + link);
  std::printf("/dev/%s\n", device.c_str());
  return kExitOk;
}

Result<int> run_detach(const po::variables_map& vm, const Logger& log) {
  const Registry registry = registry_of(vm);
  const std::string what = text_of(vm, "WHAT");
  std::vector<std::string> devices;
  if (what.starts_with("/dev/nbd")) {
    devices.push_back(what.substr(what.rfind('/') + 1));
    if (attached_at(registry, devices.front()).empty())
      return Error(ErrorKind::kNotFound, what + " was not attached by vbdkit");
  } else {
    VBDKIT_ASSIGN(const auto instance, find_instance(registry, what, log));
    for (const std::string& device : nbd_devices())
      if (attached_at(registry, device) == instance.uuid) devices.push_back(device);
    if (devices.empty())
      return Error(ErrorKind::kNotFound, title_of(instance) + " is attached to no device");
  }
  for (const std::string& device : devices) {
    // A file system on it would lose what it has not written.
    if (const auto alone = Fd::open("/dev/" + device, O_RDONLY | O_EXCL); !alone)
      return Error(alone.error()).context("is it mounted?");
    VBDKIT_TRY(run_program({"nbd-client", "-d", "/dev/" + device}));
    ::unlink(link_of(registry, device).c_str());
  }
  return kExitOk;
}

}  // namespace

int attach(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("attach [OPTION...] INSTANCE", {"INSTANCE"});
  syntax.options.add_options()  //
      ("device", po::value<std::string>()->value_name("/dev/nbdN"),
       "this device; the first that is free if not given")  //
      ("read-only,r", "nobody can write to the device");
  add_runtime_dir_option(syntax.options);
  return run_command(syntax, args, log,
                     [&](const po::variables_map& vm) { return run_attach(vm, log); });
}

int detach(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("detach [OPTION...] /dev/nbdN|INSTANCE", {"WHAT"});
  add_runtime_dir_option(syntax.options);
  return run_command(syntax, args, log,
                     [&](const po::variables_map& vm) { return run_detach(vm, log); });
}

}  // namespace vbdkit::storage
