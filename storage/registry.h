// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Registry: the instances that run on this host, as their records in the runtime directory say
// (backend/runtime_dir.h). An instance lives while it holds its lock and its process is the one
// that wrote the record; what is left of a dead one is never returned by a search. Searches go
// through the index (backend/registry_index.h), so that they cost the same among 10,000 instances
// as among ten, but for part of a UUID, which reads the names of all.
//
// Records are written by instances, which may have lost their privileges for a reason: sizes are
// bounded, no link is followed, and sockets are looked for where they belong, not where a record
// says. Holds no state; blocking I/O; any thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/control/json.h"
#include "base/result.h"

namespace vbdkit::storage {

// $VBDKIT_RUNTIME_DIR, or /run/vbdkit.
std::string default_runtime_dir();

struct RegisteredImage {
  std::string format{};
  std::string path{};  // or a URI
  // As drivers::StoredImage has them; 0: no file.
  uint64_t device = 0;
  uint64_t inode = 0;
  uint32_t generation = 0;
  bool block_device = false;
  bool read_only = false;
  uint64_t size = 0;  // bytes; of the disk in it
};

struct RegisteredVbd {
  std::string backend{};  // its directory in xenstore
  uint16_t domid = 0;
  std::string devid{};  // "51712"
};

struct InstanceRecord {
  std::string directory;  // …/instances/<uuid>
  std::string uuid;
  bool alive = false;
  std::string host;
  pid_t pid = 0;
  uint64_t start_time = 0;  // of the process (base/process.h)
  std::string spec;
  std::string state;  // "running", "paused"
  bool read_only = false;
  bool shared = false;
  bool managed = false;                // vbdkitd ends it with its last disk
  uint64_t size = 0;                   // bytes; of the disk
  std::vector<RegisteredImage> chain;  // leaf first
  std::vector<RegisteredVbd> vbds;
  control::Json json;  // all of it

  std::string qmp_socket() const { return directory + "/qmp.sock"; }
  std::string nbd_socket() const { return directory + "/nbd.sock"; }
};

// What a record's text says; where it is, and whether the instance lives, it cannot say.
InstanceRecord parse_record(std::string uuid, control::Json json);

class Registry {
 public:
  enum class Where {
    kLeaf,      // the image that takes the writes
    kAnywhere,  // also as a parent
  };

  explicit Registry(std::string runtime_dir = default_runtime_dir());

  const std::string& runtime_dir() const { return runtime_dir_; }

  // All, by UUID; the dead too, whose record may be empty. No runtime directory: none.
  Result<std::vector<InstanceRecord>> list() const;

  // Living ones only. Errors are of kind kNotFound, or kInvalid where several are meant.
  Result<InstanceRecord> find_uuid(std::string_view uuid_or_prefix) const;
  // `path`: a file or device, under whatever name, or a URI as it stands in the specification.
  // Empty where no instance has it.
  Result<std::vector<InstanceRecord>> find_image(const std::string& path, Where where) const;
  std::vector<InstanceRecord> find_vbd(uint16_t domid, std::string_view devid) const;

  // The record of …/instances/<uuid>; nothing where there is no such directory.
  std::optional<InstanceRecord> read(const std::string& uuid) const;

 private:
  std::vector<InstanceRecord> find_key(const std::string& key) const;

  std::string runtime_dir_;
};

}  // namespace vbdkit::storage
