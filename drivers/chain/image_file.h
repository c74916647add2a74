// SPDX-License-Identifier: LGPL-2.1-or-later
//
// ImageFile: the file or block device of an image, for those who may block: opening a layer,
// create, check, info, and the last metadata written when a layer ends. One owner, any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "base/units.h"

namespace vbdkit::drivers {

// Which file it is, however it is named.
struct FileIdentity {
  uint64_t device = 0;
  uint64_t inode = 0;
  friend auto operator<=>(const FileIdentity&, const FileIdentity&) = default;
};
// Both are there, and one file, device or directory. (std::filesystem::equivalent() takes no
// devices.)
bool same_file(const std::string& a, const std::string& b);

// Says whether a file has changed: two that are equal and settled are of the same content.
struct FileStamp {
  FileIdentity identity;
  uint64_t size = 0;     // bytes
  int64_t modified = 0;  // nanoseconds since the Epoch
  int64_t changed = 0;   // likewise
  // The file's times are older than the clock's tick in which it was looked at, so that a later
  // change will show. Never of a block device.
  bool settled = false;

  static Result<FileStamp> of(const std::string& path);
  bool looks_like(const FileStamp& later) const {
    return identity == later.identity && size == later.size && modified == later.modified &&
           changed == later.changed;
  }
  bool says_unchanged(const FileStamp& later) const { return settled && looks_like(later); }
};

class ImageFile {
 public:
  enum class Mode {
    kRead,
    kWrite,
    kCreate,  // makes the file; one that exists is refused, a block device is taken as it is
  };

  // Errors read "open PATH: reason".
  static Result<ImageFile> open(const std::string& path, Mode mode);

  const std::string& path() const { return path_; }
  bool block_device() const { return block_device_; }
  FileIdentity identity() const { return identity_; }
  int64_t modified() const { return modified_; }  // seconds since the Epoch, when it was opened

  Result<Bytes> size() const;
  // How much of the buffer was filled: less only at the end of the file.
  Result<size_t> read_some(uint64_t offset, std::span<std::byte> to) const;
  // All of the buffer, or an error that tells where the file ended.
  Result<void> read(uint64_t offset, std::span<std::byte> to) const;
  Result<void> write(uint64_t offset, std::span<const std::byte> from);
  Result<void> resize(Bytes size);  // nothing on a block device
  Result<void> flush();
  // From now on flush() does nothing (OpenOptions::ignore_flush).
  void ignore_flush() { ignore_flush_ = true; }

 private:
  ImageFile(Fd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}

  Fd fd_;
  std::string path_;
  FileIdentity identity_;
  int64_t modified_ = 0;
  bool block_device_ = false;
  bool ignore_flush_ = false;
};

}  // namespace vbdkit::drivers
