// SPDX-License-Identifier: LGPL-2.1-or-later
//
// ImageFormat: what tools do with an image file beside reading and writing the disk in it (that is
// what nodes are for: registry.h): make it, tell about it, check it, put it on another parent.
// A format is one function, declared below and defined in the format's folder, and one line in the
// table of image_format.cc. Formats are never told by a file's content: a guest writes what it
// likes into a raw image, also another format's header.
// Blocking I/O on files that nobody has open for writing (ImageLock says so); any thread.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "base/units.h"
#include "drivers/chain/image_file.h"
#include "drivers/chain/layer.h"
#include "drivers/file_lock.h"

namespace vbdkit::drivers {

struct CreateRequest {
  std::string path;
  Bytes size{};          // 0 with a parent: the parent's
  std::string parent{};  // path, as this process would open it; "" for a base image
  std::string parent_format{};
  std::map<std::string, std::string> options{};
};

// What only one format has: for info.
struct Attribute {
  std::string name;  // "lazy-refcounts"
  std::variant<bool, uint64_t, std::string> value;
};

struct InternalSnapshot {
  std::string id;
  std::string name;
  uint64_t seconds = 0;  // since the Epoch
  Bytes size{};          // of the disk
};

struct ImageFacts {
  std::string format;
  Bytes size{};          // of the disk in it
  Bytes file_size{};     // or of the device
  Bytes allocated{};     // what the file system gave the file
  uint32_t cluster = 0;  // bytes; 0 where nothing is allocated in pieces
  std::string uuid;
  std::optional<ParentReference> parent;
  std::vector<Attribute> attributes;
  std::vector<InternalSnapshot> snapshots;
};

// Errors are contradictions: something is lost, or would be with the next write. Remains do no
// harm: space that belongs to nothing, or what a power cut left and the next writer mends.
struct CheckOutcome {
  uint64_t errors = 0;  // that are still there
  uint64_t remains = 0;
  uint64_t errors_repaired = 0;
  uint64_t remains_repaired = 0;
  Bytes leaked{};                     // still
  uint64_t clusters = 0;              // of the disk; 0 where the format has none
  uint64_t allocated = 0;             // clusters
  std::vector<std::string> messages;  // the first of what was found
};

// One write of a change of metadata; durable before the next one of the same change.
struct FilePatch {
  uint64_t offset = 0;
  std::vector<std::byte> bytes;
};

struct FormatOption {
  const char* key;
  const char* values;  // "on|off"
};

struct ImageFormat {
  const char* name;      // as drivers are called
  const char* suffixes;  // of file names: ".raw .img"
  // The first bytes of every image that has a parent; empty where none has one.
  std::string_view magic;
  std::span<const FormatOption> create_options;
  // The file must not exist; a block device is overwritten.
  Result<void> (*create)(const CreateRequest& request);
  Result<ImageFacts> (*inspect)(const std::string& path);
  // Null where there is nothing that could be wrong.
  Result<CheckOutcome> (*check)(const std::string& path, bool repair);
  // The writes that make an image with a parent stand on another one, which must read the same.
  // Null where images have no parents. A power cut between them leaves the old parent or the new
  // one, or an image that does not open until all are done again.
  Result<std::vector<FilePatch>> (*plan_parent)(const std::string& path, const std::string& parent,
                                                const std::string& parent_format);
  // Likewise, that make one stand alone, of whose parent nothing shows through; after each of them
  // the image opens, with its parent or without.
  Result<std::vector<FilePatch>> (*plan_alone)(const std::string& path);
};

std::span<const ImageFormat> image_formats();
const ImageFormat* find_image_format(std::string_view name);  // or nullptr
// By the suffix of its name, for tools that only look at images; or nullptr.
const ImageFormat* format_by_name_of(std::string_view path);

// The formats' entries, each defined in its folder.
ImageFormat raw_image_format();
ImageFormat qcow2_image_format();
ImageFormat vhd_image_format();

Result<void> apply_patches(ImageFile& file, std::span<const FilePatch> patches);

// How a parent's path is recorded in an image at `path`: as it is, or from the image's directory.
Result<std::string> absolute_parent(const std::string& parent);
Result<std::string> relative_parent(const std::string& path, const std::string& parent);

// "key=value: expected on or off"; `known` are a format's options.
Error unknown_option(std::string_view format, std::string_view key,
                     std::span<const FormatOption> known);

// For a file that takes the place of another one.
Result<void> give_owner(const std::string& path, const std::string& like);

// Size and allocation of the file itself.
Result<void> add_file_facts(const ImageFile& file, ImageFacts& facts);

// The image at `path`, its parents as they say where those are, leaf first.
struct ChainFacts {
  std::vector<std::string> paths;
  std::vector<ImageFacts> images;
  // Where the chain does not end at a base image: why, with the path of each step.
  std::optional<Error> broken;
};
ChainFacts inspect_chain(const std::string& path, const std::string& format);

// Keeps others from writing an image (kReader) or from having it open at all (kWriter), as nodes
// do, while a tool works on its file.
class ImageLock {
 public:
  // The error reads "lock PATH: in use by process 4711 (qemu)".
  static Result<ImageLock> take(const std::string& path, LockMode mode);
  // Another one instead; where that fails there is none.
  Result<void> change(LockMode mode) { return lock_image(fd_.get(), path_, mode); }
  // Of a file opened for writing: says that it is being merged into its parent.
  Result<void> mark_merging() { return vbdkit::drivers::mark_merging(fd_.get(), path_); }

 private:
  ImageLock(Fd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}
  Fd fd_;
  std::string path_;
};

}  // namespace vbdkit::drivers
