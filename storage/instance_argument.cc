// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/instance_argument.h"

#include <sys/stat.h>

#include <charconv>
#include <optional>

#include "backend/control/qmp_client.h"
#include "backend/xen/xenstore.h"
#include "drivers/drivers.h"
#include "storage/shared_registry.h"
#include "storage/vdev.h"

namespace vbdkit::storage {

namespace {

constexpr size_t kShortUuid = 8;

std::optional<uint16_t> parse_domid(std::string_view text) {
  uint16_t domid = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), domid);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return domid;
}

Result<InstanceRecord> the_only(std::vector<InstanceRecord> found, const std::string& what) {
  if (found.size() == 1) return std::move(found.front());
  std::string message = what + " is in use by several instances:";
  for (const InstanceRecord& record : found) message += " " + record.uuid;
  return Error(ErrorKind::kInvalid, message + "; name one of them");
}

Result<InstanceRecord> find_by_image(const Registry& registry, const std::string& path) {
  VBDKIT_ASSIGN(auto leaves, registry.find_image(path, Registry::Where::kLeaf));
  if (!leaves.empty()) return the_only(std::move(leaves), path);
  VBDKIT_ASSIGN(auto users, registry.find_image(path, Registry::Where::kAnywhere));
  if (users.empty()) return Error(ErrorKind::kNotFound, "no instance has " + path + " open");
  std::string message = path + " is a parent of what is running:";
  for (const InstanceRecord& record : users) message += " " + title_of(record);
  return Error(ErrorKind::kNotFound, message);
}

Result<InstanceRecord> find_by_vbd(const Registry& registry, const std::string& text, size_t colon,
                                   uint64_t devid, const Logger& log) {
  VBDKIT_ASSIGN(const uint16_t domid, find_domain(text.substr(0, colon), log));
  auto found = registry.find_vbd(domid, std::to_string(devid));
  if (found.empty())
    return Error(ErrorKind::kNotFound, "no instance serves " + text.substr(colon + 1) +
                                           " of domain " + text.substr(0, colon));
  return the_only(std::move(found), text);
}

}  // namespace

void add_runtime_dir_option(po::options_description& options) {
  options.add_options()(
      "runtime-dir",
      po::value<std::string>()->value_name("DIR")->default_value(default_runtime_dir()),
      "where instances are registered");
}

Registry registry_of(const po::variables_map& vm) { return Registry(text_of(vm, "runtime-dir")); }

namespace {

Result<InstanceRecord> find_here(const Registry& registry, const std::string& text,
                                 const Logger& log) {
  const std::string driver = text.substr(0, text.find_first_of(",:|"));
  if (text.starts_with('{') || drivers::find_driver(driver) != nullptr) {
    const auto graph = drivers::parse_graph(text);
    if (!graph) return usage_error(graph.error().message());
    return find_by_image(registry, graph->leaf().path);
  }
  struct stat st {};
  if (text.find('/') != text.npos || ::stat(text.c_str(), &st) == 0)
    return find_by_image(registry, text);
  const size_t colon = text.rfind(':');
  if (colon != text.npos) {
    if (const auto devid = parse_vdev(std::string_view(text).substr(colon + 1)))
      return find_by_vbd(registry, text, colon, *devid, log);
    return usage_error("'" + text + "': '" + text.substr(colon + 1) +
                       "' is no disk of a guest (xvda, hda, 51712)");
  }
  return registry.find_uuid(text);
}

}  // namespace

Result<InstanceRecord> find_instance(const Registry& registry, const std::string& text,
                                     const Logger& log) {
  auto here = find_here(registry, text, log);
  if (here || here.error().kind() != ErrorKind::kNotFound) return here;
  auto shared = SharedRegistry::open(registry.runtime_dir());
  if (!shared || !*shared) return here;
  const auto elsewhere = (*shared)->find(text);
  if (!elsewhere || elsewhere->host == (*shared)->host()) return here;
  return Error(ErrorKind::kNotFound, text + " runs on host " + elsewhere->host + " as " +
                                         elsewhere->record.uuid + ": vbdkit --host " +
                                         elsewhere->host);
}

Result<uint16_t> find_domain(const std::string& name, const Logger& log) {
  if (const auto domid = parse_domid(name)) return *domid;
  VBDKIT_ASSIGN(const auto reactor, io::Reactor::create({.engine = io::EngineKind::kSync}, log));
  auto store = xen::XenStore::open(*reactor, log);
  if (!store) return Error(store.error().kind(), "domain " + name + ": " + store.error().message());
  VBDKIT_ASSIGN(const auto domids, (*store)->list("/local/domain"));
  for (const std::string& domid : domids) {
    // A domain may go away while we look.
    const auto found = (*store)->read("/local/domain/" + domid + "/name");
    const auto number = parse_domid(domid);
    if (found && *found == name && number) return *number;
  }
  return Error(ErrorKind::kNotFound, "there is no domain " + name);
}

Result<control::Json> ask(const InstanceRecord& instance, std::string_view command,
                          std::string_view arguments, std::chrono::milliseconds timeout) {
  const auto failed = [&](Error error) { return std::move(error).context(title_of(instance)); };
  auto client = control::QmpClient::connect(instance.qmp_socket());
  if (!client) return failed(std::move(client).error());
  auto answer = client->execute(command, arguments, timeout);
  if (!answer) return failed(std::move(answer).error());
  return answer;
}

std::string title_of(const InstanceRecord& instance) {
  return instance.uuid.substr(0, kShortUuid) + " (" + instance.spec + ")";
}

std::string users_of(const InstanceRecord& instance) {
  std::string text;
  for (const RegisteredVbd& vbd : instance.vbds) {
    uint64_t number = 0;
    std::from_chars(vbd.devid.data(), vbd.devid.data() + vbd.devid.size(), number);
    if (!text.empty()) text += ' ';
    text += std::to_string(vbd.domid) + ":" + vdev_name(number);
  }
  return text;
}

}  // namespace vbdkit::storage
