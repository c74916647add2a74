// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/toolstack.h"

#include <cctype>
#include <map>
#include <utility>
#include <vector>

namespace vbdkit::sim {
namespace {

using Nodes = std::vector<std::pair<std::string, std::string>>;

std::string yes_no(bool b) { return b ? "1" : "0"; }

const char* type_directory(BackendType type) {
  switch (type) {
    case BackendType::kVbd:
      return "vbd";
    case BackendType::kVbd3:
    case BackendType::kPlugin:
      return "vbd3";
    case BackendType::kQdisk:
      return "qdisk";
  }
  return "";
}

Nodes backend_nodes(const Disk& disk, const DiskConfig& config) {
  Nodes nodes;
  switch (config.backend) {
    case BackendType::kVbd:
      nodes = {{"params", config.target}, {"script", config.script}};
      break;
    case BackendType::kVbd3:
      nodes = {{"params", "aio:" + config.target}, {"script", config.script}};
      break;
    case BackendType::kQdisk:
      nodes = {{"params", config.format + ":" + config.target}};
      break;
    case BackendType::kPlugin:
      nodes = {{"params", config.target}, {"plugin", config.plugin}, {"format", config.format}};
      break;
  }
  static const std::map<BackendType, std::string> kTypes{{BackendType::kVbd, "phy"},
                                                         {BackendType::kVbd3, "tap"},
                                                         {BackendType::kQdisk, "qdisk"},
                                                         {BackendType::kPlugin, "plugin"}};
  nodes.insert(nodes.end(), {{"frontend-id", std::to_string(disk.domid)},
                             {"online", "1"},
                             {"removable", yes_no(config.removable)},
                             {"bootable", "1"},
                             {"state", std::to_string(XenbusStateInitialising)},
                             {"dev", config.vdev},
                             {"type", kTypes.at(config.backend)},
                             {"mode", config.writable ? "w" : "r"},
                             {"device-type", config.cdrom ? "cdrom" : "disk"}});
  if (config.direct_io_safe) nodes.emplace_back("direct-io-safe", "1");
  nodes.emplace_back("discard-enable", yes_no(config.discard));
  nodes.emplace_back("specification", "xen");
  return nodes;
}

Nodes frontend_nodes(const Disk& disk, const DiskConfig& config) {
  Nodes nodes{{"backend", disk.backend_path},
              {"backend-id", "0"},
              {"state", std::to_string(XenbusStateInitialising)},
              {"virtual-device", std::to_string(disk.devid)},
              {"device-type", config.cdrom ? "cdrom" : "disk"},
              {"trusted", yes_no(config.trusted)}};
  if (!config.protocol.empty()) nodes.emplace_back("protocol", config.protocol);
  return nodes;
}

}  // namespace

int devid_of(const std::string& vdev) {
  size_t prefix = 0;
  for (const char* p : {"xvd", "hd", "sd"})
    if (vdev.starts_with(p)) prefix = std::string(p).size();
  if (prefix == 0) return -1;
  int disk = 0;
  size_t at = prefix;
  for (; at < vdev.size() && std::islower(static_cast<unsigned char>(vdev[at])); ++at)
    disk = disk * 26 + (vdev[at] - 'a') + 1;
  if (at == prefix) return -1;
  --disk;
  int partition = 0;
  for (; at < vdev.size(); ++at) {
    if (!std::isdigit(static_cast<unsigned char>(vdev[at]))) return -1;
    partition = partition * 10 + (vdev[at] - '0');
  }
  // docs/man/xen-vbd-interface.7: xvd up to 16 disks of 15 partitions, beyond that extended.
  if (vdev.starts_with("xvd"))
    return disk < 16 && partition < 16 ? 202 << 8 | disk << 4 | partition
                                       : 1 << 28 | disk << 8 | partition;
  if (vdev.starts_with("sd"))
    return disk < 16 && partition < 16 ? 8 << 8 | disk << 4 | partition : -1;
  if (disk >= 4 || partition >= 64) return -1;
  return (disk < 2 ? 3 : 22) << 8 | (disk & 1) << 6 | partition;
}

Result<Disk> Toolstack::attach(DomId domid, const DiskConfig& config) {
  Disk disk;
  disk.domid = domid;
  disk.devid = devid_of(config.vdev);
  if (disk.devid < 0) return Error(ErrorKind::kInvalid, "toolstack: no such vdev: " + config.vdev);
  const std::string tail = std::to_string(domid) + "/" + std::to_string(disk.devid);
  const std::string device = "/device/vbd/" + std::to_string(disk.devid);
  disk.backend_path =
      std::string("/local/domain/0/backend/") + type_directory(config.backend) + "/" + tail;
  disk.frontend_path = "/local/domain/" + std::to_string(domid) + device;
  disk.libxl_path = "/libxl/" + std::to_string(domid) + device;
  for (;;) {
    VBDKIT_ASSIGN(const Store::Transaction t, store_.begin());
    VBDKIT_TRY(write_nodes(disk, config, t));
    VBDKIT_ASSIGN(const bool committed, store_.commit(t));
    if (committed) return disk;
  }
}

Result<void> Toolstack::write_nodes(const Disk& disk, const DiskConfig& config,
                                    Store::Transaction t) {
  (void)store_.remove(disk.libxl_path, t).ok();  // what is not there need not go
  VBDKIT_TRY(store_.write(disk.libxl_path + "/frontend", disk.frontend_path, t));
  VBDKIT_TRY(store_.write(disk.libxl_path + "/backend", disk.backend_path, t));
  (void)store_.remove(disk.frontend_path, t).ok();
  VBDKIT_TRY(store_.mkdir(disk.frontend_path, t));
  VBDKIT_TRY(store_.set_permissions(disk.frontend_path, disk.domid, 0, t));
  for (const auto& [name, value] : frontend_nodes(disk, config)) {
    VBDKIT_TRY(store_.write(disk.frontend_path + "/" + name, value, t));
    VBDKIT_TRY(store_.set_permissions(disk.frontend_path + "/" + name, disk.domid, 0, t));
  }
  (void)store_.remove(disk.backend_path, t).ok();
  VBDKIT_TRY(store_.mkdir(disk.backend_path, t));
  VBDKIT_TRY(store_.set_permissions(disk.backend_path, 0, disk.domid, t));
  VBDKIT_TRY(store_.write(disk.backend_path + "/frontend", disk.frontend_path, t));
  for (const auto& [name, value] : backend_nodes(disk, config)) {
    VBDKIT_TRY(store_.write(disk.backend_path + "/" + name, value, t));
    VBDKIT_TRY(store_.write(disk.libxl_path + "/" + name, value, t));
  }
  return {};
}

Result<XenbusState> Toolstack::backend_state(const Disk& disk) {
  VBDKIT_ASSIGN(std::string state, store_.read(disk.backend_path + "/state"));
  return static_cast<XenbusState>(std::stoi(state));
}

Result<void> Toolstack::wait_backend(const Disk& disk, XenbusState state, Deadline deadline) {
  const std::string wanted = std::to_string(state);
  auto seen = store_.wait_for(
      disk.backend_path + "/state", [&](const std::string& s) { return s == wanted || s.empty(); },
      deadline);
  if (!seen) return std::move(seen).error();
  if (seen->empty())
    return Error(ErrorKind::kNotFound, "toolstack: " + disk.backend_path + " was removed");
  return {};
}

Result<void> Toolstack::request_detach(const Disk& disk, bool force) {
  for (;;) {
    VBDKIT_ASSIGN(const Store::Transaction t, store_.begin());
    if (force) VBDKIT_TRY(clean_up(disk.frontend_path, t));
    auto state = store_.read(disk.backend_path + "/state", t);
    if (state) {
      VBDKIT_TRY(store_.write(disk.backend_path + "/online", "0", t));
      // A backend that is Closed already is left so.
      if (*state != std::to_string(XenbusStateClosed))
        VBDKIT_TRY(
            store_.write(disk.backend_path + "/state", std::to_string(XenbusStateClosing), t));
    }
    VBDKIT_ASSIGN(const bool committed, store_.commit(t));
    if (committed) return {};
  }
}

Result<void> Toolstack::remove_nodes(const Disk& disk) {
  for (;;) {
    VBDKIT_ASSIGN(const Store::Transaction t, store_.begin());
    for (const auto& path : {disk.frontend_path, disk.libxl_path, disk.backend_path})
      VBDKIT_TRY(clean_up(path, t));
    VBDKIT_ASSIGN(const bool committed, store_.commit(t));
    if (committed) return {};
  }
}

Result<void> Toolstack::clean_up(std::string path, Store::Transaction t) {
  auto removed = store_.remove(path, t);
  if (!removed && removed.error().kind() != ErrorKind::kNotFound) return removed;
  for (size_t slash = path.rfind('/'); slash != 0; slash = path.rfind('/')) {
    path.resize(slash);
    auto children = store_.list(path, t);
    if (!children || !children->empty()) break;
    VBDKIT_TRY(store_.remove(path, t));
  }
  return {};
}

Result<void> Toolstack::detach(const Disk& disk, Deadline deadline) {
  VBDKIT_TRY(request_detach(disk, false));
  VBDKIT_TRY(wait_backend(disk, XenbusStateClosed, deadline));
  return remove_nodes(disk);
}

Result<void> Toolstack::detach_force(const Disk& disk, Deadline deadline) {
  VBDKIT_TRY(request_detach(disk, true));
  auto closed = wait_backend(disk, XenbusStateClosed, deadline);
  // Some backends remove their own directory once they are offline.
  if (!closed && closed.error().kind() != ErrorKind::kTimedOut &&
      closed.error().kind() != ErrorKind::kNotFound)
    return closed;
  return remove_nodes(disk);
}

Result<void> Toolstack::forget_domain(DomId domid) {
  const std::string id = std::to_string(domid);
  for (const auto& path :
       {"/local/domain/" + id, "/libxl/" + id, "/local/domain/0/backend/vbd/" + id,
        "/local/domain/0/backend/vbd3/" + id, "/local/domain/0/backend/qdisk/" + id}) {
    auto removed = store_.remove(path);
    if (!removed && removed.error().kind() != ErrorKind::kNotFound) return removed;
  }
  return {};
}

}  // namespace vbdkit::sim
