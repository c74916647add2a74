// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/image_snapshot.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <utility>

#include "drivers/image_forest.h"

namespace vbdkit::drivers {
namespace {

Error invalid(std::string why) { return Error(ErrorKind::kInvalid, std::move(why)); }

Result<void> rename_file(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) == 0) return {};
  return Error::from_errno(errno, "rename " + from + " to " + to);
}

}  // namespace

Result<ImageSnapshot> ImageSnapshot::prepare(const NodeSpec& image, const std::string& name,
                                             const std::map<std::string, std::string>& options) {
  const ImageFormat* const format = find_image_format(image.driver);
  if (format == nullptr || format->plan_parent == nullptr)
    return invalid(image.driver +
                   " images have no parents, so there is no snapshot of one (create --parent puts "
                   "another format over it)");
  std::error_code error;
  const std::string directory = directory_of(image.path);
  // Its parent is found from the directory it is in.
  if (!std::filesystem::equivalent(directory, directory_of(name), error))
    return invalid(name + " is not in the directory of " + image.path);
  struct stat st {};
  if (::stat(image.path.c_str(), &st) == 0 && !S_ISREG(st.st_mode))
    return invalid(image.path + " is no regular file, so it cannot get another name");
  VBDKIT_TRY(format->inspect(image.path));
  ImageSnapshot snapshot(image.path, name);
  VBDKIT_TRY(snapshot.link_name());
  VBDKIT_TRY(sync_directory(directory));
  VBDKIT_TRY(snapshot.make_fresh(*format, image.driver, options));
  return snapshot;
}

ImageSnapshot::ImageSnapshot(ImageSnapshot&& other) noexcept
    : path_(std::move(other.path_)),
      name_(std::move(other.name_)),
      linked_(std::exchange(other.linked_, false)),
      fresh_made_(std::exchange(other.fresh_made_, false)) {}

ImageSnapshot::~ImageSnapshot() {
  if (fresh_made_) ::unlink(fresh().c_str());
  if (linked_) ::unlink(name_.c_str());
}

Result<void> ImageSnapshot::link_name() {
  if (::link(path_.c_str(), name_.c_str()) == 0) {
    linked_ = true;
    return {};
  }
  const int error = errno;
  std::error_code ignored;
  // Made by a snapshot that was interrupted.
  if (error == EEXIST && std::filesystem::equivalent(path_, name_, ignored)) return {};
  return Error::from_errno(error, "link " + name_ + " to " + path_);
}

Result<void> ImageSnapshot::make_fresh(const ImageFormat& format, const std::string& parent_format,
                                       const std::map<std::string, std::string>& options) {
  // Left by one that was interrupted: nobody but us makes such names.
  ::unlink(fresh().c_str());
  CreateRequest request;
  request.path = fresh();
  // Given so, it is recorded so: the two files stay together, wherever their directory goes.
  std::error_code ignored;
  request.parent = std::filesystem::proximate(name_, ignored).string();
  if (request.parent.empty()) request.parent = name_;
  request.parent_format = parent_format;
  request.options = options;
  VBDKIT_TRY(format.create(request));
  fresh_made_ = true;
  return give_owner(fresh(), path_);
}

Result<void> ImageSnapshot::commit() {
  VBDKIT_TRY(rename_file(fresh(), path_));
  fresh_made_ = false;
  linked_ = false;  // the only name it has
  auto durable = sync_directory(directory_of(path_));
  if (!durable) VBDKIT_TRY(undo());
  return durable;
}

Result<void> ImageSnapshot::undo() {
  VBDKIT_TRY(rename_file(name_, path_));
  return sync_directory(directory_of(path_));
}

}  // namespace vbdkit::drivers
