// SPDX-License-Identifier: LGPL-2.1-or-later
#include "hotplug/instance_process.h"

#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <set>
#include <utility>

#include "backend/control/unix_socket.h"
#include "backend/runtime_dir.h"

namespace vbdkit::hotplug {

namespace {

using namespace std::chrono_literals;

constexpr auto kQuitTimeout = 30s;  // drains, flushes; then it is told not to wait for storage

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
                                                                 const LaunchOptions& launch,
                                                                 Callbacks callbacks) {
  std::unique_ptr<InstanceProcess> process(new InstanceProcess(reactor, log, std::move(callbacks)));
  VBDKIT_ASSIGN(LaunchedInstance launched, launch_instance(launch));
  process->uuid_ = launched.uuid;
  process->dir_ = launched.directory;
  process->spec_ = launch.spec;
  process->read_only_ = launch.read_only;
  process->pid_ = launched.pid;
  auto connected = process->connect(std::move(launched.control));
  if (connected) connected = process->watch_process();
  if (!connected) {
    ::kill(process->pid_, SIGKILL);  // nobody would ever end it
    return std::move(connected).error();
  }
  log.info("%s: started instance %s, pid %d", launch.spec.c_str(), process->uuid_.c_str(),
           process->pid_);
  return process;
}

Result<std::unique_ptr<InstanceProcess>> InstanceProcess::adopt(
    io::Reactor& reactor, const Logger& log, const storage::InstanceRecord& record,
    Callbacks callbacks) {
  std::unique_ptr<InstanceProcess> process(new InstanceProcess(reactor, log, std::move(callbacks)));
  process->dir_ = record.directory;
  process->uuid_ = record.uuid;
  process->spec_ = record.spec;
  process->read_only_ = record.read_only;
  process->pid_ = record.pid;
  process->shutting_down_ = record.state == "ending";
  VBDKIT_TRY(process->watch_process());
  VBDKIT_ASSIGN(Fd socket, control::connect_unix(process->qmp_socket()));
  VBDKIT_TRY(process->connect(std::move(socket)));
  process->link_->execute("x-vbdkit-query", {},
                          [self = process.get(), record](Result<control::Json> answer) {
                            if (answer) self->compare(record, *answer);
                          });
  return process;
}

// What happened between the record and our connection: events of it went to nobody.
void InstanceProcess::compare(const storage::InstanceRecord& record, const control::Json& now) {
  if (now.member("state").string() == "ending") shutting_down_ = true;
  const bool managed = now.member("managed").boolean().value_or(false);
  if (managed != record.managed) callbacks_.lifetime(managed);
  std::set<std::string> served;
  const auto consumers = now.member("consumers");
  for (size_t i = 0; i < consumers.size(); ++i)
    served.insert(consumers.at(i).member("backend").string().value_or(""));
  for (const storage::RegisteredVbd& vbd : record.vbds)
    if (!served.contains(vbd.backend)) callbacks_.vbd_gone(vbd.backend);
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
                           } else if (name == "SHUTDOWN") {
                             shutting_down_ = true;
                           } else if (name == "X_VBDKIT_LIFETIME") {
                             callbacks_.lifetime(data.member("managed").boolean().value_or(false));
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
