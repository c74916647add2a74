// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit snapshot, vbdkit clone: images that share what they have in common.
#include "storage/snapshot.h"

#include "drivers/image_forest.h"
#include "drivers/image_snapshot.h"
#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/image_options.h"
#include "storage/instance_argument.h"

namespace vbdkit::storage {
namespace {

Result<int> run_snapshot(const po::variables_map& vm) {
  VBDKIT_ASSIGN(const drivers::NodeSpec image, parse_image(text_of(vm, "SPEC")));
  VBDKIT_ASSIGN(const auto options, parse_options(vm));
  VBDKIT_TRY(take_snapshot(image, text_of(vm, "NAME"), options, registry_of(vm)));
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
    VBDKIT_TRY(take_snapshot(image, base, {}, registry_of(vm)));
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

namespace {

// Who has the image open takes the snapshot, between two requests of its guests.
Result<void> ask_for_snapshot(const InstanceRecord& instance, const std::string& name,
                              const std::map<std::string, std::string>& options) {
  VBDKIT_ASSIGN(const std::string path, drivers::absolute_parent(name));
  control::JsonWriter w;
  w.begin_object().field("name", path).key("options").begin_object();
  for (const auto& [key, value] : options) w.field(key, value);
  w.end_object().end_object();
  VBDKIT_ASSIGN(const auto done, ask(instance, "x-vbdkit-snapshot", w.take()));
  return {};
}

}  // namespace

Result<void> take_snapshot(const drivers::NodeSpec& image, const std::string& name,
                           const std::map<std::string, std::string>& options,
                           const Registry& registry) {
  VBDKIT_ASSIGN(const auto users, registry.find_image(image.path, Registry::Where::kLeaf));
  for (const InstanceRecord& user : users)
    if (!user.read_only) return ask_for_snapshot(user, name, options);
  VBDKIT_ASSIGN(const auto lock, drivers::ImageLock::take(image.path, drivers::LockMode::kWriter));
  VBDKIT_TRY(drivers::check_childless(image.path));
  VBDKIT_ASSIGN(auto taken, drivers::ImageSnapshot::prepare(image, name, options));
  return taken.commit();
}

int snapshot(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("snapshot [OPTION...] SPEC NAME", {"SPEC", "NAME"});
  add_format_options(syntax);
  add_runtime_dir_option(syntax.options);
  return run_command(syntax, args, log, run_snapshot);
}

int clone(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("clone [OPTION...] SPEC CLONE", {"SPEC", "CLONE"});
  syntax.options.add_options()(
      "base", po::value<std::string>()->value_name("NAME"),
      "keep the present content under this name, so that SPEC can be written further on");
  add_format_options(syntax);
  add_runtime_dir_option(syntax.options);
  return run_command(syntax, args, log, run_clone);
}

}  // namespace vbdkit::storage
