// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/hook_runner.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>

namespace vbdkit::storage {

namespace {

constexpr off_t kMaxRecord = 16 << 20;  // bytes
constexpr size_t kMaxLine = 1024;

// As run-parts(8): what an editor or a package manager leaves is no hook.
bool is_name_of_hook(const std::string& name) {
  const auto known = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' ||
           c == '_' || c == '.';
  };
  const auto ends = [&](const char* suffix) { return name.ends_with(suffix); };
  return !name.empty() && name.front() != '.' && std::all_of(name.begin(), name.end(), known) &&
         !ends(".dpkg-old") && !ends(".dpkg-dist") && !ends(".dpkg-new") && !ends(".dpkg-tmp");
}

std::string read_record(const std::string& runtime_dir) {
  const auto fd = Fd::open(runtime_dir + "/record.json", O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
  struct stat st {};
  if (!fd || ::fstat(fd->get(), &st) < 0 || !S_ISREG(st.st_mode) || st.st_size > kMaxRecord)
    return {};
  std::string text(static_cast<size_t>(st.st_size), '\0');
  const ssize_t n = ::read(fd->get(), text.data(), text.size());
  text.resize(n > 0 ? static_cast<size_t>(n) : 0);
  return text;
}

// The record as a file of its own: whether a hook reads it is its own business.
Result<Fd> as_input(const std::string& text) {
  Fd fd(::memfd_create("record", MFD_CLOEXEC));
  if (!fd.valid()) return Error::from_errno(errno, "memfd_create");
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = ::write(fd.get(), text.data() + done, text.size() - done);
    if (n < 0) return Error::from_errno(errno, "write a record");
    done += static_cast<size_t>(n);
  }
  if (::lseek(fd.get(), 0, SEEK_SET) < 0) return Error::from_errno(errno, "lseek");
  return fd;
}

}  // namespace

Result<void> HookRunner::run() {
  for (;;) {
    if (hook_.pid < 0) start_next();
    if (ended_ && queue_.empty()) return {};
    std::array<pollfd, 3> fds = {{{ended_ ? -1 : events_.get(), POLLIN, 0},
                                  {hook_.output.get(), POLLIN, 0},
                                  {hook_.process.get(), POLLIN, 0}}};
    int timeout = -1;
    if (hook_.pid >= 0 && !hook_.killed) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(hook_.deadline - Clock::now());
      timeout = static_cast<int>(std::max<int64_t>(0, left.count()));
    }
    const int n = ::poll(fds.data(), fds.size(), timeout);
    if (n < 0 && errno != EINTR) return Error::from_errno(errno, "poll");
    if (n < 0) continue;
    if (fds[0].revents != 0) take_events();
    if (fds[1].revents != 0) read_output();
    if (fds[2].revents != 0)
      reap();
    else
      kill_late();
  }
}

void HookRunner::take_events() {
  std::array<char, 256> bytes;
  const ssize_t n = ::read(events_.get(), bytes.data(), bytes.size());
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
  for (ssize_t i = 0; i < n; ++i) {
    if (bytes[static_cast<size_t>(i)] == 'r') queue("register");
    if (bytes[static_cast<size_t>(i)] == 'c') queue("change");
  }
  if (n > 0) return;
  // The instance is no more, in order or not.
  ended_ = true;
  if (registered_) queue("unregister");
}

void HookRunner::queue(const std::string& name) {
  if (const std::string now = read_record(options_.runtime_dir); !now.empty()) record_ = now;
  registered_ = name != "unregister";
  // The first is being told already.
  if (name == "change" && queue_.size() > 1 && queue_.back().name == "change")
    queue_.back().record = record_;
  else
    queue_.push_back({name, record_});
}

void HookRunner::start_next() {
  while (!queue_.empty()) {
    if (remaining_.empty()) {
      const auto hooks = list_hooks();
      remaining_.assign(hooks.begin(), hooks.end());
    }
    while (!remaining_.empty()) {
      const std::string name = remaining_.front();
      if (auto started = start(name, queue_.front()); started)
        return;
      else
        log_.warning("hook %s: %s", name.c_str(), started.error().message().c_str());
      remaining_.pop_front();
    }
    queue_.pop_front();
  }
}

Result<void> HookRunner::start(const std::string& name, const Event& event) {
  const std::string path = options_.hooks_dir + "/" + name;
  VBDKIT_ASSIGN(const Fd input, as_input(event.record));
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) < 0) return Error::from_errno(errno, "pipe");
  Fd output(ends[0]);
  const Fd theirs(ends[1]);
  ::fcntl(output.get(), F_SETFL, O_NONBLOCK);

  std::array<std::string, 2> arguments = {path, event.name};
  std::array<char*, 3> argv = {arguments[0].data(), arguments[1].data(), nullptr};
  std::string search = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
  std::array<char*, 2> environment = {search.data(), nullptr};
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  ::posix_spawn_file_actions_init(&files);
  ::posix_spawnattr_init(&attributes);
  ::posix_spawn_file_actions_adddup2(&files, input.get(), STDIN_FILENO);
  ::posix_spawn_file_actions_adddup2(&files, theirs.get(), STDOUT_FILENO);
  ::posix_spawn_file_actions_adddup2(&files, theirs.get(), STDERR_FILENO);
  ::posix_spawnattr_setpgroup(&attributes, 0);  // so that all it starts can be killed with it
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  pid_t pid = -1;
  const int error =
      ::posix_spawn(&pid, path.c_str(), &files, &attributes, argv.data(), environment.data());
  ::posix_spawn_file_actions_destroy(&files);
  ::posix_spawnattr_destroy(&attributes);
  if (error != 0) return Error::from_errno(error, "start");
  hook_ = Hook{.name = name,
               .pid = pid,
               .process = Fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))),
               .output = std::move(output),
               .line = {},
               .deadline = Clock::now() + options_.timeout};
  return {};
}

void HookRunner::read_output() {
  std::array<char, 4096> bytes;
  const ssize_t n = ::read(hook_.output.get(), bytes.data(), bytes.size());
  if (n < 0) return;
  if (n == 0) hook_.output.reset();
  for (ssize_t i = 0; i < n; ++i) {
    const char c = bytes[static_cast<size_t>(i)];
    const bool end = c == '\n';
    if (!end) hook_.line += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
    if (end || hook_.line.size() >= kMaxLine) log_line(std::exchange(hook_.line, {}));
  }
}

void HookRunner::log_line(const std::string& line) {
  log_.limited(chatter_, LogLevel::kNotice, "hook %s: %s", hook_.name.c_str(), line.c_str());
}

void HookRunner::kill_late() {
  if (hook_.pid < 0 || hook_.killed || Clock::now() < hook_.deadline) return;
  log_.warning("hook %s: killed: it took longer than %lld ms", hook_.name.c_str(),
               static_cast<long long>(options_.timeout.count()));
  ::kill(-hook_.pid, SIGKILL);
  hook_.killed = true;
}

void HookRunner::reap() {
  int status = 0;
  if (::waitpid(hook_.pid, &status, WNOHANG) != hook_.pid) return;
  if (hook_.output.valid()) read_output();  // what a child of it may print later is nobody's
  if (!hook_.line.empty()) log_line(std::exchange(hook_.line, {}));
  if (WIFEXITED(status) && WEXITSTATUS(status) != 0)
    log_.warning("hook %s: %s: status %d", hook_.name.c_str(), queue_.front().name.c_str(),
                 WEXITSTATUS(status));
  if (WIFSIGNALED(status) && !hook_.killed)
    log_.warning("hook %s: %s: signal %d", hook_.name.c_str(), queue_.front().name.c_str(),
                 WTERMSIG(status));
  hook_ = Hook();
  remaining_.pop_front();
  if (remaining_.empty()) queue_.pop_front();
}

bool HookRunner::is_safe(const std::string& path, bool directory) const {
  struct stat st {};
  if (::stat(path.c_str(), &st) < 0) return false;
  if (!directory && (!S_ISREG(st.st_mode) || ::access(path.c_str(), X_OK) != 0)) return false;
  if ((st.st_uid == 0 || st.st_uid == ::geteuid()) && (st.st_mode & (S_IWGRP | S_IWOTH)) == 0)
    return true;
  log_.warning("%s: others may write to it, so it is no hook", path.c_str());
  return false;
}

std::vector<std::string> HookRunner::list_hooks() const {
  std::vector<std::string> names;
  if (!is_safe(options_.hooks_dir, true)) return names;
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(options_.hooks_dir.c_str()), ::closedir);
  if (!dir) return names;
  while (const dirent* entry = ::readdir(dir.get())) {
    if (is_name_of_hook(entry->d_name) && is_safe(options_.hooks_dir + "/" + entry->d_name, false))
      names.emplace_back(entry->d_name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace vbdkit::storage
