// SPDX-License-Identifier: LGPL-2.1-or-later
//
// CoalesceUsers: those who have images of a coalesce open and can be talked to: the registered
// instances, on this host and on others. The job asks them for what only they can do; whoever has
// an image open and is not among them stands in its way by his lock (drivers/file_lock.h) or, on
// another host, by his claim.
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
    std::string path;  // as this host has it
    std::string format;
    FileIdentity identity;
  };
  struct User {
    std::string name;
    std::string host;          // empty: this one
    std::vector<Image> chain;  // leaf first
    bool read_only = false;    // the leaf too
  };

  // What is about to be done with an image and its parent.
  enum class Phase {
    kAlone,   // nobody else may have one of them
    kCopy,    // others read the image; the parent they read through the image
    kRelink,  // others read both
    kRemove,  // nobody else may have the image
  };

  virtual ~CoalesceUsers() = default;

  // Other hosts are told; kBusy where one of them has what nobody else may have.
  virtual Result<void> claim(const std::string& image, const std::string& parent, Phase phase) = 0;
  // Before the header of an image is written that others may read.
  virtual Result<void> claim_header(const std::string& path) = 0;

  // Those that have the file open, as their leaf or as a parent. kBusy: somebody has it on another
  // host who cannot be talked to.
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
