// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit-backend: one disk image, served to guests and NBD clients until it is told to quit.
#include <grp.h>
#include <pwd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <string>
#include <vector>

#include "backend/instance.h"
#include "base/code_pages.h"
#include "base/command_line.h"
#include "base/signals.h"
#include "base/uuid.h"
#include "config.h"

namespace vbdkit {

namespace {

constexpr const char* kUsage =
    "usage: vbdkit-backend --spec SPEC [options]\n"
    "Serves one disk image to Xen guests and NBD clients. Usually started by vbdkitd.\n"
    "\n"
    "  --spec SPEC         node spec of the image, e.g. raw:/srv/a.img\n"
    "  --vbd PATH          serve this backend directory (absolute xenstore path; may be repeated)\n"
    "  --uuid UUID         name of the instance (default: a random one)\n"
    "  --runtime-dir DIR   where its sockets are (default: /run/vbdkit/instances/UUID)\n"
    "  --read-only         open the image read-only\n"
    "  --share             let other instances that share open the image too\n"
    "  --engine NAME       auto, io_uring, libaio or sync\n"
    "  --grants NAME       auto, persistent, map or copy\n"
    "  --threads N         spread the queues of guests over N threads (default: 1)\n"
    "  --no-nbd            no NBD export\n"
    "  --xentop-dir DIR    where xentop's files go (default: /dev/shm)\n"
    "  --user NAME         become this user once everything is open\n"
    "  --hooks-dir DIR     storage hooks (default: /etc/vbdkit/storage-hooks.d)\n"
    "  --hook-runner FILE  the program that runs them\n"
    "  --hook-timeout S    seconds that one of them may take (default: 10)\n"
    "  --control-fd N      a connected socket on which whoever started us speaks QMP\n"
    "  --managed           say that a daemon looks after us\n"
    "  --log-level NAME    error, warning, notice, info or debug\n"
    "  --version, --help\n";

constexpr unsigned kMaxThreads = 64;

struct Arguments {
  InstanceOptions instance;
  std::vector<std::string> vbds;
  io::EngineKind engine = io::EngineKind::kAuto;
  std::string hooks_dir = "/etc/vbdkit/storage-hooks.d";
  std::string hook_runner = VBDKIT_LIBEXECDIR "/vbdkit-hooks";
  std::string hook_timeout = "10";
  std::string user;
  Fd control;
  LogLevel log_level = LogLevel::kNotice;
  bool exit_early = false;  // --help, --version: done
};

Result<Arguments> parse_arguments(int argc, char** argv) {
  Arguments a;
  int control = -1;
  CommandLine line("vbdkit-backend", kUsage);
  line.text("spec", a.instance.spec)
      .texts("vbd", a.vbds)
      .text("uuid", a.instance.uuid)
      .text("runtime-dir", a.instance.runtime_dir)
      .flag("read-only", a.instance.read_only)
      .flag("share", a.instance.shared)
      .parsed("engine",
              [&a](const char* name) -> Result<void> {
                VBDKIT_ASSIGN(a.engine, io::parse_engine(name));
                a.instance.engine = a.engine;
                return {};
              })
      .parsed("grants",
              [&a](const char* name) -> Result<void> {
                VBDKIT_ASSIGN(a.instance.grants, blkif::parse_grant_policy(name));
                return {};
              })
      .number("threads", a.instance.threads, 1, kMaxThreads)
      .flag("no-nbd", a.instance.nbd, false)
      .text("xentop-dir", a.instance.xentop_dir)
      .text("user", a.user)
      .text("hooks-dir", a.hooks_dir)
      .text("hook-runner", a.hook_runner)
      .text("hook-timeout", a.hook_timeout)
      .parsed("control-fd",
              [&control](const char* number) -> Result<void> {
                control = std::atoi(number);
                return {};
              })
      .flag("managed", a.instance.managed)
      .log_level("log-level", a.log_level);
  VBDKIT_ASSIGN(const CommandLine::Rest rest, line.parse(argc, argv));
  a.control = Fd(control);
  a.exit_early = rest.answered;
  if (a.exit_early) return a;
  if (!rest.arguments.empty()) return unexpected_argument(rest.arguments.front());
  if (a.instance.spec.empty()) return Error(ErrorKind::kInvalid, "--spec is missing");
  if (a.instance.uuid.empty()) {
    VBDKIT_ASSIGN(a.instance.uuid, random_uuid());
  }
  if (a.instance.runtime_dir.empty())
    a.instance.runtime_dir = "/run/vbdkit/instances/" + a.instance.uuid;
  return a;
}

Result<void> become(const std::string& name, Instance& instance) {
  const passwd* user = ::getpwnam(name.c_str());
  if (user == nullptr) return Error(ErrorKind::kNotFound, "user '" + name + "' does not exist");
  // What is opened later could not be opened any more.
  VBDKIT_TRY(instance.open_xen());
  VBDKIT_TRY(instance.change_owner(user->pw_uid, user->pw_gid));
  if (::initgroups(name.c_str(), user->pw_gid) < 0 ||
      ::setresgid(user->pw_gid, user->pw_gid, user->pw_gid) < 0 ||
      ::setresuid(user->pw_uid, user->pw_uid, user->pw_uid) < 0)
    return Error::from_errno(errno, "become user " + name);
  return {};
}

// A core holds guests' data; an instance never gains rights by running another program.
void harden() {
  const rlimit none{0, 0};
  ::setrlimit(RLIMIT_CORE, &none);
  ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

// The starter learns on the control socket why there is no instance.
void report_failure(int control, const Error& error) {
  control::JsonWriter w;
  w.begin_object().field("kind", to_string(error.kind())).field("desc", error.message());
  w.end_object();
  const std::string text =
      control::qmp_greeting(VERSION) + control::qmp_event("X_VBDKIT_FAILED", w.take());
  if (control >= 0 && ::send(control, text.data(), text.size(), MSG_NOSIGNAL) < 0) return;
}

// `starter` is told of a failure until everything is open, then closed.
Result<void> serve(Arguments& arguments, Fd& starter, const Logger& log) {
  // Before we give anything up: what an admin's hooks do takes rights.
  VBDKIT_ASSIGN(arguments.instance.hooks,
                HookLink::start({.program = arguments.hook_runner,
                                 .hooks_dir = arguments.hooks_dir,
                                 .runtime_dir = arguments.instance.runtime_dir,
                                 .timeout = arguments.hook_timeout}));
  harden();
  VBDKIT_ASSIGN(const Fd signals, catch_signals({SIGTERM, SIGINT}));
  VBDKIT_ASSIGN(const auto kernel, io::Reactor::create({.engine = arguments.engine}, log));
  io::GatedReactor reactor(*kernel);
  VBDKIT_ASSIGN(
      const auto claims,
      ImageClaims::create(reactor, log, RuntimeDir::registry_of(arguments.instance.runtime_dir),
                          arguments.instance.uuid));
  arguments.instance.claims = claims.get();
  VBDKIT_ASSIGN(const auto instance, Instance::create(reactor, log, std::move(arguments.instance),
                                                      std::move(arguments.control)));
  if (!arguments.user.empty()) VBDKIT_TRY(become(arguments.user, *instance));
  for (const std::string& vbd : arguments.vbds) VBDKIT_TRY(instance->attach(vbd));
  starter.reset();

  bool asked = false;
  const auto watch = reactor.watch(signals.get(), [&] {
    signalfd_siginfo info;
    if (::read(signals.get(), &info, sizeof info) < 0) return;
    // The first asks us to drain; whoever asks again does not want to wait for storage.
    if (asked) reactor.stop();
    asked = true;
    instance->quit();
  });
  reactor.post(release_code_pages);
  auto ran = reactor.run();
  // What nodes write at their end must not be written to images that may be another host's by now.
  if (claims && !claims->may_write()) ::_exit(EXIT_FAILURE);
  return ran;
}

int run(int argc, char** argv) {
  auto arguments = parse_arguments(argc, argv);
  const Logger log("vbdkit-backend", arguments ? arguments->log_level : LogLevel::kNotice);
  if (!arguments) {
    log.error("%s", arguments.error().message().c_str());
    return 2;
  }
  if (arguments->exit_early) return 0;
  // Another descriptor of it: the instance takes the first.
  Fd starter(arguments->control.valid() ? ::fcntl(arguments->control.get(), F_DUPFD_CLOEXEC, 3)
                                        : -1);
  if (auto served = serve(*arguments, starter, log); !served) {
    log.error("%s", served.error().message().c_str());
    report_failure(starter.get(), served.error());
    return 1;
  }
  return 0;
}

}  // namespace

}  // namespace vbdkit

int main(int argc, char** argv) {
  vbdkit::survive_file_size_limit();
  return vbdkit::run(argc, argv);
}
