// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The journal of a coalesce: how far the merging of an image into its parent has come, in a file
// beside the image ("IMAGE.coalesce"), so that whoever finds it goes on from there. It is replaced
// as a whole, and durable before the step that it tells of begins.
// Text: a line for each fact; what others named is in hexadecimal digits. Blocks; one owner.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "drivers/image_format.h"

namespace vbdkit::drivers {

// What its name ends in.
inline constexpr std::string_view kCoalesceJournal = ".coalesce";

struct CoalesceJournal {
  enum class Stage { kCopy, kRelink, kRemove };

  // An image that is put on the parent, and the writes that do it: where a power cut tears one of
  // them, its header cannot be read any more, and this is what it shall be.
  struct Child {
    std::string path;
    std::string format;
    std::vector<FilePatch> patches;
  };

  uint64_t image = 0;  // inode
  uint64_t parent = 0;
  // Nanoseconds since the Epoch, of the image when it was looked at last before a stretch was
  // copied: one that was written since is copied anew. 0: it cannot be told.
  uint64_t modified = 0;
  Stage stage = Stage::kCopy;
  uint64_t copied = 0;  // bytes of the disk that are in the parent and durable
  std::vector<Child> children;

  static std::string path_for(const std::string& image) {
    return image + std::string(kCoalesceJournal);
  }
  // Nothing where there is no journal.
  static Result<std::optional<CoalesceJournal>> load(const std::string& path);
  Result<void> save(const std::string& path) const;
  // The image gets other content, from whoever has it to himself: what was copied of it counts no
  // more. Refused where its journal has put others on its parent already.
  static Result<void> begin_anew(const std::string& image);

  std::string to_text() const;
  static Result<CoalesceJournal> parse(const std::string& text);
};

// Why something has to wait until what was begun with `image` is ended.
Error merge_unfinished(const std::string& image, const std::string& parent);

}  // namespace vbdkit::drivers
