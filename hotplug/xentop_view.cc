// SPDX-License-Identifier: LGPL-2.1-or-later
#include "hotplug/xentop_view.h"

#include <unistd.h>

#include <array>
#include <optional>

#include "backend/control/unix_socket.h"
#include "base/fd.h"
#include "base/units.h"
#include "config.h"

namespace vbdkit::hotplug {

using control::Json;
using control::JsonWriter;
using control::Reply;

namespace {

// backend/blkif/xentop_page.h: two u32, then these.
struct PageFields {
  uint64_t out_of_resources;
  uint64_t reads_submitted, reads, read_sectors, read_us;
  uint64_t writes_submitted, writes, written_sectors, write_us;
  uint64_t errors, flags;
};

std::optional<PageFields> read_page(const std::string& path) {
  const auto fd = Fd::open(path, O_RDONLY);
  PageFields fields;
  if (!fd || ::pread(fd->get(), &fields, sizeof fields, 2 * sizeof(uint32_t)) !=
                 static_cast<ssize_t>(sizeof fields))
    return std::nullopt;
  return fields;
}

// libxenstat compares from the first '/' of `params` on.
std::string file_of(const std::string& devid) { return "/" + devid; }

}  // namespace

XentopView::XentopView(io::Reactor& reactor, const Logger& log, xen::XenStore& store,
                       std::string backend_root, Options options)
    : reactor_(reactor),
      log_(log),
      store_(store),
      qdisk_root_(backend_root + "/qdisk"),
      dom0_(backend_root == "/local/domain/0/backend"),
      options_(std::move(options)) {}

XentopView::~XentopView() { update({}); }

void XentopView::update(std::span<const Daemon::DeviceInfo> devices) {
  if (!dom0_) return;
  std::map<uint16_t, std::map<std::string, pid_t>> wanted;
  for (const Daemon::DeviceInfo& device : devices) {
    // Later versions of xentop find "vbd3" by themselves; dom0's own disks are no guest's.
    if (device.name.type == "vbd" && device.name.domid != 0 && device.pid != 0)
      wanted[device.name.domid][device.name.devid] = device.pid;
  }
  for (auto it = domains_.begin(); it != domains_.end();) {
    const auto still = wanted.find(it->first);
    for (const auto& [devid, pid] : it->second->disks) {
      if (still == wanted.end() || !still->second.contains(devid)) withdraw(it->first, devid);
    }
    it = still == wanted.end() ? domains_.erase(it) : std::next(it);
  }
  for (const auto& [domid, disks] : wanted) {
    auto& domain = domains_[domid];
    if (!domain) {
      domain = std::make_unique<Domain>();
      if (!has_own_qemu(domid)) open(domid, *domain);
    }
    for (const auto& [devid, pid] : disks) {
      if (domain->server && !domain->disks.contains(devid)) publish(domid, devid);
    }
    domain->disks = disks;
  }
}

// libxl starts an HVM guest's QEMU after its disks, so the socket's absence says nothing.
bool XentopView::has_own_qemu(uint16_t domid) const {
  const auto type = store_.find("/libxl/" + std::to_string(domid) + "/type");
  return type && *type == "hvm";
}

void XentopView::open(uint16_t domid, Domain& domain) {
  const std::string path = options_.xen_run_dir + "/qmp-libxenstat-" + std::to_string(domid);
  if (control::connect_unix(path)) return;  // a QEMU that serves other disks of a PV guest
  domain.commands.add("query-block", {}, [this, &domain](const Json&, Reply reply) {
    query_block(domain, std::move(reply));
  });
  domain.commands.add("query-blockstats", {}, [this, domid, &domain](const Json&, Reply reply) {
    query_blockstats(domid, domain, std::move(reply));
  });
  auto server = control::QmpServer::create(reactor_, log_, domain.commands,
                                           {.path = path, .version = VERSION});
  if (!server) return log_.info("xentop: %s", server.error().message().c_str());
  domain.server = std::move(*server);
}

void XentopView::publish(uint16_t domid, const std::string& devid) {
  const std::string node = qdisk_root_ + "/" + std::to_string(domid) + "/" + devid + "/params";
  if (auto written = store_.write(node, "vbdkit:" + file_of(devid)); !written)
    log_.info("xentop: %s", written.error().message().c_str());
}

void XentopView::withdraw(uint16_t domid, const std::string& devid) {
  const std::string domain = qdisk_root_ + "/" + std::to_string(domid);
  const auto owner = store_.find(domain + "/" + devid + "/params");
  if (!owner || !*owner || !(*owner)->starts_with("vbdkit:")) return;
  if (auto removed = store_.remove(domain + "/" + devid); !removed)
    return log_.info("xentop: %s", removed.error().message().c_str());
  // Directories that only we had filled.
  for (const std::string& dir : {domain, qdisk_root_}) {
    const auto left = store_.list(dir);
    if (!left || !left->empty() || !store_.remove(dir)) return;
  }
}

void XentopView::query_block(const Domain& domain, Reply reply) const {
  JsonWriter w;
  w.begin_array();
  for (const auto& [devid, pid] : domain.disks) {
    w.begin_object().field("device", "vbd-" + devid);
    w.key("inserted").begin_object().field("file", file_of(devid)).end_object().end_object();
  }
  w.end_array();
  reply.value(w.take());
}

void XentopView::query_blockstats(uint16_t domid, const Domain& domain, Reply reply) const {
  JsonWriter w;
  w.begin_array();
  for (const auto& [devid, pid] : domain.disks) {
    const auto page = read_page(options_.stats_dir + "/td3-" + std::to_string(pid) + "/vbd-" +
                                std::to_string(domid) + "-" + devid);
    if (!page) continue;  // not connected yet
    w.begin_object().field("device", "vbd-" + devid).key("stats").begin_object();
    w.field("rd_bytes", page->read_sectors * kSectorSize);
    w.field("wr_bytes", page->written_sectors * kSectorSize);
    w.field("rd_operations", page->reads).field("wr_operations", page->writes);
    w.end_object().end_object();
  }
  w.end_array();
  reply.value(w.take());
}

}  // namespace vbdkit::hotplug
