// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/world.h"

#include <fcntl.h>
#include <glob.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <thread>

namespace vbdkit::sim {
namespace {

constexpr std::chrono::seconds kStartTime{10};
constexpr char kWorldEnv[] = "SIMXEN_WORLD";

// The newest of the installed programs that match; "" if none does.
std::string newest(const char* pattern) {
  glob_t found{};
  std::string path;
  if (::glob(pattern, 0, nullptr, &found) == 0 && found.gl_pathc != 0)
    path = found.gl_pathv[found.gl_pathc - 1];
  ::globfree(&found);
  return path;
}

Result<std::string> make_directory() {
  const char* tmp = std::getenv("TMPDIR");
  std::string path = std::string(tmp == nullptr ? "/tmp" : tmp) + "/simxen-XXXXXX";
  if (::mkdtemp(path.data()) == nullptr) return Error::from_errno(errno, "simxen: mkdtemp " + path);
  return path;
}

void add(ProcessUse& use, const Counters& c) {
  use.map_calls += c.map_calls;
  use.maps += c.maps;
  use.map_failures += c.map_failures;
  use.unmap_calls += c.unmap_calls;
  use.unmaps += c.unmaps;
  use.copy_calls += c.copy_calls;
  use.copies += c.copies;
  use.copy_bytes += c.copy_bytes;
  use.copy_failures += c.copy_failures;
  use.notifies += c.notifies;
  use.deliveries += c.deliveries;
  use.pendings += c.pendings;
  use.unmasks += c.unmasks;
}

}  // namespace

std::string build_dir() {
  const char* override_dir = std::getenv("SIMXEN_DIR");
  return override_dir == nullptr ? SIMXEN_BUILD_DIR : override_dir;
}

Result<std::unique_ptr<World>> World::start(const Options& options) {
  std::unique_ptr<World> world(new World);
  VBDKIT_ASSIGN(world->dir_, make_directory());
  world->socket_path_ = world->dir_ + "/simxen.sock";
  // The broker gets a listening socket, so that nobody has to wait for it.
  VBDKIT_ASSIGN(const Fd listener, listen_socket(world->socket_path_));
  VBDKIT_ASSIGN(
      world->broker_,
      Process::start({build_dir() + "/simxen-broker", "--listen", std::to_string(listener.get()),
                      "--proc", world->dir_},
                     {.log_path = world->dir_ + "/broker.log", .inherit_fd = listener.get()}));
  const std::string xenstored = newest("/usr/lib/xen-*/bin/xenstored");
  if (xenstored.empty())
    return Error(ErrorKind::kNotFound, "simxen: no xenstored in /usr/lib/xen-*/bin");
  int ready[2];
  if (::pipe2(ready, O_CLOEXEC) != 0) return Error::from_errno(errno, "simxen: pipe");
  Fd ready_read(ready[0]);
  Fd ready_write(ready[1]);
  std::vector<std::string> argv{xenstored, "--no-fork", "--output-pid"};
  argv.insert(argv.end(), options.xenstored_args.begin(), options.xenstored_args.end());
  auto environment = world->environment();
  environment["LD_PRELOAD"] = build_dir() + "/xenlibs/libsimxen-proc.so";
  environment["SIMXEN_PROC"] = world->dir_;
  VBDKIT_ASSIGN(world->xenstored_, Process::start(argv, {.environment = environment,
                                                         .log_path = world->dir_ + "/xenstored.log",
                                                         .stdout_fd = ready_write.get()}));
  ready_write.reset();
  // It writes its pid once its socket listens and its dom0 ring is mapped.
  char byte;
  if (::read(ready_read.get(), &byte, 1) != 1)
    return Error(ErrorKind::kIo, "simxen: xenstored did not start: " + world->logs());
  VBDKIT_TRY(world->connect());
  // What xen-init-dom0 leaves behind.
  VBDKIT_TRY(world->store_->write("/local/domain/0/domid", "0"));
  VBDKIT_TRY(world->store_->write("/local/domain/0/name", "Domain-0"));
  return world;
}

Result<void> World::connect() {
  VBDKIT_ASSIGN(connection_, Connection::open(socket_path_, 0));
  VBDKIT_ASSIGN(store_, Dom0Store::open(dir_));
  toolstack_ = std::make_unique<Toolstack>(*store_);
  return {};
}

Result<std::unique_ptr<World>> World::join() {
  const char* dir = std::getenv(kWorldEnv);
  const char* socket = std::getenv(kSocketEnv);
  if (dir == nullptr || socket == nullptr)
    return Error(ErrorKind::kNotFound, std::string("simxen: ") + kWorldEnv + " and " + kSocketEnv +
                                           " are not set: start this with simxen-run");
  std::unique_ptr<World> world(new World);
  world->dir_ = dir;
  world->socket_path_ = socket;
  world->joined_ = true;
  VBDKIT_TRY(world->connect());
  return world;
}

World::~World() {
  for (auto& process : processes_) process->signal(SIGTERM);
  for (auto& process : processes_) (void)process->stop(in(kStartTime)).ok();
  guests_.clear();
  toolstack_.reset();
  store_.reset();
  connection_.reset();
  if (xenstored_ != nullptr) (void)xenstored_->stop(in(kStartTime)).ok();
  if (broker_ != nullptr) (void)broker_->stop(in(kStartTime)).ok();
  if (joined_) return;
  std::error_code ignored;
  std::filesystem::remove_all(dir_, ignored);
}

Result<Guest*> World::create_guest(const Guest::Options& options) {
  VBDKIT_ASSIGN(auto guest, Guest::create(socket_path_, *store_, options));
  guests_.push_back(std::move(guest));
  return guests_.back().get();
}

Result<void> World::destroy_guest(Guest& guest, Deadline deadline) {
  const std::string domid = std::to_string(guest.domid());
  for (const char* type : {"vbd", "vbd3", "qdisk"}) {
    const std::string backends = std::string("/local/domain/0/backend/") + type + "/" + domid;
    auto devids = store_->list(backends);
    if (!devids) continue;
    for (const auto& devid : *devids) {
      Disk disk;
      disk.domid = guest.domid();
      disk.devid = std::atoi(devid.c_str());
      disk.backend_path = backends + "/" + devid;
      disk.frontend_path = guest.path() + "/device/vbd/" + devid;
      disk.libxl_path = "/libxl/" + domid + "/device/vbd/" + devid;
      VBDKIT_TRY(toolstack_->detach_force(disk, deadline));
    }
  }
  VBDKIT_TRY(kill_guest(guest));
  return toolstack_->forget_domain(guest.domid());
}

Result<void> World::kill_guest(Guest& guest) {
  auto reply = connection_->call(Op::kDomDestroy, {guest.domid()});
  if (!reply) return std::move(reply).error();
  return {};
}

Result<void> World::shut_down(Guest& guest, uint32_t reason) {
  auto reply = connection_->call(Op::kDomShutdown, {guest.domid(), reason});
  if (!reply) return std::move(reply).error();
  return {};
}

Process::Environment World::environment() const {
  return {{"LD_LIBRARY_PATH", build_dir() + "/xenlibs"},
          {kSocketEnv, socket_path_},
          {"XENSTORED_RUNDIR", dir_},
          {kWorldEnv, dir_}};
}

Result<Process*> World::launch(const std::string& name, const std::vector<std::string>& argv,
                               const Process::Environment& more) {
  auto environment_of = environment();
  for (const auto& [variable, value] : more) environment_of[variable] = value;
  VBDKIT_ASSIGN(auto process, Process::start(argv, {.environment = environment_of,
                                                    .log_path = dir_ + "/" + name + ".log"}));
  processes_.push_back(std::move(process));
  return processes_.back().get();
}

Result<Process*> World::launch_qdisk(Guest& guest) {
  std::string qemu = newest("/usr/libexec/xen-qemu-system-i386");
  if (qemu.empty()) qemu = newest("/usr/lib/xen-*/bin/qemu-system-i386");
  if (qemu.empty()) return Error(ErrorKind::kNotFound, "simxen: no xen-qemu-system-i386");
  const std::string domid = std::to_string(guest.domid());
  return launch("qdisk-" + domid, {qemu, "-M", "xenpv", "-xen-attach", "-xen-domid", domid,
                                   "-nodefaults", "-no-user-config", "-display", "none"});
}

Result<uint32_t> World::grants_mapped(DomId domid) {
  VBDKIT_ASSIGN(auto reply,
                connection_->call(Op::kGrantsPinned, {domid, GNTTAB_NR_RESERVED_ENTRIES}));
  return reply.reply.value[0];
}

Result<uint32_t> World::grants_mapped() {
  VBDKIT_ASSIGN(auto reply,
                connection_->call(Op::kGrantsPinned, {kAny, GNTTAB_NR_RESERVED_ENTRIES}));
  return reply.reply.value[0];
}

Result<uint32_t> World::ports_open(DomId domid) {
  VBDKIT_ASSIGN(auto reply, connection_->call(Op::kPortsOpen, {domid}));
  return reply.reply.value[0];
}

Result<void> World::wait_no_grants(Deadline deadline) {
  // Pins are plain memory: there is no event to wait for.
  for (;;) {
    VBDKIT_ASSIGN(const uint32_t held, grants_mapped());
    if (held == 0) return {};
    if (std::chrono::steady_clock::now() > deadline)
      return Error(ErrorKind::kTimedOut,
                   "simxen: " + std::to_string(held) + " grants are still mapped");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

Result<std::vector<DomId>> World::zombies() {
  std::vector<DomId> out;
  for (uint32_t domid = 0;;) {
    auto reply = connection_->call(Op::kDomInfo, {domid});
    if (!reply) return out;
    const auto& value = reply->reply.value;
    if ((value[1] & kDomDying) != 0) out.push_back(static_cast<DomId>(value[0]));
    domid = value[0] + 1;
  }
}

Result<void> World::wait_no_zombies(Deadline deadline) {
  for (;;) {
    VBDKIT_ASSIGN(const auto left, zombies());
    if (left.empty()) return {};
    if (std::chrono::steady_clock::now() > deadline)
      return Error(ErrorKind::kTimedOut,
                   "simxen: " + std::to_string(left.size()) + " domains are still zombies");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

Result<pid_t> World::process_at(EvtPort port) {
  VBDKIT_ASSIGN(auto reply, connection_->call(Op::kEvtPeerPid, {port}));
  return static_cast<pid_t>(reply.reply.value[0]);
}

std::optional<ProcessUse> World::use_of(pid_t pid) {
  std::optional<ProcessUse> use;
  for (uint32_t peer = 0;;) {
    auto reply = connection_->call(Op::kPeerNext, {peer});
    if (!reply) return use;
    const auto& value = reply->reply.value;
    peer = value[0] + 1;
    if (value[1] != static_cast<uint32_t>(pid)) continue;
    auto ledger = Mapping::map(reply->fds[0], sizeof(Ledger));
    if (!ledger) return std::nullopt;
    if (!use) use.emplace();
    add(*use, ledger->as<Ledger>()->counters);
    use->ports += value[2];
    use->grants += value[3];
  }
}

std::string World::logs() const {
  std::string out;
  const auto append = [&](const Process* process) {
    if (process == nullptr) return;
    const std::string text = process->log();
    if (!text.empty()) out += "==> " + process->log_path() + "\n" + text + "\n";
  };
  append(broker_.get());
  append(xenstored_.get());
  for (const auto& process : processes_) append(process.get());
  return out;
}

}  // namespace vbdkit::sim
