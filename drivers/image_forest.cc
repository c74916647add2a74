// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/image_forest.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>

namespace vbdkit::drivers {
namespace {

std::optional<FileIdentity> identity_of(const std::string& path) {
  struct stat st {};
  if (stat(path.c_str(), &st) != 0) return std::nullopt;
  return FileIdentity{st.st_dev, st.st_ino};
}

// Null where the content is no image that could have a parent, or cannot be read.
const ImageFormat* format_by_content_of(const std::string& path) {
  const auto fd = Fd::open(path, O_RDONLY | O_NONBLOCK);
  std::array<char, 8> head{};
  if (!fd || ::pread(fd->get(), head.data(), head.size(), 0) < 0) return nullptr;
  for (const ImageFormat& format : image_formats())
    if (!format.magic.empty() &&
        std::string_view(head.data(), head.size()).starts_with(format.magic))
      return &format;
  return nullptr;
}

Result<std::vector<std::string>> list_files(const std::string& directory) {
  std::error_code error;
  std::vector<std::string> paths;
  std::filesystem::directory_iterator it(directory, error);
  for (; !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
    std::error_code ignored;
    const std::string path = it->path().string();
    if (std::ranges::any_of(kUnfinished, [&](auto end) { return path.ends_with(end); })) continue;
    const bool image = format_by_name_of(path) != nullptr && !it->is_directory(ignored);
    if (image || it->is_regular_file(ignored)) paths.push_back(path);
  }
  if (error) return Error::from_errno(error.value(), "open " + directory);
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace

Result<ImageForest> ImageForest::scan(const std::string& directory) {
  VBDKIT_ASSIGN(const std::vector<std::string> paths, list_files(directory));
  ImageForest forest;
  for (const std::string& path : paths) {
    const ImageFormat* const named = format_by_name_of(path);
    if (named != nullptr) forest.add(path, *named);
    if (named != nullptr && !named->magic.empty()) continue;
    if (const ImageFormat* const format = format_by_content_of(path))
      forest.disguised_.push_back({path, format});
  }
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

std::vector<std::string> ImageForest::disguised_children_of(const std::string& path) const {
  std::vector<std::string> children;
  const auto identity = identity_of(path);
  for (const Disguised& one : disguised_) {
    const auto facts = one.format->inspect(one.path);
    if (!facts || !facts->parent || !identity) continue;
    if (const auto parent = identity_of(facts->parent->path); parent && *parent == *identity)
      children.push_back(one.path);
  }
  return children;
}

Error parent_of_another(const std::string& parent, const std::string& child) {
  return Error(
      ErrorKind::kBusy,
      "the parent " + parent + " is also that of " + child + ", which would change with it", EBUSY);
}

Error parent_of_disguised(const std::string& parent, const std::string& child) {
  return Error(ErrorKind::kBusy,
               child + " reads as an image that stands on " + parent +
                   ", which would change it; its name does not say so: rename it if it is one",
               EBUSY);
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
  if (const auto disguised = forest.disguised_children_of(path);
      children.empty() && !disguised.empty())
    return parent_of_disguised(path, disguised.front());
  if (children.empty()) return {};
  return Error(ErrorKind::kBusy,
               path + " is the parent of " + children.front()->path +
                   (children.size() > 1 ? " and " + std::to_string(children.size() - 1) + " more"
                                        : std::string()) +
                   ", which would change with it",
               EBUSY);
}

}  // namespace vbdkit::drivers
