// SPDX-License-Identifier: LGPL-2.1-or-later
//
// RuntimeDir: the directory in which an instance can be found, …/instances/<uuid>:
//     pid          our process id; locked (OFD) as long as we live, so a crash looks like one
//     record.json  who we are and what we have open
//     keys         our links in …/index (registry_index.h), so that others can remove them
//     qmp.sock, nbd.sock
// Made by whoever starts the instance or by the instance itself; the instance removes the files it
// made, the daemon removes the directories of the dead.
#pragma once

#include <sys/types.h>

#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "backend/registry_index.h"
#include "base/fd.h"
#include "base/result.h"

namespace vbdkit {

class RuntimeDir {
 public:
  // Makes the directory (mode 0700) where it is missing and takes its lock. One that is not named
  // …/instances/<uuid> belongs to no registry and has no index.
  [[gnu::cold]] static Result<RuntimeDir> claim(const std::string& path);
  RuntimeDir(RuntimeDir&& o) noexcept;
  RuntimeDir& operator=(RuntimeDir&&) = delete;
  ~RuntimeDir();  // removes pid and record.json, and the directory where it is empty then

  std::string file(std::string_view name) const { return path_ + "/" + std::string(name); }
  // Replaces record.json in one step; from then on the instance is found by these keys.
  [[gnu::cold]] Result<void> write_record(std::string_view json,
                                          const std::set<std::string>& keys = {});
  // The files have to belong to the user that will remove them.
  [[gnu::cold]] Result<void> change_owner(uid_t uid, gid_t gid) const;

  // Where the registry is that …/instances/<uuid> belongs to; one that is named otherwise belongs
  // to none, and uses the system's.
  static std::string registry_of(const std::string& path);
  // Whether the instance of that directory lives: its lock is held. Nothing is created, nothing in
  // the directory is trusted.
  static bool alive(const std::string& path);
  // Removes what a dead instance left in its directory, and the directory.
  static void clean(const std::string& path);

 private:
  RuntimeDir(std::string path, Fd dir, Fd lock, std::optional<RegistryIndex> index)
      : path_(std::move(path)),
        dir_(std::move(dir)),
        lock_(std::move(lock)),
        index_(std::move(index)) {}
  Result<void> replace(const std::string& name, std::string_view text) const;

  std::string path_;
  Fd dir_;  // the way to it that is left to an instance that has become another user
  Fd lock_;
  std::optional<RegistryIndex> index_;
};

}  // namespace vbdkit
