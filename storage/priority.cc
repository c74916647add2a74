// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/priority.h"

#include <dirent.h>
#include <linux/ioprio.h>
#include <mntent.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <cstdio>
#include <memory>
#include <vector>

#include "base/fd.h"
#include "storage/command.h"
#include "storage/instance_argument.h"
#include "storage/table.h"

namespace vbdkit::storage {

namespace {

constexpr unsigned kLevels = 8;
constexpr unsigned kMaxWeight = 10'000;
constexpr const char* kGroup = "/vbdkit";  // below the hierarchy's root

struct Class {
  const char* name;
  int number;
};
constexpr Class kClasses[] = {{"none", IOPRIO_CLASS_NONE},
                              {"realtime", IOPRIO_CLASS_RT},
                              {"best-effort", IOPRIO_CLASS_BE},
                              {"idle", IOPRIO_CLASS_IDLE}};

std::vector<std::string> names_in(const std::string& path) {
  std::vector<std::string> names;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(path.c_str()), ::closedir);
  if (!dir) return names;
  while (const dirent* entry = ::readdir(dir.get())) {
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  }
  return names;
}

Result<std::string> read_file(const std::string& path) {
  VBDKIT_ASSIGN(const Fd fd, Fd::open(path, O_RDONLY));
  std::array<char, 4096> text;
  const ssize_t n = ::read(fd.get(), text.data(), text.size());
  if (n < 0) return Error::from_errno(errno, "read " + path);
  return std::string(text.data(), static_cast<size_t>(n));
}

Result<void> write_file(const std::string& path, const std::string& text) {
  VBDKIT_ASSIGN(const Fd fd, Fd::open(path, O_WRONLY));
  if (::write(fd.get(), text.data(), text.size()) < 0)
    return Error::from_errno(errno, "write '" + text + "' to " + path);
  return {};
}

// Where the cgroup v2 hierarchy is mounted.
Result<std::string> hierarchy() {
  const std::unique_ptr<FILE, int (*)(FILE*)> mounts(::setmntent("/proc/self/mounts", "re"),
                                                     ::endmntent);
  if (mounts) {
    std::array<char, 4096> text;
    mntent entry{};
    while (::getmntent_r(mounts.get(), &entry, text.data(), static_cast<int>(text.size())) !=
           nullptr) {
      if (std::string_view(entry.mnt_type) == "cgroup2") return std::string(entry.mnt_dir);
    }
  }
  return Error(ErrorKind::kUnsupported, "weights take cgroup v2, which is not mounted here");
}

Result<void> enable(const std::string& root, const char* controller) {
  VBDKIT_ASSIGN(const std::string there, read_file(root + "/cgroup.controllers"));
  if ((" " + there).find(" " + std::string(controller)) == std::string::npos)
    return Error(ErrorKind::kUnsupported, "cgroup v2 at " + root + " has no controller '" +
                                              controller + "' (it may belong to cgroup v1)");
  for (const std::string& dir : {root, root + kGroup})
    VBDKIT_TRY(write_file(dir + "/cgroup.subtree_control", std::string("+") + controller));
  return {};
}

Result<void> make_group(const std::string& path) {
  if (::mkdir(path.c_str(), 0755) < 0 && errno != EEXIST)
    return Error::from_errno(errno, "mkdir " + path);
  return {};
}

// "default 200\n" or "200\n".
std::optional<unsigned> weight_in(const std::string& text) {
  const size_t digits = text.find_first_of("0123456789");
  if (digits == text.npos) return std::nullopt;
  unsigned weight = 0;
  std::from_chars(text.data() + digits, text.data() + text.size(), weight);
  return weight;
}

}  // namespace

Result<int> parse_io_priority(std::string_view text) {
  const size_t colon = text.find(':');
  const std::string_view name = text.substr(0, colon);
  unsigned level = 4;
  if (colon != text.npos) {
    const std::string_view digits = text.substr(colon + 1);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), level);
    if (error != std::errc() || end != digits.data() + digits.size() || level >= kLevels)
      return usage_error("--ionice " + std::string(text) + ": the level is a number from 0 to 7");
  }
  for (const Class& c : kClasses) {
    if (name != c.name) continue;
    const bool levels = c.number == IOPRIO_CLASS_RT || c.number == IOPRIO_CLASS_BE;
    if (!levels && colon != text.npos)
      return usage_error("--ionice " + std::string(text) + ": that class has no levels");
    return IOPRIO_PRIO_VALUE(c.number, levels ? static_cast<int>(level) : 0);
  }
  return usage_error("--ionice " + std::string(text) +
                     ": the classes are realtime, best-effort, idle and none");
}

std::string io_priority_name(int packed) {
  for (const Class& c : kClasses) {
    if (IOPRIO_PRIO_CLASS(packed) != c.number) continue;
    const bool levels = c.number == IOPRIO_CLASS_RT || c.number == IOPRIO_CLASS_BE;
    return levels ? std::string(c.name) + ":" + std::to_string(IOPRIO_PRIO_DATA(packed)) : c.name;
  }
  return std::to_string(packed);
}

void add_priority_options(po::options_description& options) {
  options.add_options()  //
      ("ionice", po::value<std::string>()->value_name("CLASS[:LEVEL]"),
       "realtime:0…7, best-effort:0…7, idle, none")  //
      ("io-weight", po::value<unsigned>()->value_name("1…10000"),
       "of its I/O among other control groups; 100 is usual")  //
      ("cpu-weight", po::value<unsigned>()->value_name("1…10000"), "of its CPU time, likewise");
}

Result<Priority> priority_of(const po::variables_map& vm) {
  Priority priority;
  if (vm.count("ionice") != 0) {
    VBDKIT_ASSIGN(priority.io, parse_io_priority(text_of(vm, "ionice")));
  }
  const auto weight = [&](const char* name, std::optional<unsigned>& to) -> Result<void> {
    if (vm.count(name) == 0) return {};
    to = vm[name].as<unsigned>();
    if (*to < 1 || *to > kMaxWeight)
      return usage_error(std::string("--") + name + ": from 1 to 10000");
    return {};
  };
  VBDKIT_TRY(weight("io-weight", priority.io_weight));
  VBDKIT_TRY(weight("cpu-weight", priority.cpu_weight));
  return priority;
}

Result<void> set_priority(pid_t pid, const std::string& uuid, const Priority& priority) {
  if (priority.io) {
    // The kernel has it for each thread; one that starts meanwhile inherits it.
    for (const std::string& thread : names_in("/proc/" + std::to_string(pid) + "/task")) {
      const int tid = std::atoi(thread.c_str());
      if (::syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid, *priority.io) < 0 && errno != ESRCH)
        return Error::from_errno(errno, "set the I/O priority " + io_priority_name(*priority.io));
    }
  }
  if (!priority.io_weight && !priority.cpu_weight) return {};
  VBDKIT_ASSIGN(const std::string root, hierarchy());
  const std::string group = root + kGroup + "/" + uuid;
  VBDKIT_TRY(make_group(root + kGroup));
  if (priority.io_weight) VBDKIT_TRY(enable(root, "io"));
  if (priority.cpu_weight) VBDKIT_TRY(enable(root, "cpu"));
  VBDKIT_TRY(make_group(group));
  if (priority.io_weight)
    VBDKIT_TRY(write_file(group + "/io.weight", "default " + std::to_string(*priority.io_weight)));
  if (priority.cpu_weight)
    VBDKIT_TRY(write_file(group + "/cpu.weight", std::to_string(*priority.cpu_weight)));
  return write_file(group + "/cgroup.procs", std::to_string(pid));
}

Result<Priority> read_priority(pid_t pid, const std::string& uuid) {
  Priority priority;
  const auto io = ::syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, pid);
  if (io < 0) return Error::from_errno(errno, "look at the I/O priority");
  priority.io = static_cast<int>(io);
  const auto root = hierarchy();
  if (!root) return priority;
  const std::string group = *root + kGroup + "/" + uuid;
  if (const auto text = read_file(group + "/io.weight")) priority.io_weight = weight_in(*text);
  if (const auto text = read_file(group + "/cpu.weight")) priority.cpu_weight = weight_in(*text);
  return priority;
}

void remove_empty_groups() {
  const auto root = hierarchy();
  if (!root) return;
  // One that has a process in it is refused.
  for (const std::string& name : names_in(*root + kGroup))
    ::rmdir((*root + kGroup + "/" + name).c_str());
}

int priority(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("priority [OPTION...] INSTANCE", {"INSTANCE"});
  add_priority_options(syntax.options);
  syntax.options.add_options()("json", "for programs, where nothing is set");
  add_runtime_dir_option(syntax.options);
  return run_command(syntax, args, log, [&](const po::variables_map& vm) -> Result<int> {
    VBDKIT_ASSIGN(const auto instance,
                  find_instance(registry_of(vm), text_of(vm, "INSTANCE"), log));
    VBDKIT_ASSIGN(const Priority wanted, priority_of(vm));
    if (!wanted.empty()) {
      remove_empty_groups();
      VBDKIT_TRY(set_priority(instance.pid, instance.uuid, wanted));
      return kExitOk;
    }
    VBDKIT_ASSIGN(const Priority present, read_priority(instance.pid, instance.uuid));
    const std::string io = io_priority_name(present.io.value_or(0));
    if (vm.count("json") != 0) {
      Json json = {{"ionice", io}, {"io-weight", nullptr}, {"cpu-weight", nullptr}};
      if (present.io_weight) json["io-weight"] = *present.io_weight;
      if (present.cpu_weight) json["cpu-weight"] = *present.cpu_weight;
      print_json(json);
      return kExitOk;
    }
    const auto text = [](const std::optional<unsigned>& weight) {
      return weight ? std::to_string(*weight) : std::string("not set");
    };
    Table table({{"IONICE"}, {"IO WEIGHT"}, {"CPU WEIGHT"}});
    table.add({io, text(present.io_weight), text(present.cpu_weight)});
    std::fputs(table.text().c_str(), stdout);
    return kExitOk;
  });
}

}  // namespace vbdkit::storage
