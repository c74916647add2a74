// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The daemon of one dom0 or driver domain: watches its backend directories for disks whose hotplug
// script or libxl plugin is ours, sees to it that each gets an answer well within the 10 s libxl
// waits, and keeps one instance per image, started for the first VBD and told to quit after the
// last.
//
// Devices walk: claimed from the kernel → instance found or started → attached → ready; or failed,
// with a message, from anywhere. A failed device is answered all the same (InitWait, later Closed),
// so that libxl runs the hotplug script, which tells the user what is wrong, instead of timing out.
//
// Thread: the reactor's. Losing the daemon harms no disk: a new one finds instances through their
// runtime directories and devices through xenstore.
#pragma once

#include <chrono>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "backend/xen/xenstore.h"
#include "base/log.h"
#include "base/result.h"
#include "drivers/registry.h"
#include "hotplug/device_nodes.h"
#include "hotplug/instance_process.h"
#include "hotplug/kernel_claim.h"
#include "hotplug/sharing.h"
#include "io/reactor.h"

namespace vbdkit::hotplug {

struct DaemonOptions {
  std::string runtime_dir = "/run/vbdkit";
  std::string backend_program;
  std::vector<std::string> backend_arguments;
  std::string sysfs = "/sys";
};

class Daemon {
 public:
  struct Ready {
    std::string uuid;
    std::string nbd_socket;
  };
  struct DeviceInfo {
    DeviceName name;
    std::string spec, state, error, uuid;
    pid_t pid = 0;  // of its instance, 0: none
    bool writer = false;
  };

  static Result<std::unique_ptr<Daemon>> create(io::Reactor& reactor, const Logger& log,
                                                DaemonOptions options);
  ~Daemon();

  // `done` is called once: when the device can be used, cannot, or at the deadline.
  void wait_ready(const DeviceName& device, std::chrono::milliseconds timeout,
                  std::function<void(Result<Ready>)> done);
  // When nothing of the device is left here: its instance has flushed and, if it was the last,
  // ended.
  void wait_gone(const DeviceName& device, std::chrono::milliseconds timeout,
                 std::function<void(Result<void>)> done);

  std::vector<DeviceInfo> devices() const;
  // Told after each change of what devices() answers.
  void on_change(std::function<void()> changed) { changed_ = std::move(changed); }

  // Looks at everything again.
  void rescan();

  const std::string& backend_root() const { return backend_root_; }
  xen::XenStore& store() { return *store_; }

 private:
  enum class Phase {
    kClaiming,   // until the kernel's driver is out of the way
    kWaiting,    // for the image's last instance to end
    kAttaching,  // an instance has been asked to serve it
    kReady,
    kFailed,
    kGone,  // detached; the toolstack will remove the directory
  };
  static const char* to_string(Phase phase);
  struct Instance;
  struct Device;
  struct Turn : io::Deferred {
    Daemon* daemon = nullptr;
  };
  // A caller of wait_…(), until answered. `timer` is what makes it an answer at the latest.
  struct Waiter {
    std::function<void(Result<Ready>)> done;
    std::unique_ptr<io::Timer> timer;
  };
  using Waiters = std::list<std::shared_ptr<Waiter>>;

  Daemon(io::Reactor& reactor, const Logger& log, DaemonOptions options);
  Result<void> start();
  void adopt_instances();
  void adopt(const storage::InstanceRecord& record);
  void adopt_started_by_others(const drivers::GraphSpec& spec);
  Result<void> watch(const std::string& type);

  void on_store_event(const std::string& root, const std::string& type, const std::string& changed);
  void examine_changed();
  void scan(const std::string& type);
  void examine(const DeviceName& name);

  void appeared(const DeviceName& name, const DeviceNodes& nodes, const DeviceState& state);
  void claimed(Device& device, KernelClaim::Outcome outcome);
  void place(Device& device);
  void attach(Device& device, Instance& instance);
  void wait_for_end(Device& device);
  void ready(Device& device);
  void fail(Device& device, const std::string& message);
  void answer_late(Device& device);
  void follow(Device& device, const DeviceState& state);
  void gone(const DeviceName& name);
  void leave_instance(Device& device);
  void quit_if_unused(Instance& instance);

  void instance_ended(Instance& instance, const std::string& reason);
  InstanceProcess::Callbacks callbacks_for(Instance& instance);
  void instance_let_go(Instance& instance, const std::string& backend);
  std::vector<ImageUser> users_of(const Instance& instance) const;

  std::string backend_path(const DeviceName& name) const {
    return backend_root_ + "/" + name.to_string();
  }
  std::shared_ptr<Waiter> add_waiter(Waiters& list, std::chrono::milliseconds timeout,
                                     std::function<void(Result<Ready>)> done, std::string late);
  static void answer(Waiters& waiters, const Result<Ready>& result);
  void changed() {
    if (changed_) changed_();
  }

  io::Reactor& reactor_;
  const Logger& log_;
  const DaemonOptions options_;
  const std::string instances_dir_;
  std::string backend_root_;  // "/local/domain/<us>/backend"
  std::unique_ptr<xen::XenStore> store_;
  std::vector<std::unique_ptr<xen::XenStore::Watch>> watches_;
  // Nodes of one device change together: they are looked at once, at the end of the turn.
  std::set<DeviceName> dirty_;
  Turn turn_;
  std::map<DeviceName, std::unique_ptr<Device>> devices_;
  std::list<std::unique_ptr<Instance>> instances_;
  std::function<void()> changed_;
};

}  // namespace vbdkit::hotplug
