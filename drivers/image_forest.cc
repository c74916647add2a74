// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/image_forest.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <optional>

namespace vbdkit::drivers {
namespace {

std::optional<FileIdentity> identity_of(const std::string& path) {
  struct stat st {};
  if (stat(path.c_str(), &st) != 0) return std::nullopt;
  return FileIdentity{st.st_dev, st.st_ino};
}

Result<std::vector<std::string>> list_images(const std::string& directory) {
  std::error_code error;
  std::vector<std::string> paths;
  std::filesystem::directory_iterator it(directory, error);
  for (; !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
    std::error_code ignored;
    const std::string path = it->path().string();
    if (format_by_name_of(path) != nullptr && !it->is_directory(ignored)) paths.push_back(path);
  }
  if (error) return Error::from_errno(error.value(), "open " + directory);
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace

Result<ImageForest> ImageForest::scan(const std::string& directory) {
  VBDKIT_ASSIGN(const std::vector<std::string> paths, list_images(directory));
  ImageForest forest;
  for (const std::string& path : paths) forest.add(path, *format_by_name_of(path));
  // Parents outside of the directory are added while it goes on.
  for (size_t i = 0; i < forest.images_.size(); ++i) forest.link(i);
  forest.cut_loops();
  const auto by_path = [&](size_t a, size_t b) {
    return forest.images_[a].path < forest.images_[b].path;
  };
  for (size_t i = 0; i < forest.images_.size(); ++i) {
    std::sort(forest.images_[i].children.begin(), forest.images_[i].children.end(), by_path);
    if (forest.images_[i].parent == ForestImage::kNone) forest.roots_.push_back(i);
  }
  std::sort(forest.roots_.begin(), forest.roots_.end(), by_path);
  return forest;
}

size_t ImageForest::add(const std::string& path, const ImageFormat& format) {
  const auto identity = identity_of(path);
  if (!identity) return add_missing(path, format.name);
  // Another name of a file that is known already is the same image.
  const auto [known, fresh] = by_file_.try_emplace(*identity, images_.size());
  if (!fresh) return known->second;
  ForestImage image;
  image.path = path;
  auto facts = format.inspect(path);
  if (facts) {
    image.facts = std::move(facts).value();
  } else {
    image.facts.format = format.name;
    image.problem = facts.error().message();
  }
  images_.push_back(std::move(image));
  return images_.size() - 1;
}

size_t ImageForest::add_missing(const std::string& path, const std::string& format) {
  const auto [known, fresh] = missing_.try_emplace(path, images_.size());
  if (!fresh) return known->second;
  ForestImage image;
  image.path = path;
  image.facts.format = format;
  image.missing = true;
  image.problem = "missing";
  images_.push_back(std::move(image));
  return images_.size() - 1;
}

void ImageForest::link(size_t child) {
  if (!images_[child].facts.parent) return;
  const ParentReference reference = *images_[child].facts.parent;
  const ImageFormat* const format = find_image_format(reference.format);
  if (format == nullptr) {
    images_[child].problem = reference.format.empty()
                                 ? "does not say which format its parent has"
                                 : "its parent has the unknown format " + reference.format;
    return;
  }
  const size_t parent = add(reference.path, *format);
  if (parent == child) {
    images_[child].problem = "is its own parent";
    return;
  }
  images_[child].parent = parent;
  images_[parent].children.push_back(child);
  const ForestImage& found = images_[parent];
  if (!reference.uuid.empty() && !found.missing && found.problem.empty() &&
      found.facts.uuid != reference.uuid)
    images_[child].problem = "its parent has another UUID than when it was made";
}

// An image of each loop becomes a root.
void ImageForest::cut_loops() {
  for (size_t start = 0; start < images_.size(); ++start) {
    size_t steps = 0;
    size_t at = start;
    while (at != ForestImage::kNone && steps <= images_.size()) {
      at = images_[at].parent;
      ++steps;
    }
    if (at == ForestImage::kNone) continue;
    // `at` is inside of a loop now. Whichever is first by name: so that it is always the same.
    for (size_t i = images_[at].parent, left = images_.size(); left > 0; --left) {
      if (images_[i].path < images_[at].path) at = i;
      i = images_[i].parent;
    }
    ForestImage& image = images_[at];
    image.problem = "its parents form a loop";
    std::erase(images_[image.parent].children, at);
    image.parent = ForestImage::kNone;
  }
}

std::vector<const ForestImage*> ImageForest::children_of(const std::string& path) const {
  std::vector<const ForestImage*> children;
  const auto identity = identity_of(path);
  const auto found = identity ? by_file_.find(*identity) : by_file_.end();
  if (found == by_file_.end()) return children;
  for (const size_t child : images_[found->second].children) children.push_back(&images_[child]);
  return children;
}

std::string directory_of(const std::string& path) {
  const std::string directory = std::filesystem::path(path).parent_path().string();
  return directory.empty() ? "." : directory;
}

Result<void> sync_directory(const std::string& directory) {
  VBDKIT_ASSIGN(const Fd fd, Fd::open(directory, O_RDONLY | O_DIRECTORY));
  if (::fsync(fd.get()) != 0) return Error::from_errno(errno, "flush " + directory);
  return {};
}

Result<void> check_childless(const std::string& path) {
  VBDKIT_ASSIGN(const ImageForest forest, ImageForest::scan(directory_of(path)));
  const auto children = forest.children_of(path);
  if (children.empty()) return {};
  return Error(ErrorKind::kBusy,
               path + " is the parent of " + children.front()->path +
                   (children.size() > 1 ? " and " + std::to_string(children.size() - 1) + " more"
                                        : std::string()) +
                   ", which would change with it",
               EBUSY);
}

}  // namespace vbdkit::drivers
