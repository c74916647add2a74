// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit snapshot, vbdkit clone: images that share what they have in common.
#include "storage/snapshot.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "drivers/image_forest.h"
#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/image_options.h"

namespace vbdkit::storage {
namespace {

// A second name for the file, which stays where the snapshot fails.
class SecondName {
 public:
  explicit SecondName(std::string path) : path_(std::move(path)) {}
  SecondName(const SecondName&) = delete;
  SecondName& operator=(const SecondName&) = delete;
  ~SecondName() {
    if (made_) ::unlink(path_.c_str());
  }

  Result<void> make(const std::string& of) {
    if (::link(of.c_str(), path_.c_str()) == 0) {
      made_ = true;
      return {};
    }
    const int error = errno;
    std::error_code ignored;
    // Made by a snapshot that was interrupted.
    if (error == EEXIST && std::filesystem::equivalent(of, path_, ignored)) return {};
    return Error::from_errno(error, "link " + path_ + " to " + of);
  }
  void keep() { made_ = false; }

 private:
  const std::string path_;
  bool made_ = false;
};

Result<void> replace(const drivers::NodeSpec& image, const drivers::ImageFormat& format,
                     const std::string& name, const std::map<std::string, std::string>& options) {
  const std::string fresh = image.path + ".vbdkit-new";
  // Left by one that was interrupted: nobody but us makes such names.
  ::unlink(fresh.c_str());
  drivers::CreateRequest request;
  request.path = fresh;
  request.parent = name;
  request.parent_format = image.driver;
  request.options = options;
  VBDKIT_TRY(format.create(request));
  auto done = drivers::give_owner(fresh, image.path);
  if (done && ::rename(fresh.c_str(), image.path.c_str()) != 0)
    done = Error::from_errno(errno, "rename " + fresh + " to " + image.path);
  if (!done) ::unlink(fresh.c_str());
  return done;
}

Result<int> run_snapshot(const po::variables_map& vm) {
  VBDKIT_ASSIGN(const drivers::NodeSpec image, parse_image(text_of(vm, "SPEC")));
  VBDKIT_ASSIGN(const auto options, parse_options(vm));
  VBDKIT_TRY(take_snapshot(image, text_of(vm, "NAME"), options));
  return kExitOk;
}

Result<int> run_clone(const po::variables_map& vm) {
  VBDKIT_ASSIGN(drivers::NodeSpec image, parse_image(text_of(vm, "SPEC")));
  VBDKIT_ASSIGN(const drivers::NodeSpec clone, parse_image(text_of(vm, "CLONE")));
  VBDKIT_ASSIGN(const drivers::ImageFormat* const format, format_of(clone));
  drivers::CreateRequest request;
  VBDKIT_ASSIGN(request.options, parse_options(vm));
  if (vm.count("base") != 0) {
    const std::string base = text_of(vm, "base");
    VBDKIT_TRY(take_snapshot(image, base, {}));
    image.path = base;
  }
  VBDKIT_ASSIGN(const auto lock, drivers::ImageLock::take(image.path, drivers::LockMode::kReader));
  request.path = clone.path;
  request.parent = image.path;
  request.parent_format = image.driver;
  VBDKIT_TRY(format->create(request));
  return kExitOk;
}

}  // namespace

Result<void> take_snapshot(const drivers::NodeSpec& image, const std::string& name,
                           const std::map<std::string, std::string>& options) {
  VBDKIT_ASSIGN(const drivers::ImageFormat* const format, format_of(image));
  if (format->plan_parent == nullptr)
    return usage_error(image.driver +
                       " images have no parents, so there is no snapshot of one (create --parent "
                       "puts another format over it)");
  std::error_code error;
  const std::string directory = drivers::directory_of(image.path);
  // Its parent is found from the directory it is in.
  if (!std::filesystem::equivalent(directory, drivers::directory_of(name), error))
    return usage_error(name + " is not in the directory of " + image.path);
  struct stat st {};
  if (::stat(image.path.c_str(), &st) == 0 && !S_ISREG(st.st_mode))
    return usage_error(image.path + " is no regular file, so it cannot get another name");
  VBDKIT_ASSIGN(const auto lock, drivers::ImageLock::take(image.path, drivers::LockMode::kWriter));
  VBDKIT_TRY(format->inspect(image.path));
  VBDKIT_TRY(drivers::check_childless(image.path));
  SecondName second(name);
  VBDKIT_TRY(second.make(image.path));
  VBDKIT_TRY(drivers::sync_directory(directory));
  VBDKIT_TRY(replace(image, *format, name, options));
  second.keep();
  return drivers::sync_directory(directory);
}

int snapshot(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("snapshot [OPTION...] SPEC NAME", {"SPEC", "NAME"});
  add_format_options(syntax);
  return run_command(syntax, args, log, run_snapshot);
}

int clone(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("clone [OPTION...] SPEC CLONE", {"SPEC", "CLONE"});
  syntax.options.add_options()(
      "base", po::value<std::string>()->value_name("NAME"),
      "keep the present content under this name, so that SPEC can be written further on");
  add_format_options(syntax);
  return run_command(syntax, args, log, run_clone);
}

}  // namespace vbdkit::storage
