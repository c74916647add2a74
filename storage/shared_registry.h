// SPDX-License-Identifier: LGPL-2.1-or-later
//
// SharedRegistry: the instances of all hosts, where this one shares a registry with others
// (registry_config.h), as vbdkit-registryd tells of them. Blocks; one owner.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "backend/control/qmp_client.h"
#include "backend/registry_config.h"
#include "storage/registry.h"

namespace vbdkit::storage {

// An instance on whichever host. Its directory, and whether it lives, are that host's to know.
struct HostInstance {
  std::string host;
  InstanceRecord record;
  std::vector<RegistryConfig::Share> shares{};  // where that host has them
};

class SharedRegistry {
 public:
  struct User {
    std::string host;
    std::string holder;  // an instance's UUID, or what else works on images
    std::string mode;    // "read", "write", "shared-read", "shared-write"
    std::string path;    // of the image, there
  };

  // Nothing where the registry is this host's alone.
  static Result<std::optional<SharedRegistry>> open(const std::string& runtime_dir);

  const std::string& host() const { return config_.host; }  // this one's name
  Result<std::vector<HostInstance>> list();
  // By its UUID, or the beginning of it.
  Result<HostInstance> find_uuid(const std::string& uuid);
  // Of the image at this path; empty also where no other host can reach it.
  Result<std::vector<User>> users_of(const std::string& path);
  // An instance by its UUID, or by an image that it has as its disk.
  Result<HostInstance> find(const std::string& text);

 private:
  SharedRegistry(RegistryConfig config, control::QmpClient client)
      : config_(std::move(config)), client_(std::move(client)) {}

  RegistryConfig config_;
  control::QmpClient client_;
};

}  // namespace vbdkit::storage
