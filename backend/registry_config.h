// SPDX-License-Identifier: LGPL-2.1-or-later
//
// RegistryConfig: what /etc/vbdkit/registry.conf says of the registry that several hosts share:
//     endpoint = https://10.0.0.1:2379     may be given several times
//     ca, certificate, key = FILE          for TLS
//     prefix = /vbdkit/                    of all keys
//     host = NAME                          what this one is called there (default: its host name)
//     lease = 30                           seconds
//     share = NAME PATH                    storage that other hosts have too; several times
// `#` begins a comment. Without the file there is no such registry.
//
// And which image of that storage a file is, under whatever name: on a file system by its inode, so
// that links and renaming make no difference; a device by its name in the share's directory (a
// volume group's). Every host has to give a share the same name, and may have it at another path.
// Values only, no thread affinity.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace vbdkit {

// $VBDKIT_REGISTRY_CONF, or /etc/vbdkit/registry.conf.
std::string registry_config_path();

struct RegistryConfig {
  struct Share {
    std::string name;
    std::string path;
  };
  std::vector<std::string> endpoints;
  std::string ca;
  std::string certificate;
  std::string key;
  std::string prefix = "/vbdkit/";
  std::string host;
  std::chrono::seconds lease{30};
  std::vector<Share> shares;

  // Nothing where there is no such file.
  [[gnu::cold]] static Result<std::optional<RegistryConfig>> load(const std::string& path);
  [[gnu::cold]] static Result<RegistryConfig> parse(std::string_view text, const std::string& name);

  // The shares under the paths that are given and, where these are links, under what they lead to.
  [[gnu::cold]] std::vector<Share> roots() const;
  // What another host has at `path`, as this one has it; nothing where that is on no share of both.
  // `there`: that host's roots().
  [[gnu::cold]] std::optional<std::string> path_here(const std::string& path,
                                                     const std::vector<Share>& there) const;
  // The other way round.
  [[gnu::cold]] std::optional<std::string> path_there(const std::string& path,
                                                      const std::vector<Share>& there) const;

  // The image's name in the registry ("san1/i4711", "vg0/dlv3"); nothing where `path` is on no
  // share.
  [[gnu::cold]] Result<std::optional<std::string>> image_at(const std::string& path) const;
};

}  // namespace vbdkit
