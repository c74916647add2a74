// SPDX-License-Identifier: LGPL-2.1-or-later
#include "hotplug/instance_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <utility>

#include "backend/control/qmp_client.h"
#include "backend/control/unix_socket.h"
#include "backend/runtime_dir.h"
#include "base/uuid.h"

namespace vbdkit::hotplug {

namespace {

using namespace std::chrono_literals;

constexpr auto kAdoptTimeout = 2s;
constexpr auto kQuitTimeout = 30s;  // drains, flushes; then it is told not to wait for storage
constexpr int kControlFd = 3;       // in the instance

// Its own session: what stops the daemon (a terminal, a service manager) must not reach it.
Result<pid_t> spawn(const std::vector<std::string>& arguments, int control) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);

  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  ::posix_spawn_file_actions_init(&files);
  ::posix_spawnattr_init(&attributes);
  ::posix_spawn_file_actions_adddup2(&files, control, kControlFd);
  sigset_t none;
  ::sigemptyset(&none);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK);
  pid_t pid = -1;
  const int error = ::posix_spawn(&pid, argv[0], &files, &attributes, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&files);
  ::posix_spawnattr_destroy(&attributes);
  if (error != 0) return Error::from_errno(error, "start " + arguments.front());
  return pid;
}

std::string describe(const siginfo_t& info) {
  if (info.si_code == CLD_EXITED) return "exited with status " + std::to_string(info.si_status);
  return "was killed by signal " + std::to_string(info.si_status);
}

std::string backend_argument(const std::string& backend) {
  control::JsonWriter w;
  w.begin_object().field("backend", backend).end_object();
  return w.take();
}

}  // namespace

Result<std::unique_ptr<InstanceProcess>> InstanceProcess::launch(io::Reactor& reactor,
                                                                 const Logger& log,
                                                                 const Launch& launch,
                                                                 Callbacks callbacks) {
  std::unique_ptr<InstanceProcess> process(new InstanceProcess(reactor, log, std::move(callbacks)));
  VBDKIT_ASSIGN(process->uuid_, random_uuid());
  process->dir_ = launch.instances_dir + "/" + process->uuid_;
  process->spec_ = launch.spec;
  process->read_only_ = launch.read_only;

  // The connection exists before the process does: commands wait in it, and nothing has to be
  // polled until the instance listens.
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
    return Error::from_errno(errno, "socketpair");
  Fd ours(ends[0]), theirs(ends[1]);
  // dup2 onto itself would leave it close-on-exec.
  if (theirs.get() == kControlFd) {
    theirs = Fd(::fcntl(ends[1], F_DUPFD_CLOEXEC, kControlFd + 1));
    if (!theirs.valid()) return Error::from_errno(errno, "duplicate a socket");
  }

  std::vector<std::string> arguments = {launch.program, "--spec",       launch.spec,
                                        "--uuid",       process->uuid_, "--runtime-dir",
                                        process->dir_,  "--control-fd", std::to_string(kControlFd),
                                        "--managed"};
  if (launch.read_only) arguments.emplace_back("--read-only");
  if (launch.shared) arguments.emplace_back("--share");
  arguments.insert(arguments.end(), launch.arguments.begin(), launch.arguments.end());
  VBDKIT_TRY(process->connect(std::move(ours)));
  VBDKIT_ASSIGN(process->pid_, spawn(arguments, theirs.get()));
  if (auto watched = process->watch_process(); !watched) {
    ::kill(process->pid_, SIGKILL);  // nobody would ever end it
    return std::move(watched).error();
  }
  log.info("%s: started instance %s, pid %d", launch.spec.c_str(), process->uuid_.c_str(),
           process->pid_);
  return process;
}

Result<InstanceProcess::Found> InstanceProcess::adopt(io::Reactor& reactor, const Logger& log,
                                                      const std::string& runtime_dir,
                                                      Callbacks callbacks) {
  Found found;
  VBDKIT_ASSIGN(auto client, control::QmpClient::connect(runtime_dir + "/qmp.sock", kAdoptTimeout));
  VBDKIT_ASSIGN(const auto record, client.execute("x-vbdkit-query", {}, kAdoptTimeout));
  found.process.reset(new InstanceProcess(reactor, log, std::move(callbacks)));
  InstanceProcess& process = *found.process;
  process.dir_ = runtime_dir;
  process.uuid_ = record.member("uuid").string().value_or("");
  process.spec_ = record.member("spec").string().value_or("");
  process.read_only_ = record.member("read-only").boolean().value_or(false);
  process.pid_ = static_cast<pid_t>(record.member("pid").number().value_or(0));
  found.managed = record.member("managed").boolean().value_or(false);
  const auto consumers = record.member("consumers");
  for (size_t i = 0; i < consumers.size(); ++i) {
    if (const auto backend = consumers.at(i).member("backend").string())
      found.backends.push_back(*backend);
  }
  if (process.pid_ <= 0 || process.uuid_.empty())
    return Error(ErrorKind::kProtocol, runtime_dir + ": what answers there is no instance");
  VBDKIT_TRY(process.watch_process());
  VBDKIT_ASSIGN(Fd socket, control::connect_unix(process.qmp_socket()));
  VBDKIT_TRY(process.connect(std::move(socket)));
  return found;
}

Result<void> InstanceProcess::watch_process() {
  pidfd_ = Fd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  if (!pidfd_.valid()) return Error::from_errno(errno, "pidfd_open " + std::to_string(pid_));
  exit_watch_ = reactor_.watch(pidfd_.get(), [this] { on_exit(); });
  return {};
}

Result<void> InstanceProcess::connect(Fd socket) {
  VBDKIT_ASSIGN(link_,
                control::QmpLink::create(
                    reactor_, std::move(socket),
                    {.ready = {},
                     .event =
                         [this](const std::string& name, const control::Json& data) {
                           if (name == "X_VBDKIT_FAILED") {
                             failure_ = data.member("desc").string().value_or("");
                           } else if (name == "X_VBDKIT_VBD_GONE") {
                             callbacks_.vbd_gone(data.member("backend").string().value_or(""));
                           }
                         },
                     .closed = [this] { on_link_closed(); }}));
  return {};
}

void InstanceProcess::attach(const std::string& backend, Answer answer) {
  link_->execute("x-vbdkit-attach-vbd", backend_argument(backend), std::move(answer));
}

void InstanceProcess::detach(const std::string& backend, Answer answer) {
  link_->execute("x-vbdkit-detach-vbd", backend_argument(backend), std::move(answer));
}

void InstanceProcess::quit() {
  if (quit_timer_) return;
  quit_timer_ = reactor_.timer([this] { insist(); });
  quit_timer_->arm(io::Timer::Clock::now() + kQuitTimeout);
  link_->execute("quit", {}, [](Result<control::Json>) {});
}

// The first signal asks as `quit` does, in case the connection is lost; the second means now.
void InstanceProcess::insist() {
  log_.warning("instance %s (%s) does not finish: its storage may hang; ending it", uuid_.c_str(),
               spec_.c_str());
  for (int i = 0; i < 2; ++i)
    ::syscall(SYS_pidfd_send_signal, pidfd_.get(), i == 0 ? SIGTERM : SIGINT, nullptr, 0);
}

void InstanceProcess::on_exit() {
  exit_watch_.reset();
  exited_ = true;
  siginfo_t info{};
  if (::waitid(P_PIDFD, static_cast<id_t>(pidfd_.get()), &info, WEXITED | WNOHANG) == 0 &&
      info.si_pid == pid_) {
    status_ = describe(info);
  } else {
    status_ = "ended";  // not our child: it was started by the daemon before us
  }
  // Its last words may still be in the connection, which ends with it.
  if (link_closed_) finish();
}

void InstanceProcess::on_link_closed() {
  link_closed_ = true;
  if (exited_) finish();
}

void InstanceProcess::finish() {
  RuntimeDir::clean(dir_);
  if (quit_timer_) quit_timer_->cancel();
  const std::string reason =
      !failure_.empty() ? failure_ : "vbdkit-backend (pid " + std::to_string(pid_) + ") " + status_;
  log_.info("instance %s (%s): %s", uuid_.c_str(), spec_.c_str(), reason.c_str());
  const auto ended = callbacks_.ended;
  ended(reason);
}

}  // namespace vbdkit::hotplug
