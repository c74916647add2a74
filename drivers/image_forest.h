// SPDX-License-Identifier: LGPL-2.1-or-later
//
// ImageForest: the images in a directory, and who is whose parent. Which files are images is told
// by the suffix of their names (image_format.h), and by images that name them as parents. An image
// that cannot be read, or whose parent is missing, is shown as such and stops nothing.
// A guest can write an image's header into its raw disk, so that files whose content says another
// thing than their name are no images here; but who changes one on which they may stand asks.
// Blocking I/O; any thread.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "drivers/image_format.h"

namespace vbdkit::drivers {

struct ForestImage {
  static constexpr size_t kNone = SIZE_MAX;

  std::string path;
  ImageFacts facts;  // only the format, where there is a problem with the image itself
  // What is wrong with it, or with what it says of its parent; empty where nothing is.
  std::string problem;
  bool missing = false;  // named as a parent, and not there
  size_t parent = kNone;
  std::vector<size_t> children;  // by path
};

class ImageForest {
 public:
  // Looks at the files of a directory, not at those of directories in it.
  static Result<ImageForest> scan(const std::string& directory);

  const std::vector<ForestImage>& images() const { return images_; }
  const std::vector<size_t>& roots() const { return roots_; }  // by path

  // Those that stand on that file.
  std::vector<const ForestImage*> children_of(const std::string& path) const;
  // Those that do by their content, though not by their names.
  std::vector<std::string> disguised_children_of(const std::string& path) const;

 private:
  struct Disguised {
    std::string path;
    const ImageFormat* format;
  };
  size_t add(const std::string& path, const ImageFormat& format);
  size_t add_missing(const std::string& path, const std::string& format);
  void link(size_t child);
  void cut_loops();

  std::vector<ForestImage> images_;
  std::map<FileIdentity, size_t> by_file_;
  std::map<std::string, size_t> missing_;
  std::vector<size_t> roots_;
  std::vector<Disguised> disguised_;
};

// What the names of files end in that a command was making when it was interrupted.
inline constexpr std::string_view kMerged = ".vbdkit-merged";  // a leaf that is in its parent
inline constexpr std::string_view kNewImage = ".vbdkit-new";   // to take the image's name
inline constexpr std::string_view kNewCoalesceJournal = ".coalesce.new";
inline constexpr std::string_view kUnfinished[] = {kNewImage, kNewCoalesceJournal,
                                                   ".vbdkit-member.new", kMerged};

// Why an image that others stand on is not to be changed.
Error parent_of_another(const std::string& parent, const std::string& child);
Error parent_of_disguised(const std::string& parent, const std::string& child);

// The directory that a file is in, as a path that can be opened.
std::string directory_of(const std::string& path);
// Makes the names of its files durable.
Result<void> sync_directory(const std::string& directory);

// Refuses a change of an image on which others in its directory stand.
Result<void> check_childless(const std::string& path);

}  // namespace vbdkit::drivers
