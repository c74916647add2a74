// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit create: a new image.
#include <optional>

#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/image_options.h"
#include "storage/offline_claims.h"

namespace vbdkit::storage {
namespace {

Result<int> run(const po::variables_map& vm, const Logger& log) {
  VBDKIT_ASSIGN(const drivers::NodeSpec image, parse_image(text_of(vm, "SPEC")));
  VBDKIT_ASSIGN(const drivers::ImageFormat* const format, format_of(image));
  drivers::CreateRequest request;
  request.path = image.path;
  VBDKIT_ASSIGN(request.options, parse_options(vm));
  if (vm.count("size") != 0) {
    VBDKIT_ASSIGN(request.size, parse_size_argument(text_of(vm, "size")));
  }
  if (vm.count("parent") != 0) {
    VBDKIT_ASSIGN(const drivers::NodeSpec parent, parse_image(text_of(vm, "parent")));
    VBDKIT_TRY(format_of(parent));
    request.parent = parent.path;
    request.parent_format = parent.driver;
  } else if (vm.count("size") == 0) {
    return usage_error("how large? (--size 10G; only with --parent it can be left out)");
  }
  // What others may still change is nothing to stand on.
  std::optional<OfflineClaims> claims;
  std::optional<drivers::ImageLock> lock;
  if (!request.parent.empty()) {
    VBDKIT_ASSIGN(claims, OfflineClaims::take({{request.parent, ImageClaims::Mode::kRead}}, log));
    VBDKIT_ASSIGN(lock, drivers::ImageLock::take(request.parent, drivers::LockMode::kReader));
  }
  VBDKIT_TRY(format->create(request));
  return kExitOk;
}

}  // namespace

int create(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("create [OPTION...] SPEC", {"SPEC"});
  syntax.options.add_options()  //
      ("size,s", po::value<std::string>()->value_name("SIZE"),
       "of the disk: 512M, 10G; the parent's if not given")  //
      ("parent,p", po::value<std::string>()->value_name("SPEC"),
       "the image that has what the new one does not: vhd:/srv/base.vhd");
  add_format_options(syntax);
  return run_command(syntax, args, log, [&](const po::variables_map& vm) { return run(vm, log); });
}

}  // namespace vbdkit::storage
