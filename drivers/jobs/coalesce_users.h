// SPDX-License-Identifier: LGPL-2.1-or-later
//
// CoalesceUsers: those who have images of a coalesce open and can be talked to: the registered
// instances. The job asks them for what only they can do; whoever has an image open and is not
// among them stands in its way by his lock (drivers/file_lock.h).
//
// All calls block until the user has answered. One owner, one thread.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "drivers/chain/image_file.h"

namespace vbdkit::drivers {

class CoalesceUsers {
 public:
  struct Image {
    std::string path;
    std::string format;
    FileIdentity identity;
  };
  struct User {
    std::string name;
    std::vector<Image> chain;  // leaf first
    bool read_only = false;    // the leaf too
  };

  virtual ~CoalesceUsers() = default;

  // Those that have the file open, as their leaf or as a parent.
  virtual Result<std::vector<User>> of(const std::string& path) = 0;
  // Lets a coalescer write images that the user has open for reading.
  virtual Result<void> yield_locks(const User& user, const std::vector<std::string>& paths) = 0;
  // Puts the user's leaf, which stands on `from`, on `to`.
  virtual Result<void> relink(const User& user, const std::string& from, const Image& to) = 0;
  // Has the user look again which images its chain is made of.
  virtual Result<void> refresh(const User& user) = 0;

 protected:
  CoalesceUsers() = default;
  CoalesceUsers(const CoalesceUsers&) = delete;
  CoalesceUsers& operator=(const CoalesceUsers&) = delete;
};

}  // namespace vbdkit::drivers
