// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For tests: a real block device (loop(4)) over a file, with the sector size the test wants.
#pragma once

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>

#include <string>

#include "base/fd.h"

namespace vbdkit::drivers {

class LoopDevice {
 public:
  // Needs root; the error says what is missing.
  static Result<LoopDevice> create(int backing_fd, uint32_t sector_size) {
    VBDKIT_ASSIGN(Fd control, Fd::open("/dev/loop-control", O_RDWR));
    // Between the two calls another process may take the free device.
    for (int attempt = 0; attempt < 16; ++attempt) {
      const int number = ioctl(control.get(), LOOP_CTL_GET_FREE);
      if (number < 0) return Error::from_errno(errno, "LOOP_CTL_GET_FREE");
      LoopDevice device;
      device.path_ = "/dev/loop" + std::to_string(number);
      VBDKIT_ASSIGN(device.fd_, Fd::open(device.path_, O_RDWR));
      loop_config config{};
      config.fd = static_cast<uint32_t>(backing_fd);
      config.block_size = sector_size;
      config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
      if (ioctl(device.fd_.get(), LOOP_CONFIGURE, &config) == 0) return device;
      if (errno != EBUSY) return Error::from_errno(errno, "LOOP_CONFIGURE " + device.path_);
    }
    return Error(ErrorKind::kBusy, "no free loop device");
  }

  const std::string& path() const { return path_; }

 private:
  LoopDevice() = default;

  Fd fd_;  // the device detaches from its file when the last descriptor is closed
  std::string path_;
};

}  // namespace vbdkit::drivers
