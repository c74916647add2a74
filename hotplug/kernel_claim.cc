// SPDX-License-Identifier: LGPL-2.1-or-later
#include "hotplug/kernel_claim.h"

#include <unistd.h>

#include <filesystem>
#include <utility>

#include "base/fd.h"

namespace vbdkit::hotplug {

namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

// sysfs tells nobody of new entries: inotify does not see what the kernel makes, and its uevents
// may be lost. So this is one of the few places that look again and again; a device shows up within
// a few milliseconds.
constexpr auto kInterval = 2ms;
constexpr auto kDriverDeadline = 3s;  // of libxl's 10
constexpr auto kDeviceDeadline = 250ms;

}  // namespace

KernelClaim::KernelClaim(const Logger& log, const DeviceName& device, std::string sysfs, Done done)
    : log_(log), device_(device), bus_(sysfs + "/bus/xen-backend"), done_(std::move(done)) {}

std::unique_ptr<KernelClaim> KernelClaim::start(io::Reactor& reactor, const Logger& log,
                                                const DeviceName& device, const std::string& sysfs,
                                                Done done) {
  std::unique_ptr<KernelClaim> claim(new KernelClaim(log, device, sysfs, std::move(done)));
  const bool driver = device.type == "vbd";
  claim->deadline_ = Clock::now() + (driver ? Clock::duration(kDriverDeadline) : kDeviceDeadline);
  if (auto outcome = claim->look()) {
    const Done ready = std::move(claim->done_);
    ready(std::move(*outcome));
    return claim;
  }
  claim->timer_ = reactor.timer([self = claim.get()] { self->tick(); });
  claim->timer_->arm(Clock::now() + kInterval);
  return claim;
}

std::optional<Result<KernelClaim::Outcome>> KernelClaim::look() {
  std::error_code ignored;
  const std::string device = bus_ + "/devices/" + device_.bus_id();
  const bool late = Clock::now() >= deadline_;
  if (device_.type != "vbd") {
    if (late || !fs::exists(bus_, ignored) || fs::exists(device, ignored)) return Outcome::kFree;
    return std::nullopt;
  }
  const std::string driver = bus_ + "/drivers/vbd";
  if (!fs::exists(driver, ignored)) return Outcome::kFree;
  if (!fs::is_symlink(device + "/driver", ignored)) {
    if (!late) return std::nullopt;
    log_.warning("%s: xen-blkback is loaded but has not taken the device",
                 device_.to_string().c_str());
    return Outcome::kFree;
  }
  // Only the device's own link says who has it, and only our device's name is written.
  if (fs::read_symlink(device + "/driver", ignored).filename() != "vbd") return Outcome::kFree;
  const auto fd = Fd::open(driver + "/unbind", O_WRONLY);
  if (!fd) return std::move(fd).error();
  const std::string name = device_.bus_id();
  if (::write(fd->get(), name.data(), name.size()) != static_cast<ssize_t>(name.size()))
    return Error::from_errno(errno, "unbind " + name + " from xen-blkback");
  log_.info("%s: unbound from xen-blkback", device_.to_string().c_str());
  return Outcome::kUnbound;
}

void KernelClaim::tick() {
  auto outcome = look();
  if (!outcome) return timer_->arm(Clock::now() + kInterval);
  const Done done = std::move(done_);  // may destroy us
  done(std::move(*outcome));
}

}  // namespace vbdkit::hotplug
