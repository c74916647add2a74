// SPDX-License-Identifier: LGPL-2.1-or-later
//
// ImageSnapshot: an image's file gets another name and is not written any more; under its old name
// there is a new image that stands on it, so that whoever is configured to use the image finds it.
// The present content stays under the new name. A power cut leaves the old state or the new one;
// what was interrupted can be repeated.
// Blocks; one owner, any thread. The image is locked by the caller, or open for writing there.
#pragma once

#include <map>
#include <string>

#include "base/result.h"
#include "drivers/image_forest.h"
#include "drivers/image_format.h"
#include "drivers/registry.h"

namespace vbdkit::drivers {

class ImageSnapshot {
 public:
  // All but the exchange of the files. `name` must be in the image's directory; `options` are the
  // new image's.
  static Result<ImageSnapshot> prepare(const NodeSpec& image, const std::string& name,
                                       const std::map<std::string, std::string>& options);
  ImageSnapshot(ImageSnapshot&& other) noexcept;
  ImageSnapshot& operator=(ImageSnapshot&&) = delete;
  ~ImageSnapshot();  // what was not committed leaves nothing behind

  // The new image takes the old name; durable. Who has the file open may write on in it until the
  // new one is opened.
  Result<void> commit();
  // After commit(), before the new image was written: back to the old state.
  Result<void> undo();
  // The new image's file before commit().
  std::string fresh() const { return path_ + std::string(kNewImage); }

 private:
  ImageSnapshot(std::string path, std::string name)
      : path_(std::move(path)), name_(std::move(name)) {}
  Result<void> link_name();
  Result<void> make_fresh(const ImageFormat& format, const std::string& parent_format,
                          const std::map<std::string, std::string>& options);

  std::string path_;
  std::string name_;
  bool linked_ = false;  // by us
  bool fresh_made_ = false;
};

}  // namespace vbdkit::drivers
