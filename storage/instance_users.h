// SPDX-License-Identifier: LGPL-2.1-or-later
//
// InstanceUsers: the registered instances as the users of a coalesce: this host's, asked over their
// control sockets, and those of other hosts that can reach the images (registry_config.h), found by
// their claims and asked over ssh (remote.h). Blocks; one owner.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "backend/image_claims.h"
#include "drivers/jobs/coalesce_users.h"
#include "storage/registry.h"
#include "storage/shared_registry.h"

namespace vbdkit::storage {

class InstanceUsers final : public drivers::CoalesceUsers {
 public:
  // `claims`: of the process that merges, which outlive this; nullptr where there are no other
  // hosts.
  InstanceUsers(Registry registry, ImageClaims* claims)
      : registry_(std::move(registry)), claims_(claims) {}

  Result<void> claim(const std::string& image, const std::string& parent, Phase phase) override;
  Result<void> claim_header(const std::string& path) override;
  Result<std::vector<User>> of(const std::string& path) override;
  Result<void> yield_locks(const User& user, const std::vector<std::string>& paths) override;
  Result<void> relink(const User& user, const std::string& from, const Image& to) override;
  Result<void> refresh(const User& user) override;

 private:
  Result<void> add_users_elsewhere(const std::string& path, std::vector<User>& users);
  Result<std::string> path_at(const User& user, const std::string& path) const;
  Result<void> tell(const User& user, const char* command, const std::string& arguments);

  const Registry registry_;
  ImageClaims* const claims_;
  std::map<std::string, HostInstance> elsewhere_;  // by UUID, as they were when asked for last
};

}  // namespace vbdkit::storage
