// SPDX-License-Identifier: LGPL-2.1-or-later
#include "hotplug/device_nodes.h"

#include <charconv>

#include "backend/blkif/features.h"

namespace vbdkit::hotplug {

namespace {

template <typename T>
std::optional<T> to_number(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::string read_or_empty(const xen::StoreView& store, const std::string& path) {
  const auto value = store.find(path);
  return value && *value ? **value : std::string();
}

// A directory that somebody removes meanwhile must not come back by our writing into it, so every
// write looks in its own transaction whether the device is still there.
Result<void> change(
    const xen::XenStore& store, const std::string& backend,
    const std::function<Result<void>(const xen::StoreView&, unsigned state)>& body) {
  return store.transaction([&](const xen::StoreView& view) -> Result<void> {
    VBDKIT_ASSIGN(const auto state, view.find(backend + "/state"));
    if (!state) return Error(ErrorKind::kNotFound, backend + ": the device is gone");
    return body(view, to_number<unsigned>(*state).value_or(0));
  });
}

}  // namespace

std::optional<DeviceName> DeviceName::parse(std::string_view text) {
  const size_t first = text.find('/');
  const size_t second = first == text.npos ? first : text.find('/', first + 1);
  if (second == text.npos) return std::nullopt;
  const auto domid = to_number<uint16_t>(text.substr(first + 1, second - first - 1));
  const std::string_view devid = text.substr(second + 1);
  if (!domid || !to_number<uint32_t>(devid)) return std::nullopt;
  return DeviceName{std::string(text.substr(0, first)), *domid, std::string(devid)};
}

std::optional<DeviceState> read_state(const xen::StoreView& store, const std::string& backend) {
  const auto state = store.find(backend + "/state");
  if (!state || !*state) return std::nullopt;
  return DeviceState{.online = read_or_empty(store, backend + "/online") == "1",
                     .state = to_number<unsigned>(**state).value_or(0)};
}

DeviceNodes read_device(const xen::StoreView& store, const std::string& backend) {
  return {.script = read_or_empty(store, backend + "/script"),
          .params = read_or_empty(store, backend + "/params"),
          .mode = read_or_empty(store, backend + "/mode"),
          .plugin = read_or_empty(store, backend + "/plugin"),
          .format = read_or_empty(store, backend + "/format")};
}

std::string machine_of(const xen::StoreView& store, uint16_t domid) {
  std::string domain = "/local/domain/" + std::to_string(domid);
  // Only the toolstack may write these two.
  if (const std::string target = read_or_empty(store, domain + "/target"); !target.empty())
    domain = "/local/domain/" + target;
  return read_or_empty(store, domain + "/vm");
}

Result<void> answer_init_wait(const xen::XenStore& store, const std::string& backend) {
  return change(store, backend, [&](const xen::StoreView& view, unsigned state) -> Result<void> {
    if (state != XenbusStateInitialising) return {};
    VBDKIT_TRY(blkif::publish_limits(view, backend, {}));
    return view.write(backend + "/state", std::to_string(XenbusStateInitWait));
  });
}

Result<void> record_error(const xen::XenStore& store, const std::string& backend,
                          std::string_view message) {
  return change(store, backend, [&](const xen::StoreView& view, unsigned) {
    return view.write(backend + "/vbdkit/error", message);
  });
}

Result<void> answer_closed(const xen::XenStore& store, const std::string& backend) {
  return change(store, backend, [&](const xen::StoreView& view, unsigned state) -> Result<void> {
    if (state == XenbusStateClosed) return {};
    return view.write(backend + "/state", std::to_string(XenbusStateClosed));
  });
}

}  // namespace vbdkit::hotplug
