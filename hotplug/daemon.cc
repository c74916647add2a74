// SPDX-License-Identifier: LGPL-2.1-or-later
#include "hotplug/daemon.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "backend/runtime_dir.h"
#include "hotplug/identity.h"
#include "hotplug/params.h"
#include "storage/registry.h"

namespace vbdkit::hotplug {

namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr std::string_view kPlugin = "vbdkit";  // backendtype=vbdkit
constexpr const char* kTypes[] = {"vbd", "vbd3"};
// libxl gives a backend 10 s to answer, of which some may have gone before we look; whatever takes
// longer is told to the script, which has 40. Not at once: what a frontend may read at InitWait
// only the instance knows (its limits, the disk's properties), and one that runs reads it then.
constexpr auto kAnswerWithin = 2s;

}  // namespace

struct Daemon::Instance {
  std::unique_ptr<InstanceProcess> process;
  std::string identity;  // of its image
  bool managed = true;
  bool ended = false;
  std::set<DeviceName> served;
  Waiters gone;
};

struct Daemon::Device {
  DeviceName name;
  std::string backend;
  std::optional<drivers::GraphSpec> spec;
  bool shared = false;
  ImageUser user;
  Phase phase = Phase::kClaiming;
  std::string error;
  Instance* instance = nullptr;
  std::unique_ptr<KernelClaim> claim;
  std::unique_ptr<io::Timer> late;
  Waiters waiters;
};

const char* Daemon::to_string(Phase phase) {
  switch (phase) {
    case Phase::kClaiming:
      return "claiming";
    case Phase::kWaiting:
      return "waiting";
    case Phase::kAttaching:
      return "attaching";
    case Phase::kReady:
      return "ready";
    case Phase::kFailed:
      return "failed";
    case Phase::kGone:
      return "gone";
  }
  return "";
}

Result<std::unique_ptr<Daemon>> Daemon::create(io::Reactor& reactor, const Logger& log,
                                               DaemonOptions options) {
  std::unique_ptr<Daemon> daemon(new Daemon(reactor, log, std::move(options)));
  VBDKIT_TRY(daemon->start());
  return daemon;
}

Daemon::Daemon(io::Reactor& reactor, const Logger& log, DaemonOptions options)
    : reactor_(reactor),
      log_(log),
      options_(std::move(options)),
      instances_dir_(options_.runtime_dir + "/instances") {
  turn_.daemon = this;
  turn_.run = [](io::Deferred& self) { static_cast<Turn&>(self).daemon->examine_changed(); };
}

Daemon::~Daemon() = default;

Result<void> Daemon::start() {
  for (const std::string& dir : {options_.runtime_dir, instances_dir_}) {
    if (::mkdir(dir.c_str(), 0700) < 0 && errno != EEXIST)
      return Error::from_errno(errno, "mkdir " + dir);
  }
  VBDKIT_ASSIGN(store_, xen::XenStore::open(reactor_, log_));
  VBDKIT_ASSIGN(const std::string domid, store_->read("domid"));
  backend_root_ = "/local/domain/" + domid + "/backend";
  adopt_instances();
  for (const char* type : kTypes) VBDKIT_TRY(watch(type));
  rescan();
  for (const auto& instance : instances_) quit_if_unused(*instance);
  return {};
}

// Instances that a daemon before us has started. Their devices are found by the first scan.
void Daemon::adopt_instances() {
  const storage::Registry registry(options_.runtime_dir);
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(instances_dir_, error)) {
    const std::string dir = entry.path();
    if (!RuntimeDir::alive(dir)) {
      log_.info("%s: left by an instance that is no more", dir.c_str());
      RuntimeDir::clean(dir);
    } else if (const auto record = registry.read(entry.path().filename());
               record && record->alive) {
      adopt(*record);
    } else {
      log_.warning("%s: a live instance has no record", dir.c_str());
    }
  }
}

void Daemon::adopt(const storage::InstanceRecord& record) {
  auto instance = std::make_unique<Instance>();
  auto process = InstanceProcess::adopt(reactor_, log_, record, callbacks_for(*instance));
  if (!process) {
    log_.warning("%s: a live instance cannot be reached: %s", record.directory.c_str(),
                 process.error().message().c_str());
    return;
  }
  instance->process = std::move(*process);
  instance->managed = record.managed;
  if (const auto spec = drivers::parse_graph(instance->process->spec()))
    instance->identity = image_identity(*spec);
  for (const storage::RegisteredVbd& vbd : record.vbds) {
    if (!vbd.backend.starts_with(backend_root_ + "/")) continue;
    if (const auto name = DeviceName::parse(vbd.backend.substr(backend_root_.size() + 1)))
      instance->served.insert(*name);
  }
  log_.info("found instance %s (%s), pid %d", instance->process->uuid().c_str(),
            instance->process->spec().c_str(), instance->process->pid());
  instances_.push_back(std::move(instance));
}

// Others start instances too: `vbdkit activate`.
void Daemon::adopt_started_by_others(const drivers::GraphSpec& spec) {
  const auto found = storage::Registry(options_.runtime_dir)
                         .find_image(spec.leaf().path, storage::Registry::Where::kLeaf);
  if (!found) return;  // the image is not even there: whoever opens it says so
  for (const storage::InstanceRecord& record : *found) {
    const bool known = std::any_of(instances_.begin(), instances_.end(), [&](const auto& instance) {
      return instance->process->uuid() == record.uuid;
    });
    if (!known) adopt(record);
  }
}

Result<void> Daemon::watch(const std::string& type) {
  const std::string root = backend_root_ + "/" + type;
  VBDKIT_ASSIGN(auto watch, store_->watch(root, [this, root, type](const std::string& changed) {
    on_store_event(root, type, changed);
  }));
  watches_.push_back(std::move(watch));
  return {};
}

void Daemon::on_store_event(const std::string& root, const std::string& type,
                            const std::string& changed) {
  if (changed.size() <= root.size()) return scan(type);
  const std::string_view below = std::string_view(changed).substr(root.size() + 1);
  const size_t domid_end = below.find('/');
  const size_t devid_end = domid_end == below.npos ? below.npos : below.find('/', domid_end + 1);
  const auto name = DeviceName::parse(type + "/" + std::string(below.substr(0, devid_end)));
  if (!name) return scan(type);
  // Of the many nodes of a device these tell its story.
  const std::string_view node = devid_end == below.npos ? "" : below.substr(devid_end + 1);
  if (!node.empty() && node != "state" && node != "online") return;
  dirty_.insert(*name);
  reactor_.defer(turn_);
}

void Daemon::examine_changed() {
  for (const DeviceName& name : std::exchange(dirty_, {})) examine(name);
}

void Daemon::rescan() {
  for (const char* type : kTypes) scan(type);
}

void Daemon::scan(const std::string& type) {
  const std::string root = backend_root_ + "/" + type;
  std::set<DeviceName> names;
  for (const auto& [name, device] : devices_) {
    if (name.type == type) names.insert(name);
  }
  const auto domids = store_->list(root);
  if (domids) {
    for (const std::string& domid : *domids) {
      const auto devids = store_->list(root + "/" + domid);
      if (!devids) continue;
      for (const std::string& devid : *devids) {
        if (const auto name = DeviceName::parse(type + "/" + domid + "/" + devid))
          names.insert(*name);
      }
    }
  }
  for (const DeviceName& name : names) examine(name);
}

void Daemon::examine(const DeviceName& name) {
  const std::string backend = backend_path(name);
  const auto state = read_state(*store_, backend);
  const auto known = devices_.find(name);
  if (!state) {
    if (known != devices_.end()) gone(name);
    return;
  }
  if (known != devices_.end()) {
    Device& device = *known->second;
    const bool settled = device.phase == Phase::kReady || device.phase == Phase::kFailed ||
                         device.phase == Phase::kGone;
    if (!settled || state->state != XenbusStateInitialising) return follow(device, *state);
    gone(name);  // removed and made again before we looked
  }
  const DeviceNodes nodes = read_device(*store_, backend);
  if (is_our_script(nodes.script) || nodes.plugin == kPlugin) appeared(name, nodes, *state);
}

void Daemon::appeared(const DeviceName& name, const DeviceNodes& nodes, const DeviceState& state) {
  auto owned = std::make_unique<Device>();
  Device& device = *owned;
  devices_[name] = std::move(owned);
  device.name = name;
  device.backend = backend_path(name);
  changed();

  if (!state.online && state.state == XenbusStateClosed) {
    device.phase = Phase::kGone;
    return;
  }
  auto params = nodes.plugin == kPlugin ? parse_plugin_disk(nodes.format, nodes.params)
                                        : parse_params(name.type, nodes.params);
  if (!params) return fail(device, params.error().message());
  auto spec = drivers::parse_graph(params->spec);
  if (!spec) return fail(device, spec.error().message());
  device.spec = std::move(*spec);
  device.shared = params->shared || nodes.mode.ends_with('!');
  device.user = {.device = name.to_string(),
                 .writer = nodes.mode.starts_with('w'),
                 .shared = device.shared,
                 .machine = {}};

  for (const auto& instance : instances_) {
    if (instance->ended || !instance->served.contains(name)) continue;
    device.user.machine = machine_of(*store_, name.domid);
    attach(device, *instance);  // it serves the device already; asking again does no harm
    return;
  }
  if (state.state == XenbusStateConnected)
    return fail(device, "the instance that served the device died while vbdkitd was not running");
  if (state.state == XenbusStateClosing) return fail(device, "the device is being detached");

  device.late = reactor_.timer([this, &device] { answer_late(device); });
  device.late->arm(io::Timer::Clock::now() + kAnswerWithin);
  auto claim = KernelClaim::start(reactor_, log_, name, options_.sysfs,
                                  [this, &device](Result<KernelClaim::Outcome> outcome) {
                                    if (!outcome) return fail(device, outcome.error().message());
                                    claimed(device, *outcome);
                                  });
  device.claim = std::move(claim);
}

void Daemon::claimed(Device& device, KernelClaim::Outcome outcome) {
  if (outcome == KernelClaim::Outcome::kUnbound) {
    // Kernels before 5.6 leave Closed behind; newer ones the state their driver had written.
    const auto state = read_state(*store_, device.backend);
    if (state && state->state > XenbusStateConnected) {
      const auto reset =
          store_->write(device.backend + "/state", std::to_string(XenbusStateInitialising));
      if (!reset) return fail(device, reset.error().message());
    }
  }
  place(device);
}

// Finds the device an instance, or starts one.
void Daemon::place(Device& device) {
  const std::string identity = image_identity(*device.spec);
  const std::string spec = device.spec->to_string();
  if (!identity.empty()) adopt_started_by_others(*device.spec);
  for (const auto& instance : instances_) {
    if (instance->ended || identity.empty() || instance->identity != identity) continue;
    if (instance->process->quitting()) return wait_for_end(device);
    device.user.machine = machine_of(*store_, device.name.domid);
    const OpenImage open{.spec = instance->process->spec(),
                         .read_only = instance->process->read_only()};
    if (const auto allowed = may_join(open, users_of(*instance), spec, device.user); !allowed)
      return fail(device, allowed.error().message());
    return attach(device, *instance);
  }

  auto instance = std::make_unique<Instance>();
  instance->identity = identity;
  auto process = InstanceProcess::launch(reactor_, log_,
                                         {.program = options_.backend_program,
                                          .arguments = options_.backend_arguments,
                                          .instances_dir = instances_dir_,
                                          .spec = spec,
                                          .read_only = !device.user.writer,
                                          .shared = device.shared,
                                          .managed = true},
                                         callbacks_for(*instance));
  if (!process) return fail(device, process.error().message());
  instance->process = std::move(*process);
  instances_.push_back(std::move(instance));
  attach(device, *instances_.back());
  // For those who join later; the instance starts meanwhile.
  device.user.machine = machine_of(*store_, device.name.domid);
}

void Daemon::attach(Device& device, Instance& instance) {
  device.phase = Phase::kAttaching;
  device.instance = &instance;
  instance.served.insert(device.name);
  instance.process->attach(device.backend,
                           [this, name = device.name, &instance](Result<control::Json> answer) {
                             const auto found = devices_.find(name);
                             // It may have gone meanwhile, or come back and belong to another
                             // instance.
                             if (found == devices_.end() || found->second->instance != &instance ||
                                 found->second->phase != Phase::kAttaching || instance.ended)
                               return;
                             if (answer) return ready(*found->second);
                             if (instance.process->quitting()) return wait_for_end(*found->second);
                             // Where the process has failed, its end says why, better than a lost
                             // connection does.
                             if (answer.error().sys_errno() != EPIPE)
                               fail(*found->second, answer.error().message());
                           });
  changed();
}

// The end of the image's last instance brings us back to place().
void Daemon::wait_for_end(Device& device) {
  device.phase = Phase::kWaiting;
  device.instance = nullptr;
}

void Daemon::ready(Device& device) {
  device.phase = Phase::kReady;
  device.late.reset();
  log_.info("%s is ready (%s)", device.name.to_string().c_str(),
            device.instance->process->spec().c_str());
  answer(device.waiters,
         Ready{device.instance->process->uuid(), device.instance->process->nbd_socket()});
  changed();
}

void Daemon::fail(Device& device, const std::string& message) {
  log_.error("%s: %s", device.name.to_string().c_str(), message.c_str());
  device.phase = Phase::kFailed;
  device.error = message;
  device.late.reset();
  leave_instance(device);
  for (const auto& written : {record_error(*store_, device.backend, message),
                              answer_init_wait(*store_, device.backend)}) {
    if (!written && written.error().kind() != ErrorKind::kNotFound)
      log_.warning("%s", written.error().message().c_str());
  }
  answer(device.waiters, Error(ErrorKind::kIo, message));
  changed();
  if (const auto state = read_state(*store_, device.backend)) follow(device, *state);
}

// Opening the image takes long. libxl must not give up meanwhile; the script waits on.
void Daemon::answer_late(Device& device) {
  log_.warning("%s: the image is still being opened", device.name.to_string().c_str());
  if (auto answered = answer_init_wait(*store_, device.backend); !answered)
    log_.warning("%s", answered.error().message().c_str());
}

// An existing device has changed.
void Daemon::follow(Device& device, const DeviceState& state) {
  const bool closed = state.state == XenbusStateClosed;
  if (device.phase == Phase::kFailed && !closed &&
      (state.state == XenbusStateClosing || !state.online)) {
    if (auto answered = answer_closed(*store_, device.backend); !answered)
      log_.debug("%s", answered.error().message().c_str());
    return;
  }
  if (closed && !state.online && device.phase != Phase::kGone) {
    device.phase = Phase::kGone;
    leave_instance(device);
    changed();
  }
}

void Daemon::gone(const DeviceName& name) {
  const auto device = devices_.extract(name);
  leave_instance(*device.mapped());
  answer(device.mapped()->waiters, Error(ErrorKind::kNotFound, "the device was removed"));
  changed();
}

void Daemon::leave_instance(Device& device) {
  Instance* const instance = std::exchange(device.instance, nullptr);
  if (instance == nullptr || instance->ended) return;
  instance->process->detach(device.backend, [](Result<control::Json>) {});
  quit_if_unused(*instance);
}

void Daemon::quit_if_unused(Instance& instance) {
  if (instance.ended || !instance.managed || !users_of(instance).empty()) return;
  instance.process->quit();
}

InstanceProcess::Callbacks Daemon::callbacks_for(Instance& instance) {
  return {
      .vbd_gone = [this,
                   &instance](const std::string& backend) { instance_let_go(instance, backend); },
      .lifetime =
          [this, &instance](bool managed) {
            instance.managed = managed;
            quit_if_unused(instance);
          },
      .ended = [this, &instance](const std::string& reason) { instance_ended(instance, reason); }};
}

// The toolstack detached the device and the instance has done its part.
void Daemon::instance_let_go(Instance& instance, const std::string& backend) {
  for (const auto& [name, device] : devices_) {
    // While it attaches it is a new device of that name: answers and events come in order, so this
    // is of the one before.
    if (device->backend != backend || device->instance != &instance ||
        device->phase != Phase::kReady)
      continue;
    device->instance = nullptr;
    device->phase = Phase::kGone;
  }
  quit_if_unused(instance);
  changed();
}

void Daemon::instance_ended(Instance& instance, const std::string& reason) {
  instance.ended = true;
  // The list may change under fail() and place().
  std::vector<Device*> affected, waiting;
  for (const auto& [name, device] : devices_) {
    if (device->instance == &instance) affected.push_back(device.get());
    if (device->phase == Phase::kWaiting) waiting.push_back(device.get());
  }
  for (Device* device : affected) {
    device->instance = nullptr;
    fail(*device, reason);
  }
  for (Device* device : waiting) place(*device);
  answer(instance.gone, Ready{});
  // We are inside of its callback.
  reactor_.post([this, &instance] {
    std::erase_if(instances_, [&](const auto& i) { return i.get() == &instance; });
    changed();
  });
}

std::vector<ImageUser> Daemon::users_of(const Instance& instance) const {
  std::vector<ImageUser> users;
  for (const auto& [name, device] : devices_) {
    if (device->instance == &instance) users.push_back(device->user);
  }
  return users;
}

std::shared_ptr<Daemon::Waiter> Daemon::add_waiter(Waiters& list, std::chrono::milliseconds timeout,
                                                   std::function<void(Result<Ready>)> done,
                                                   std::string late) {
  auto waiter = std::make_shared<Waiter>();
  waiter->done = std::move(done);
  waiter->timer = reactor_.timer([weak = std::weak_ptr(waiter), late = std::move(late)] {
    const auto self = weak.lock();
    if (!self || !self->done) return;
    const auto call = std::exchange(self->done, nullptr);
    call(Error(ErrorKind::kTimedOut, late));
  });
  waiter->timer->arm(io::Timer::Clock::now() + timeout);
  std::erase_if(list, [](const auto& w) { return !w->done; });
  list.push_back(waiter);
  return waiter;
}

void Daemon::answer(Waiters& waiters, const Result<Ready>& result) {
  for (const auto& waiter : std::exchange(waiters, {})) {
    const auto call = std::exchange(waiter->done, nullptr);
    waiter->timer->cancel();
    if (call) call(result);
  }
}

void Daemon::wait_ready(const DeviceName& name, std::chrono::milliseconds timeout,
                        std::function<void(Result<Ready>)> done) {
  if (!devices_.contains(name)) examine(name);  // our watch may be behind
  const auto found = devices_.find(name);
  if (found == devices_.end())
    return done(Error(ErrorKind::kNotFound,
                      name.to_string() + ": no such device, or its script is not block-vbdkit"));
  Device& device = *found->second;
  switch (device.phase) {
    case Phase::kReady:
      return done(Ready{device.instance->process->uuid(), device.instance->process->nbd_socket()});
    case Phase::kFailed:
      return done(Error(ErrorKind::kIo, device.error));
    case Phase::kGone:
      return done(Error(ErrorKind::kNotFound, name.to_string() + ": the device was detached"));
    default:
      add_waiter(device.waiters, timeout, std::move(done),
                 device.spec->to_string() + ": opening the image takes longer than " +
                     std::to_string(timeout.count()) + " ms");
  }
}

void Daemon::wait_gone(const DeviceName& name, std::chrono::milliseconds timeout,
                       std::function<void(Result<void>)> done) {
  examine(name);
  const auto wrapped = [done = std::move(done)](Result<Ready> result) {
    if (result) return done({});
    done(std::move(result).error());
  };
  for (const auto& instance : instances_) {
    if (instance->ended || !instance->process->quitting() || !instance->served.contains(name))
      continue;
    add_waiter(instance->gone, timeout, wrapped,
               instance->process->spec() + ": its last writes are still on their way");
    return;
  }
  const auto found = devices_.find(name);
  if (found != devices_.end() && found->second->instance != nullptr)
    return wrapped(Error(ErrorKind::kBusy, name.to_string() + ": the device is in use"));
  wrapped(Ready{});
}

std::vector<Daemon::DeviceInfo> Daemon::devices() const {
  std::vector<DeviceInfo> out;
  for (const auto& [name, device] : devices_) {
    DeviceInfo info{.name = name,
                    .spec = device->spec ? device->spec->to_string() : "",
                    .state = to_string(device->phase),
                    .error = device->error,
                    .uuid = {},
                    .pid = 0,
                    .writer = device->user.writer};
    if (device->instance != nullptr) {
      info.uuid = device->instance->process->uuid();
      info.pid = device->instance->process->pid();
    }
    out.push_back(std::move(info));
  }
  return out;
}

}  // namespace vbdkit::hotplug
