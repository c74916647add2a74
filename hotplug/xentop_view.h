// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Makes xentop of Xen up to 4.18 show our disks of type "vbd". Its libxenstat knows two sources
// (tools/libs/stat/xenstat_linux.c, xenstat_qmp.c): the statistics of the kernel's blkback in
// sysfs, which don't exist for us, and QEMU's block statistics: where backend/qdisk/<domid> exists
// in dom0's xenstore, it asks …/qmp-libxenstat-<domid> by QMP, and finds the disk's number by
// comparing an image's name with backend/qdisk/<domid>/<devid>/params. For a guest without a QEMU
// that place is free, so we take it. An HVM guest's is QEMU's, and its disks' numbers are not
// shown. (Where the kernel has made a device of its own for the disk, xentop lists that too,
// without numbers.)
//
// Thread: the reactor's. A fault here is logged and harms no disk.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>

#include "backend/control/qmp_server.h"
#include "backend/xen/xenstore.h"
#include "base/log.h"
#include "hotplug/daemon.h"
#include "io/reactor.h"

namespace vbdkit::hotplug {

class XentopView {
 public:
  struct Options {
    std::string xen_run_dir = "/run/xen";  // XEN_RUN_DIR of Xen's build
    std::string stats_dir = "/dev/shm";    // where instances keep their numbers
  };

  // `backend_root`: as the daemon's. Does nothing outside of dom0, where xentop does not look.
  XentopView(io::Reactor& reactor, const Logger& log, xen::XenStore& store,
             std::string backend_root, Options options);
  ~XentopView();  // takes the sockets and nodes away

  // Brings what is shown up to these devices.
  void update(std::span<const Daemon::DeviceInfo> devices);

 private:
  struct Domain {
    control::CommandTable commands;
    std::unique_ptr<control::QmpServer> server;
    std::map<std::string, pid_t> disks;  // by devid: the instance's process
  };

  bool has_own_qemu(uint16_t domid) const;
  void open(uint16_t domid, Domain& domain);
  void publish(uint16_t domid, const std::string& devid);
  void withdraw(uint16_t domid, const std::string& devid);
  void query_block(const Domain& domain, control::Reply reply) const;
  void query_blockstats(uint16_t domid, const Domain& domain, control::Reply reply) const;

  io::Reactor& reactor_;
  const Logger& log_;
  xen::XenStore& store_;
  const std::string qdisk_root_;  // "/local/domain/0/backend/qdisk"
  const bool dom0_;
  const Options options_;
  std::map<uint16_t, std::unique_ptr<Domain>> domains_;
};

}  // namespace vbdkit::hotplug
