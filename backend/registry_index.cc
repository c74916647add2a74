// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/registry_index.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <array>
#include <charconv>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace vbdkit {

namespace {

constexpr mode_t kShared = 01777;

std::string device_number(uint64_t device) {
  return std::to_string(major(device)) + ":" + std::to_string(minor(device));
}

// A directory that others may write to as well; mkdir(2) alone obeys the umask.
Result<void> make_shared(int at, const char* name) {
  if (::mkdirat(at, name, kShared) < 0)
    return errno == EEXIST ? Result<void>()
                           : Error::from_errno(errno, "mkdir " + std::string(name));
  if (::fchmodat(at, name, kShared, 0) < 0)
    return Error::from_errno(errno, "chmod " + std::string(name));
  return {};
}

}  // namespace

std::string file_key(uint64_t device, uint64_t inode) {
  return "file-" + device_number(device) + "-" + std::to_string(inode);
}

std::string block_device_key(uint64_t device) { return "block-" + device_number(device); }

std::string uri_key(std::string_view uri) {
  std::array<char, 16> digits;
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(),
                                 XXH3_64bits(uri.data(), uri.size()), 16)
                       .ptr;
  return "uri-" + std::string(digits.data(), end);
}

std::string vbd_key(uint64_t domid, std::string_view devid) {
  return "vbd-" + std::to_string(domid) + "-" + std::string(devid);
}

Result<RegistryIndex> RegistryIndex::open(const std::string& directory, std::string uuid) {
  VBDKIT_TRY(make_shared(AT_FDCWD, directory.c_str()));
  VBDKIT_ASSIGN(Fd fd, Fd::open(directory, O_PATH | O_DIRECTORY | O_NOFOLLOW));
  return RegistryIndex(std::move(fd), std::move(uuid));
}

Result<void> RegistryIndex::add(const std::set<std::string>& keys) {
  for (const std::string& key : keys) {
    if (keys_.contains(key)) continue;
    VBDKIT_TRY(link(key));
    keys_.insert(key);
  }
  return {};
}

Result<void> RegistryIndex::link(const std::string& key) const {
  const std::string target = "../../instances/" + uuid_;
  const std::string name = key + "/" + uuid_;
  for (;;) {
    if (::symlinkat(target.c_str(), directory_.get(), name.c_str()) == 0 || errno == EEXIST)
      return {};
    // The last of others that had the key may take the directory away between our two calls.
    if (errno != ENOENT) return Error::from_errno(errno, "registry: link " + name);
    VBDKIT_TRY(make_shared(directory_.get(), key.c_str()));
  }
}

void RegistryIndex::keep_only(const std::set<std::string>& keys) {
  for (auto it = keys_.begin(); it != keys_.end();) {
    if (keys.contains(*it)) {
      ++it;
      continue;
    }
    remove(directory_.get(), *it, uuid_);
    it = keys_.erase(it);
  }
}

void RegistryIndex::change_owner(uid_t uid, gid_t gid) const {
  // Where this fails the links are left for the daemon to remove.
  for (const std::string& key : keys_) {
    for (const std::string& name : {key, key + "/" + uuid_}) {
      if (::fchownat(directory_.get(), name.c_str(), uid, gid, AT_SYMLINK_NOFOLLOW) < 0) return;
    }
  }
}

void RegistryIndex::remove(int directory, const std::string& key, const std::string& uuid) {
  const Fd at(::openat(directory, key.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!at.valid()) return;
  ::unlinkat(at.get(), uuid.c_str(), 0);
  ::unlinkat(directory, key.c_str(), AT_REMOVEDIR);  // refused while others are in it
}

}  // namespace vbdkit
