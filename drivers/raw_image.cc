// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Plain files as the tools see them.
#include <unistd.h>

#include "drivers/image_format.h"

namespace vbdkit::drivers {
namespace {

constexpr FormatOption kOptions[] = {{"preallocation", "off|falloc"}};

Result<void> reserve(const std::string& path, uint64_t size) {
  VBDKIT_ASSIGN(const Fd fd, Fd::open(path, O_RDWR));
  const int error = posix_fallocate(fd.get(), 0, static_cast<off_t>(size));
  if (error != 0) return Error::from_errno(error, "reserve space for " + path);
  return {};
}

Result<void> fill(ImageFile& file, uint64_t size, bool preallocate) {
  if (file.block_device()) {
    VBDKIT_ASSIGN(const Bytes device, file.size());
    if (device.v >= size) return {};
    return Error(ErrorKind::kNoSpace, "the device has only " + std::to_string(device.v) + " bytes",
                 ENOSPC);
  }
  VBDKIT_TRY(file.resize(Bytes{size}));
  if (preallocate) VBDKIT_TRY(reserve(file.path(), size));
  return file.flush();
}

Result<void> create(const CreateRequest& request) {
  const std::string what = "raw: create " + request.path;
  bool preallocate = false;
  for (const auto& [key, value] : request.options) {
    if (key != kOptions[0].key) return unknown_option("raw", key, kOptions);
    if (value != "off" && value != "falloc")
      return Error(ErrorKind::kInvalid, "raw: preallocation=" + value + ": expected off or falloc");
    preallocate = value == "falloc";
  }
  if (!request.parent.empty())
    return Error(ErrorKind::kUnsupported, what + ": a raw image has no parent");
  if (request.size.v == 0 || request.size.v > INT64_MAX)
    return Error(ErrorKind::kInvalid, what + ": a size is missing or too large");
  auto file = ImageFile::open(request.path, ImageFile::Mode::kCreate);
  if (!file) return std::move(file).error().context("raw");
  auto filled = fill(*file, align_up(request.size.v, kSectorSize), preallocate);
  if (filled) return {};
  if (!file->block_device()) unlink(request.path.c_str());
  return std::move(filled).error().context(what);
}

Result<ImageFacts> inspect(const std::string& path) {
  VBDKIT_ASSIGN(const ImageFile file, ImageFile::open(path, ImageFile::Mode::kRead));
  ImageFacts facts;
  facts.format = "raw";
  VBDKIT_TRY(add_file_facts(file, facts));
  facts.size = Bytes{align_down(facts.file_size.v, kSectorSize)};
  return facts;
}

}  // namespace

ImageFormat raw_image_format() {
  return {"raw", ".raw .img", {}, kOptions, create, inspect, nullptr, nullptr, nullptr};
}

}  // namespace vbdkit::drivers
