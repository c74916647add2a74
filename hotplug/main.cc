// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkitd: the daemon, and with --client the questions that the hotplug script asks it.
#include <fcntl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/command_line.h"
#include "base/signals.h"
#include "hotplug/daemon.h"
#include "hotplug/daemon_client.h"
#include "hotplug/daemon_control.h"
#include "hotplug/xentop_view.h"

namespace vbdkit::hotplug {

namespace {

constexpr const char* kUsage =
    "usage: vbdkitd [options]\n"
    "       vbdkitd [options] --client wait-ready|wait-gone DEVICE\n"
    "       vbdkitd [options] --client query-devices\n"
    "Starts and looks after one vbdkit-backend per disk image of Xen guests.\n"
    "\n"
    "  --runtime-dir DIR    sockets and instances (default: /run/vbdkit)\n"
    "  --backend PROGRAM    vbdkit-backend to start\n"
    "  --backend-arg ARG    give it this argument too (may be repeated)\n"
    "  --sysfs DIR          where sysfs is (default: /sys)\n"
    "  --xen-run-dir DIR    where Xen's tools keep their sockets (default: /run/xen)\n"
    "  --xentop-dir DIR     where instances put xentop's files (default: /dev/shm)\n"
    "  --log-level NAME     error, warning, notice, info or debug\n"
    "  --client COMMAND     ask the running daemon; DEVICE as in xenstore: vbd/1/51712\n"
    "  --timeout MS         how long --client waits (default: 30000)\n"
    "  --version, --help\n";

constexpr unsigned kMostMilliseconds = 24 * 3600 * 1000;

struct Arguments {
  DaemonOptions daemon;
  XentopView::Options xentop;
  LogLevel log_level = LogLevel::kNotice;
  std::string client;  // a command, or empty: be the daemon
  std::string device;
  unsigned timeout_ms = 30'000;
  bool exit_early = false;
};

Result<Arguments> parse_arguments(int argc, char** argv) {
  Arguments a;
  a.daemon.backend_program = VBDKIT_LIBEXECDIR "/vbdkit-backend";
  std::string xentop_dir;
  CommandLine line("vbdkitd", kUsage);
  line.text("runtime-dir", a.daemon.runtime_dir)
      .text("backend", a.daemon.backend_program)
      .texts("backend-arg", a.daemon.backend_arguments)
      .text("sysfs", a.daemon.sysfs)
      .text("xen-run-dir", a.xentop.xen_run_dir)
      .text("xentop-dir", xentop_dir)
      .log_level("log-level", a.log_level)
      .text("client", a.client)
      .number("timeout", a.timeout_ms, 0, kMostMilliseconds);
  VBDKIT_ASSIGN(CommandLine::Rest rest, line.parse(argc, argv));
  a.exit_early = rest.answered;
  if (!xentop_dir.empty()) {
    a.xentop.stats_dir = xentop_dir;
    a.daemon.backend_arguments.insert(a.daemon.backend_arguments.end(),
                                      {"--xentop-dir", xentop_dir});
  }
  auto word = rest.arguments.begin();
  if (!a.client.empty() && word != rest.arguments.end()) a.device = *word++;
  if (word != rest.arguments.end()) return unexpected_argument(*word);
  return a;
}

// Prints the answer: of wait-ready, the path of the NBD socket; of query-devices, its JSON.
Result<void> ask(const Arguments& arguments) {
  const DaemonClient daemon(arguments.daemon.runtime_dir);
  VBDKIT_ASSIGN(const auto result, daemon.ask(arguments.client, arguments.device,
                                              std::chrono::milliseconds(arguments.timeout_ms)));
  if (const auto nbd = result.member("nbd").string()) {
    std::puts(nbd->c_str());
  } else if (result.is_array()) {
    std::puts(result.dump().c_str());
  }
  return {};
}

// systemd's watchdog: the loop has come round within half its interval.
class Watchdog {
 public:
  explicit Watchdog(io::Reactor& reactor) {
    uint64_t microseconds = 0;
    if (::sd_watchdog_enabled(0, &microseconds) <= 0) return;
    interval_ = std::chrono::microseconds(microseconds / 2);
    timer_ = reactor.timer([this] { tick(); });
    tick();
  }

 private:
  void tick() {
    ::sd_notify(0, "WATCHDOG=1");
    timer_->arm(io::Timer::Clock::now() + interval_);
  }

  std::chrono::microseconds interval_{};
  std::unique_ptr<io::Timer> timer_;
};

// One daemon per runtime directory. The lock goes with the process, however it ends.
Result<Fd> claim(const std::string& runtime_dir) {
  if (::mkdir(runtime_dir.c_str(), 0700) < 0 && errno != EEXIST)
    return Error::from_errno(errno, "mkdir " + runtime_dir);
  VBDKIT_ASSIGN(Fd fd, Fd::open(runtime_dir + "/vbdkitd.lock", O_RDWR | O_CREAT, 0600));
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  if (::fcntl(fd.get(), F_OFD_SETLK, &lock) < 0)
    return Error(ErrorKind::kBusy, "another vbdkitd runs with " + runtime_dir, EBUSY);
  return fd;
}

Result<void> serve(const Arguments& arguments, const Logger& log) {
  VBDKIT_ASSIGN(const Fd lock, claim(arguments.daemon.runtime_dir));
  VBDKIT_ASSIGN(const Fd signals, catch_signals({SIGTERM, SIGINT, SIGHUP}));
  VBDKIT_ASSIGN(const auto reactor, io::Reactor::create({.queue_depth = 64}, log));
  VBDKIT_ASSIGN(const auto daemon, Daemon::create(*reactor, log, arguments.daemon));
  VBDKIT_ASSIGN(const auto control,
                DaemonControl::create(*reactor, log, *daemon,
                                      arguments.daemon.runtime_dir + "/vbdkitd.sock"));
  XentopView xentop(*reactor, log, daemon->store(), daemon->backend_root(), arguments.xentop);
  const auto show = [&] { xentop.update(daemon->devices()); };
  daemon->on_change(show);
  show();
  const auto watch = reactor->watch(signals.get(), [&] {
    signalfd_siginfo info;
    if (::read(signals.get(), &info, sizeof info) < 0) return;
    if (info.ssi_signo != SIGHUP) return reactor->stop();
    ::sd_notify(0, "RELOADING=1");
    daemon->rescan();
    ::sd_notify(0, "READY=1");
  });
  const Watchdog watchdog(*reactor);
  ::sd_notify(0, "READY=1");
  log.info("watching %s", daemon->backend_root().c_str());
  auto ran = reactor->run();
  daemon->on_change({});
  // The instances stay: the next daemon finds them, and guests notice nothing.
  ::sd_notify(0, "STOPPING=1");
  return ran;
}

int run(int argc, char** argv) {
  const auto arguments = parse_arguments(argc, argv);
  const Logger log("vbdkitd", arguments ? arguments->log_level : LogLevel::kNotice);
  if (!arguments) {
    log.error("%s", arguments.error().message().c_str());
    return 2;
  }
  if (arguments->exit_early) return 0;
  if (!arguments->client.empty()) {
    // For the script: the message alone, which it passes on to the user.
    if (const auto asked = ask(*arguments); !asked) {
      std::fprintf(stderr, "%s\n", asked.error().message().c_str());
      return 1;
    }
    return 0;
  }
  if (const auto served = serve(*arguments, log); !served) {
    log.error("%s", served.error().message().c_str());
    return 1;
  }
  return 0;
}

}  // namespace

}  // namespace vbdkit::hotplug

int main(int argc, char** argv) { return vbdkit::hotplug::run(argc, argv); }
