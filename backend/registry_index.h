// SPDX-License-Identifier: LGPL-2.1-or-later
//
// RegistryIndex: how instances are found without looking at each of them. Beside …/instances there
// is …/index, with a directory for each key and in it a link for each instance that has the key:
//     …/index/file-254:1-4711/<uuid>    has that file in its chain
//     …/index/block-253:7/<uuid>        that block device
//     …/index/uri-9ae16a3b2f90404f/<uuid>  has a thing of that URI (its hash) in its chain
//     …/index/vbd-5-51712/<uuid>        serves that disk of domain 5
// A link is a hint: whoever follows it looks whether the instance lives and has the key (its record
// says so). Links are made before the record that names their key and removed after the one that no
// longer does, so that a search misses nobody. The directories are writable for all who get there
// (an instance that has become another user keeps a descriptor), with the sticky bit; /run/vbdkit
// itself lets nobody but root in.
//
// Owned by the instance's RuntimeDir; one thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <set>
#include <string>
#include <string_view>

#include "base/fd.h"
#include "base/result.h"

namespace vbdkit {

std::string file_key(uint64_t device, uint64_t inode);
std::string block_device_key(uint64_t device);
std::string uri_key(std::string_view uri);
std::string vbd_key(uint64_t domid, std::string_view devid);

class RegistryIndex {
 public:
  // `directory` is made where it is missing.
  [[gnu::cold]] static Result<RegistryIndex> open(const std::string& directory, std::string uuid);
  RegistryIndex(RegistryIndex&&) = default;
  RegistryIndex& operator=(RegistryIndex&&) = default;

  // Links those keys that have none yet.
  [[gnu::cold]] Result<void> add(const std::set<std::string>& keys);
  // Takes all other links away.
  [[gnu::cold]] void keep_only(const std::set<std::string>& keys);
  // What add() has made.
  const std::set<std::string>& keys() const { return keys_; }
  [[gnu::cold]] void change_owner(uid_t uid, gid_t gid) const;

  // Takes the link away that `uuid` has left there.
  static void remove(int directory, const std::string& key, const std::string& uuid);

 private:
  RegistryIndex(Fd directory, std::string uuid)
      : directory_(std::move(directory)), uuid_(std::move(uuid)) {}
  Result<void> link(const std::string& key) const;

  Fd directory_;
  std::string uuid_;
  std::set<std::string> keys_;
};

}  // namespace vbdkit
