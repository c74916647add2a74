// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The kernel's side of a device. Its xenbus makes a device in sysfs for each backend directory it
// finds in state 1, and where xen-blkback is loaded, that driver takes each "vbd". KernelClaim
// waits until our device is free of it, having unbound it there: never another device, never the
// driver. Linux: drivers/xen/xenbus/xenbus_probe{,_backend}.c, drivers/block/xen-blkback/xenbus.c.
//
// Waiting matters: the kernel's driver may look at the device after we did, so where it is loaded,
// nobody answers the device until the kernel has taken it and given it back. For "vbd3" no driver
// exists; there we wait shortly for the device itself, because xentop lists what it finds in sysfs.
//
// Thread: the reactor's. Destroying it ends the waiting.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "base/log.h"
#include "base/result.h"
#include "hotplug/device_nodes.h"
#include "io/reactor.h"

namespace vbdkit::hotplug {

class KernelClaim {
 public:
  enum class Outcome {
    kFree,     // the kernel does not care for the device
    kUnbound,  // it did until now; the driver has left its nodes behind
  };
  using Done = std::function<void(Result<Outcome> outcome)>;

  // `sysfs`: "/sys" on a real system. `done` runs from the loop, or inside start() where there is
  // nothing to wait for.
  static std::unique_ptr<KernelClaim> start(io::Reactor& reactor, const Logger& log,
                                            const DeviceName& device, const std::string& sysfs,
                                            Done done);

 private:
  using Clock = std::chrono::steady_clock;

  KernelClaim(const Logger& log, const DeviceName& device, std::string sysfs, Done done);
  // Nothing, while it is not decided yet.
  std::optional<Result<Outcome>> look();
  void tick();

  const Logger& log_;
  const DeviceName device_;
  const std::string bus_;  // <sysfs>/bus/xen-backend
  Done done_;
  Clock::time_point deadline_{};
  std::unique_ptr<io::Timer> timer_;
};

}  // namespace vbdkit::hotplug
