// SPDX-License-Identifier: LGPL-2.1-or-later
//
// InstanceUsers: the registered instances as the users of a coalesce, asked over their control
// sockets. Blocks; one owner.
#pragma once

#include <string>
#include <vector>

#include "drivers/jobs/coalesce_users.h"
#include "storage/registry.h"

namespace vbdkit::storage {

class InstanceUsers final : public drivers::CoalesceUsers {
 public:
  explicit InstanceUsers(Registry registry) : registry_(std::move(registry)) {}

  Result<std::vector<User>> of(const std::string& path) override;
  Result<void> yield_locks(const User& user, const std::vector<std::string>& paths) override;
  Result<void> relink(const User& user, const std::string& from, const Image& to) override;
  Result<void> refresh(const User& user) override;

 private:
  Result<void> tell(const User& user, const char* command, const std::string& arguments);

  const Registry registry_;
};

}  // namespace vbdkit::storage
