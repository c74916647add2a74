// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit.so: the disks with backendtype=vbdkit of a libxl that has disk plugins (xen-patches/).
// libxl loads it into a process of its own for each call, see libxl_disk_plugin.h. vbdkitd does the
// work: it finds the disk in xenstore and starts an instance; the plugin says beforehand what would
// go wrong, and waits for the outcome.
#include <libxl_disk_plugin.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "drivers/image_format.h"
#include "drivers/registry.h"
#include "hotplug/daemon_client.h"
#include "hotplug/params.h"

namespace vbdkit::libxl_plugin {
namespace {

using namespace std::chrono_literals;

// Of the 40 s that libxl gives a call.
constexpr auto kStartTimeout = 30s;
constexpr auto kStopTimeout = 20s;

hotplug::DaemonClient vbdkitd() {
  const char* dir = std::getenv("VBDKIT_RUNTIME_DIR");
  return hotplug::DaemonClient(dir != nullptr ? dir : "/run/vbdkit");
}

// "/local/domain/0/backend/vbd3/1/51712" is the daemon's vbd3/1/51712.
Result<std::string> device_of(const libxl_disk_plugin_disk& disk) {
  constexpr std::string_view kBackend = "/backend/";
  const std::string_view path = disk.backend_path != nullptr ? disk.backend_path : "";
  const size_t at = path.find(kBackend);
  if (at == path.npos)
    return Error(ErrorKind::kInvalid, "'" + std::string(path) + "' is no backend's directory");
  return std::string(path.substr(at + kBackend.size()));
}

// As far as can be said without opening: the file is there, and so are those it stands on. Nothing
// is locked: whom the image may be shared with, the daemon knows.
Result<void> look_at_image(const drivers::NodeSpec& leaf, bool writable) {
  if (drivers::find_image_format(leaf.driver) == nullptr) return {};
  auto chain = drivers::inspect_chain(leaf.path, leaf.driver);
  if (chain.broken) return std::move(*chain.broken);
  if (writable && ::access(leaf.path.c_str(), W_OK) < 0)
    return Error::from_errno(errno, leaf.driver + ": write " + leaf.path);
  return {};
}

Result<void> validate(const libxl_disk_plugin_disk& disk, const libxl_disk_plugin_host&) {
  VBDKIT_ASSIGN(const auto params, hotplug::parse_plugin_disk(disk.format, disk.target));
  VBDKIT_ASSIGN(const auto graph, drivers::parse_graph(params.spec));
  VBDKIT_TRY(look_at_image(graph.leaf(), disk.writable));
  return vbdkitd().probe();
}

Result<void> start(const libxl_disk_plugin_disk& disk, const libxl_disk_plugin_host& host) {
  VBDKIT_ASSIGN(const std::string device, device_of(disk));
  VBDKIT_ASSIGN(const auto ready, vbdkitd().ask("wait-ready", device, kStartTimeout));
  if (const auto nbd = ready.member("nbd").string())
    host.local_path(&host, ("nbd+unix:///?socket=" + *nbd).c_str());
  return {};
}

Result<void> stop(const libxl_disk_plugin_disk& disk, const libxl_disk_plugin_host&) {
  VBDKIT_ASSIGN(const std::string device, device_of(disk));
  VBDKIT_TRY(vbdkitd().ask("wait-gone", device, kStopTimeout));
  return {};
}

template <Result<void> (*call)(const libxl_disk_plugin_disk&, const libxl_disk_plugin_host&)>
int answer(const libxl_disk_plugin_disk* disk, const libxl_disk_plugin_host* host) {
  const auto done = call(*disk, *host);
  if (done) return 0;
  host->error(host, "%s", done.error().message().c_str());
  return -1;
}

}  // namespace
}  // namespace vbdkit::libxl_plugin

extern "C" [[gnu::visibility("default")]] const struct libxl_disk_plugin libxl_disk_plugin = {
    .abi = LIBXL_DISK_PLUGIN_ABI,
    .size = sizeof(libxl_disk_plugin),
    .abilities =
        LIBXL_DISK_PLUGIN_WRITABLE | LIBXL_DISK_PLUGIN_CDROM | LIBXL_DISK_PLUGIN_LOCAL_PATH,
    .formats = vbdkit::hotplug::plugin_formats().data(),
    .validate = vbdkit::libxl_plugin::answer<vbdkit::libxl_plugin::validate>,
    .start = vbdkit::libxl_plugin::answer<vbdkit::libxl_plugin::start>,
    .stop = vbdkit::libxl_plugin::answer<vbdkit::libxl_plugin::stop>,
};
