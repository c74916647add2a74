// SPDX-License-Identifier: LGPL-2.1-or-later
//
// ChainSteps: the way from an image to the base it stands on, one file at a time. It says whether a
// step can be taken at all (the parent is named, is there, has a known format, was not met before)
// and tells in an error all the steps that led to it: "vhd: open /srv/leaf.vhd, its parent
// /srv/base.vhd: reason". For those who open chains and those who only look at them.
// Blocks for looking at files; one owner, any thread.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "drivers/chain/image_file.h"
#include "drivers/chain/layer.h"

namespace vbdkit::drivers {

inline constexpr size_t kMaxChainDepth = 256;  // layers

class ChainSteps {
 public:
  // `driver`: whose errors these are.
  explicit ChainSteps(std::string driver) : driver_(std::move(driver)) {}

  // The next file: the image itself first, then its parents. It belongs to paths() from then on,
  // also where it is refused.
  Result<void> add(const std::string& path);
  // Whether the parent of the last file can be the next; looked at before add().
  Result<void> check(const ParentReference& reference) const;
  // Whether the last file is the one that its child was made on.
  Result<void> check_identity(const ParentReference& reference, const std::string& uuid) const;

  // Somebody may have put an image on another parent since it was looked at, and removed the one
  // that it had. Where that can be why the next step failed: goes back to before the first file
  // from number `first` on that does not look as it did when it was added, and says which. A few
  // times only; then, and where all are as they were, none.
  std::optional<size_t> go_back(size_t first, const Error& why);

  const std::vector<std::string>& paths() const { return paths_; }
  // Of the files, from before they were opened; the last may be missing.
  const std::vector<FileStamp>& stamps() const { return stamps_; }

  Error failed(Error error) const;

 private:
  const std::string driver_;
  std::vector<std::string> paths_;
  std::vector<FileStamp> stamps_;
  unsigned tries_ = 0;
};

}  // namespace vbdkit::drivers
