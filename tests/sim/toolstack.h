// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What libxl does to xenstore for a disk: libxl_disk.c device_disk_add() and libxl_device.c
// libxl__device_generic_add() and libxl__initiate_device_generic_remove() of Xen 4.17; vbd3 as 4.19
// and later write it. Hotplug scripts are not run here. One thread, that of its Dom0Store.
#pragma once

#include <string>

#include "base/result.h"
#include "tests/sim/store.h"
#include "tests/sim/xen_abi.h"

namespace vbdkit::sim {

// kPlugin: backend/vbd3 as a libxl with disk plugins writes it (xen-patches/),.
enum class BackendType { kVbd, kVbd3, kQdisk, kPlugin };

struct DiskConfig {
  BackendType backend = BackendType::kVbd;
  std::string vdev = "xvda";
  std::string target = {};     // vbd, plugin: params as they are; vbd3: after "aio:"; qdisk: "raw:"
  std::string format = "raw";  // qdisk's and plugins'
  std::string script = "/etc/xen/scripts/block-vbdkit";
  std::string plugin = "vbdkit";
  bool writable = true;
  bool removable = false;
  bool cdrom = false;
  bool discard = true;
  bool direct_io_safe = false;
  bool trusted = true;
  std::string protocol = {};  // libxl writes it for PV guests only; the frontend overwrites it
};

struct Disk {
  DomId domid = 0;
  int devid = 0;
  std::string backend_path;
  std::string frontend_path;
  std::string libxl_path;
};

// xvda -> 51712, hdb -> 832, sda1 -> 2049, xvdaa -> extended; -1 for what is no disk.
int devid_of(const std::string& vdev);

class Toolstack {
 public:
  explicit Toolstack(Dom0Store& store) : store_(store) {}

  Dom0Store& store() { return store_; }

  // Writes the nodes, backend and frontend in state 1, in one transaction; waits for nobody.
  Result<Disk> attach(DomId domid, const DiskConfig& config);
  Result<XenbusState> backend_state(const Disk& disk);
  // kNotFound where the directory is removed meanwhile.
  Result<void> wait_backend(const Disk& disk, XenbusState state, Deadline deadline);

  // xl block-detach: asks, waits for Closed, removes the nodes. Past the deadline the nodes stay.
  Result<void> detach(const Disk& disk, Deadline deadline);
  // xl block-detach -f and domain destroy: takes the frontend's directory away while asking; past
  // the deadline the backend's goes too, and the answer is still success, as in libxl.
  Result<void> detach_force(const Disk& disk, Deadline deadline);
  // Only asks: online=0, state=5; with the frontend's directory removed where `force`.
  Result<void> request_detach(const Disk& disk, bool force);
  Result<void> remove_nodes(const Disk& disk);
  // What is left in xenstore at a domain's end.
  Result<void> forget_domain(DomId domid);

 private:
  // Removes a path, and the directories above it that it leaves empty.
  Result<void> clean_up(std::string path, Store::Transaction t);
  Result<void> write_nodes(const Disk& disk, const DiskConfig& config, Store::Transaction t);
  Dom0Store& store_;
};

}  // namespace vbdkit::sim
