// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit activate, deactivate: an instance that a storage manager has its hand on, with or without
// a domain. Without Xen nothing more is needed; vbdkitd finds the instance when a domain wants the
// image, and leaves its end to deactivate.
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <filesystem>

#include "backend/control/qmp_client.h"
#include "backend/launch.h"
#include "backend/runtime_dir.h"
#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/instance_argument.h"
#include "storage/instances.h"
#include "storage/priority.h"

namespace vbdkit::storage {

namespace {

using Clock = std::chrono::steady_clock;

// Opening a deep chain on slow storage takes its time.
constexpr std::chrono::minutes kOpenTimeout{2};
// One that ends flushes first.
constexpr std::chrono::seconds kLastWrites{30};

// An instance has no current directory of ours.
Result<drivers::GraphSpec> absolute_spec(const std::string& text) {
  auto graph = drivers::parse_graph(text);
  if (!graph) return usage_error(graph.error().message());
  std::string& path = graph->nodes.back().path;
  if (path.empty() || path.find(':') != path.npos) return graph;  // a URI stays what it is
  std::error_code error;
  const auto absolute = std::filesystem::absolute(path, error);
  if (error) return Error::from_errno(error.value(), path);
  path = absolute.lexically_normal();
  return graph;
}

Result<void> make_directory(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) < 0 && errno != EEXIST)
    return Error::from_errno(errno, "mkdir " + path);
  return {};
}

// Where its messages go: it has no terminal.
Result<Fd> open_log(const po::variables_map& vm, const std::string& runtime_dir) {
  constexpr int kFlags = O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW;
  if (vm.count("log") != 0) return Fd::open(text_of(vm, "log"), kFlags, 0600);
  return Fd::open(runtime_dir + "/activate.log", kFlags, 0600);
}

// Answered once the image is open; an instance that cannot open it says why and ends.
Result<void> await_start(LaunchedInstance& launched) {
  auto client = control::QmpClient::adopt(std::move(launched.control), kOpenTimeout);
  auto answer = client ? client->execute("query-status", {}, kOpenTimeout)
                       : Result<control::Json>(std::move(client).error());
  if (answer) return {};
  ::kill(launched.pid, SIGKILL);  // it has failed already, or would never be found
  ::waitpid(launched.pid, nullptr, 0);
  RuntimeDir::clean(launched.directory);
  return std::move(answer).error();
}

// The instance that has the image already, if any.
Result<std::optional<InstanceRecord>> present(const Registry& registry,
                                              const drivers::GraphSpec& graph) {
  const std::string& path = graph.leaf().path;
  if (path.empty()) return std::optional<InstanceRecord>();
  auto found = registry.find_image(path, Registry::Where::kLeaf);
  if (!found || found->empty()) return std::optional<InstanceRecord>();
  if (found->size() > 1)
    return Error(ErrorKind::kBusy, path + " is shared by several instances already");
  return std::optional<InstanceRecord>(std::move(found->front()));
}

Result<std::string> start(const Registry& registry, const drivers::GraphSpec& graph,
                          const po::variables_map& vm) {
  for (const char* part : {"", "/instances"})
    VBDKIT_TRY(make_directory(registry.runtime_dir() + part));
  VBDKIT_ASSIGN(const Fd output, open_log(vm, registry.runtime_dir()));
  LaunchOptions options{.program = text_of(vm, "backend"),
                        .instances_dir = registry.runtime_dir() + "/instances",
                        .spec = graph.to_string(),
                        .read_only = vm.count("read-only") != 0,
                        .shared = vm.count("share") != 0,
                        .output = output.get()};
  for (const char* name : {"threads", "user", "log-level"}) {
    if (vm.count(name) == 0) continue;
    options.arguments.push_back(std::string("--") + name);
    options.arguments.push_back(text_of(vm, name));
  }
  VBDKIT_ASSIGN(LaunchedInstance launched, launch_instance(options));
  VBDKIT_TRY(await_start(launched));
  return launched.uuid;
}

Result<Fd> process_of(const InstanceRecord& instance) {
  Fd fd(static_cast<int>(::syscall(SYS_pidfd_open, instance.pid, 0)));
  if (!fd.valid()) return Error::from_errno(errno, title_of(instance));
  return fd;
}

Result<void> await_end(const InstanceRecord& instance, const Fd& process,
                       std::chrono::seconds timeout) {
  pollfd end{process.get(), POLLIN, 0};
  const auto deadline = Clock::now() + timeout;
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
    const int n = ::poll(&end, 1, static_cast<int>(std::max<int64_t>(0, left.count())));
    if (n > 0) return {};
    if (n == 0)
      return Error(ErrorKind::kTimedOut, title_of(instance) + " has not ended within " +
                                             std::to_string(timeout.count()) +
                                             " s; it will when nobody uses it");
    if (errno != EINTR) return Error::from_errno(errno, "poll");
  }
}

Result<int> run_activate(const po::variables_map& vm) {
  const Registry registry = registry_of(vm);
  VBDKIT_ASSIGN(const Priority priority, priority_of(vm));
  VBDKIT_ASSIGN(const drivers::GraphSpec graph, absolute_spec(text_of(vm, "SPEC")));
  VBDKIT_ASSIGN(auto known, present(registry, graph));
  if (known && known->state == "ending") {
    if (const auto process = process_of(*known))
      VBDKIT_TRY(await_end(*known, *process, kLastWrites));
    known.reset();
  }
  std::string uuid;
  if (known) {
    if (known->spec != graph.to_string())
      return Error(ErrorKind::kBusy, "the image is in use already, as " + title_of(*known));
    if (known->read_only && vm.count("read-only") == 0)
      return Error(ErrorKind::kBusy, title_of(*known) + " has the image read-only");
    VBDKIT_TRY(ask(*known, "x-vbdkit-activate"));
    uuid = known->uuid;
  } else {
    VBDKIT_ASSIGN(uuid, start(registry, graph, vm));
  }
  VBDKIT_ASSIGN(const InstanceRecord record, registry.find_uuid(uuid));
  if (vm.count("json") != 0)
    print_json(to_json(record));
  else
    std::puts(uuid.c_str());
  // Where that fails the disk is there all the same, and its UUID is printed.
  if (!priority.empty()) VBDKIT_TRY(set_priority(record.pid, uuid, priority));
  return kExitOk;
}

}  // namespace

int activate(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("activate [OPTION...] SPEC", {"SPEC"});
  const auto text = [](const char* name) { return po::value<std::string>()->value_name(name); };
  syntax.options.add_options()                                                             //
      ("read-only,r", "open the image read-only")                                          //
      ("share", "other instances that share may have it open")                             //
      ("threads", text("N"), "spread the queues of guests over so many threads")           //
      ("user", text("NAME"), "the instance becomes this user")                             //
      ("log", text("FILE"), "for the instance's messages; DIR/activate.log if not given")  //
      ("log-level", text("NAME"), "error, warning, notice, info or debug")                 //
      ("backend", text("FILE")->default_value(VBDKIT_LIBEXECDIR "/vbdkit-backend"),
       "the program that serves the image")  //
      ("json", "print the registry record");
  add_priority_options(syntax.options);
  add_runtime_dir_option(syntax.options);
  return run_command(syntax, args, log, run_activate);
}

int deactivate(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("deactivate [OPTION...] INSTANCE", {"INSTANCE"});
  syntax.options.add_options()(
      "wait", po::value<unsigned>()->value_name("SECONDS"),
      "until it has ended; without it, only an instance that nobody uses is waited for");
  add_runtime_dir_option(syntax.options);
  return run_command(syntax, args, log, [&](const po::variables_map& vm) -> Result<int> {
    VBDKIT_ASSIGN(const auto instance,
                  find_instance(registry_of(vm), text_of(vm, "INSTANCE"), log));
    VBDKIT_ASSIGN(const Fd process, process_of(instance));
    VBDKIT_ASSIGN(const auto users, ask(instance, "x-vbdkit-deactivate"));
    const bool used = users.member("vbds").number().value_or(0) != 0 ||
                      users.member("nbd-clients").number().value_or(0) != 0 ||
                      users.member("jobs").number().value_or(0) != 0;
    if (vm.count("wait") != 0)
      VBDKIT_TRY(await_end(instance, process, std::chrono::seconds(vm["wait"].as<unsigned>())));
    else if (!used)
      VBDKIT_TRY(await_end(instance, process, kLastWrites));
    else
      log.notice("%s is in use; it ends with its last user", title_of(instance).c_str());
    remove_empty_groups();
    return kExitOk;
  });
}

}  // namespace vbdkit::storage
