// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/shared_registry.h"

#include <sys/stat.h>

#include "drivers/drivers.h"
#include "drivers/registry.h"

namespace vbdkit::storage {

namespace {

using control::Json;
using control::JsonWriter;

std::string text_of(const Json& json, const char* key) {
  return json.member(key).string().value_or("");
}

std::string one_field(const char* name, const std::string& value) {
  JsonWriter w;
  w.begin_object().field(name, value).end_object();
  return w.take();
}

HostInstance instance_of(const Json& json) {
  const Json record = json.member("record");
  HostInstance instance{text_of(json, "host"), parse_record(text_of(record, "uuid"), record), {}};
  instance.record.alive = true;  // else it would not be there
  const Json shares = json.member("shares");
  for (size_t i = 0; i < shares.size(); ++i)
    instance.shares.push_back({text_of(shares.at(i), "name"), text_of(shares.at(i), "path")});
  return instance;
}

}  // namespace

Result<std::optional<SharedRegistry>> SharedRegistry::open(const std::string& runtime_dir) {
  VBDKIT_ASSIGN(auto config, RegistryConfig::load(registry_config_path()));
  if (!config) return std::optional<SharedRegistry>();
  auto client = control::QmpClient::connect(runtime_dir + "/registry.sock");
  if (!client) return std::move(client).error().context("vbdkit-registryd does not answer");
  return std::optional<SharedRegistry>(
      SharedRegistry(std::move(*config), std::move(client).value()));
}

Result<std::vector<HostInstance>> SharedRegistry::list() {
  std::vector<HostInstance> all;
  for (std::string after;;) {
    VBDKIT_ASSIGN(const Json page, client_.execute("registry-instances",
                                                   after.empty() ? "" : one_field("after", after)));
    const Json instances = page.member("instances");
    for (size_t i = 0; i < instances.size(); ++i) all.push_back(instance_of(instances.at(i)));
    std::string next = text_of(page, "more-after");
    if (next.empty() || next <= after) return all;
    after = std::move(next);
  }
}

Result<HostInstance> SharedRegistry::find_uuid(const std::string& uuid) {
  VBDKIT_ASSIGN(const Json found, client_.execute("registry-instance", one_field("uuid", uuid)));
  return instance_of(found);
}

Result<std::vector<SharedRegistry::User>> SharedRegistry::users_of(const std::string& path) {
  std::vector<User> users;
  VBDKIT_ASSIGN(const auto image, config_.image_at(path));
  if (!image) return users;
  VBDKIT_ASSIGN(const Json found, client_.execute("registry-image", one_field("image", *image)));
  for (size_t i = 0; i < found.size(); ++i) {
    const Json user = found.at(i);
    users.push_back({text_of(user, "host"), text_of(user, "holder"), text_of(user, "mode"),
                     text_of(user, "path")});
  }
  return users;
}

Result<HostInstance> SharedRegistry::find(const std::string& text) {
  std::string path = text;
  const std::string driver = text.substr(0, text.find_first_of(",:|"));
  if (drivers::find_driver(driver) != nullptr) {
    if (const auto graph = drivers::parse_graph(text)) path = graph->leaf().path;
  }
  struct stat st {};
  if (path.find('/') == path.npos && ::stat(path.c_str(), &st) != 0) return find_uuid(text);
  VBDKIT_ASSIGN(const std::vector<User> users, users_of(path));
  for (const User& user : users) {
    if (user.mode != "write" && user.mode != "shared-write" && users.size() > 1) continue;
    if (auto instance = find_uuid(user.holder)) return instance;
  }
  return Error(ErrorKind::kNotFound, "no instance on any host has " + path + " as its disk");
}

}  // namespace vbdkit::storage
