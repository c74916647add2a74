// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/image_format.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "drivers/chain/chain_steps.h"
#include "drivers/group_snapshot.h"

namespace vbdkit::drivers {

std::span<const ImageFormat> image_formats() {
  static const ImageFormat table[] = {
      qcow2_image_format(),
      raw_image_format(),
      vhd_image_format(),
  };
  return table;
}

const ImageFormat* find_image_format(std::string_view name) {
  for (const ImageFormat& format : image_formats())
    if (name == format.name) return &format;
  return nullptr;
}

const ImageFormat* format_by_name_of(std::string_view path) {
  const size_t dot = path.rfind('.');
  if (dot == std::string_view::npos || path.find('/', dot) != std::string_view::npos)
    return nullptr;
  const std::string suffix = std::string(path.substr(dot)) + " ";
  for (const ImageFormat& format : image_formats())
    if ((std::string(format.suffixes) + " ").find(suffix) != std::string::npos) return &format;
  return nullptr;
}

Result<void> apply_patches(ImageFile& file, std::span<const FilePatch> patches) {
  for (const FilePatch& patch : patches) {
    VBDKIT_TRY(file.write(patch.offset, patch.bytes));
    VBDKIT_TRY(file.flush());
  }
  return {};
}

namespace {

// With the directory's real name, and its own name as it is: it may be a link on purpose.
Result<std::filesystem::path> settled_path(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::path directory = fs::path(path).parent_path();
  const fs::path real = fs::canonical(directory.empty() ? "." : directory, error);
  if (error) return Error::from_errno(error.value(), "open " + path);
  return real / fs::path(path).filename();
}

}  // namespace

Result<std::string> absolute_parent(const std::string& parent) {
  VBDKIT_ASSIGN(const std::filesystem::path path, settled_path(parent));
  return path.string();
}

Result<std::string> relative_parent(const std::string& path, const std::string& parent) {
  VBDKIT_ASSIGN(const std::filesystem::path from, settled_path(path));
  VBDKIT_ASSIGN(const std::filesystem::path to, settled_path(parent));
  const std::string relative = to.lexically_relative(from.parent_path()).string();
  // Else it would look like a protocol's name.
  return relative.find(':') < relative.find('/') ? "./" + relative : relative;
}

Error unknown_option(std::string_view format, std::string_view key,
                     std::span<const FormatOption> known) {
  std::string text = std::string(format) + ": unknown option '" + std::string(key) + "' (known:";
  for (const FormatOption& option : known)
    text += std::string(" ") + option.key + "=" + option.values;
  return Error(ErrorKind::kInvalid, text + ")");
}

Result<void> give_owner(const std::string& path, const std::string& like) {
  struct stat st {};
  if (::stat(like.c_str(), &st) != 0) return Error::from_errno(errno, "stat " + like);
  if (::chown(path.c_str(), st.st_uid, st.st_gid) != 0 || ::chmod(path.c_str(), st.st_mode) != 0)
    return Error::from_errno(errno, "give " + path + " the owner and mode of " + like);
  return {};
}

Result<void> add_file_facts(const ImageFile& file, ImageFacts& facts) {
  VBDKIT_ASSIGN(facts.file_size, file.size());
  struct stat st {};
  if (stat(file.path().c_str(), &st) != 0) return Error::from_errno(errno, "stat " + file.path());
  facts.allocated =
      file.block_device() ? facts.file_size : Bytes{static_cast<uint64_t>(st.st_blocks) * 512};
  return {};
}

namespace {

Result<void> add_image(ChainFacts& chain, ChainSteps& steps, const std::string& path,
                       const std::string& format) {
  VBDKIT_TRY(steps.add(path));
  const ImageFormat* const known = find_image_format(format);
  if (known == nullptr)
    return Error(ErrorKind::kUnsupported, "format '" + format + "' is not known");
  VBDKIT_ASSIGN(ImageFacts facts, known->inspect(path));
  chain.images.push_back(std::move(facts));
  return {};
}

Result<void> add_parents(ChainFacts& chain, ChainSteps& steps) {
  while (chain.images.back().parent) {
    const ParentReference reference = *chain.images.back().parent;
    VBDKIT_TRY(steps.check(reference));
    VBDKIT_TRY(add_image(chain, steps, reference.path, reference.format));
    VBDKIT_TRY(steps.check_identity(reference, chain.images.back().uuid));
  }
  return {};
}

}  // namespace

ChainFacts inspect_chain(const std::string& path, const std::string& format) {
  ChainFacts chain;
  ChainSteps steps(format);
  Result<void> added;
  for (;;) {
    if (chain.images.empty()) added = add_image(chain, steps, path, format);
    if (added) added = add_parents(chain, steps);
    if (added) break;
    const auto changed = steps.go_back(0, added.error());
    if (!changed) break;
    chain.images.resize(*changed);
    added = {};
  }
  chain.paths = steps.paths();
  if (!added) chain.broken = steps.failed(std::move(added).error());
  return chain;
}

Result<ImageLock> ImageLock::take(const std::string& path, LockMode mode) {
  if (mode == LockMode::kWriter) VBDKIT_TRY(end_interrupted_group(path));
  // A lock that keeps others out must be on a file opened for writing, and may become one later.
  auto opened = Fd::open(path, O_RDWR | O_NONBLOCK);
  const bool writes = mode != LockMode::kReader && mode != LockMode::kSharedReader;
  if (!opened && !writes) opened = Fd::open(path, O_RDONLY | O_NONBLOCK);
  VBDKIT_ASSIGN(Fd fd, std::move(opened));
  VBDKIT_TRY(lock_image(fd.get(), path, mode));
  VBDKIT_TRY(check_name(fd.get(), path));
  return ImageLock(std::move(fd), path);
}

}  // namespace vbdkit::drivers
