// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit snapshot, vbdkit clone: images that share what they have in common.
#include "storage/snapshot.h"

#include <chrono>
#include <optional>
#include <utility>
#include <vector>

#include "drivers/image_forest.h"
#include "drivers/image_snapshot.h"
#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/image_options.h"
#include "storage/instance_argument.h"
#include "storage/snapshot_group.h"

namespace vbdkit::storage {
namespace {

// So long the disks of a group stand still at most.
constexpr unsigned kGroupPause = 5000;  // milliseconds

Result<int> run_snapshot(const po::variables_map& vm, const Logger& log) {
  std::vector<GroupImage> members;
  VBDKIT_ASSIGN(drivers::NodeSpec image, parse_image(text_of(vm, "SPEC")));
  members.push_back({std::move(image), text_of(vm, "NAME")});
  if (vm.count("group") != 0)
    for (const std::string& text : vm["group"].as<std::vector<std::string>>()) {
      VBDKIT_ASSIGN(GroupImage member, parse_group_image(text));
      members.push_back(std::move(member));
    }
  VBDKIT_ASSIGN(const auto options, parse_options(vm));
  const Registry registry = registry_of(vm);
  if (members.size() == 1)
    VBDKIT_TRY(take_snapshot(members[0].image, members[0].name, options, registry, log));
  else
    VBDKIT_TRY(take_group(members, options,
                          std::chrono::milliseconds(vm["longest-pause"].as<unsigned>()), registry,
                          log));
  return kExitOk;
}

Result<int> run_clone(const po::variables_map& vm, const Logger& log) {
  VBDKIT_ASSIGN(drivers::NodeSpec image, parse_image(text_of(vm, "SPEC")));
  VBDKIT_ASSIGN(const drivers::NodeSpec clone, parse_image(text_of(vm, "CLONE")));
  VBDKIT_ASSIGN(const drivers::ImageFormat* const format, format_of(clone));
  drivers::CreateRequest request;
  VBDKIT_ASSIGN(request.options, parse_options(vm));
  if (vm.count("base") != 0) {
    const std::string base = text_of(vm, "base");
    VBDKIT_TRY(take_snapshot(image, base, {}, registry_of(vm), log));
    image.path = base;
  }
  VBDKIT_ASSIGN(const auto claims,
                OfflineClaims::take({{image.path, ImageClaims::Mode::kRead}}, log));
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

Result<ImageHold> ImageHold::take(const drivers::NodeSpec& image, const Logger& log) {
  VBDKIT_ASSIGN(OfflineClaims claims,
                OfflineClaims::take({{image.path, ImageClaims::Mode::kWrite}}, log));
  VBDKIT_ASSIGN(drivers::ImageLock lock,
                drivers::ImageLock::take(image.path, drivers::LockMode::kWriter));
  ImageHold hold(std::move(claims), std::move(lock));
  // An instance that is just taking a snapshot has made this file, and writes its parent still.
  if (const auto* const format = drivers::find_image_format(image.driver);
      format != nullptr && format->plan_parent != nullptr) {
    VBDKIT_ASSIGN(const auto facts, format->inspect(image.path));
    if (facts.parent) {
      VBDKIT_ASSIGN(hold.parent_lock_,
                    drivers::ImageLock::take(facts.parent->path, drivers::LockMode::kReader));
    }
  }
  VBDKIT_TRY(drivers::check_childless(image.path));
  return hold;
}

Result<void> take_snapshot(const drivers::NodeSpec& image, const std::string& name,
                           const std::map<std::string, std::string>& options,
                           const Registry& registry, const Logger& log) {
  VBDKIT_ASSIGN(const auto users, registry.find_image(image.path, Registry::Where::kLeaf));
  for (const InstanceRecord& user : users)
    if (!user.read_only) return ask_for_snapshot(user, name, options);
  VBDKIT_ASSIGN(const ImageHold hold, ImageHold::take(image, log));
  VBDKIT_ASSIGN(auto taken, drivers::ImageSnapshot::prepare(image, name, options));
  VBDKIT_TRY(hold.may_write());
  return taken.commit();
}

int snapshot(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("snapshot [OPTION...] SPEC NAME", {"SPEC", "NAME"});
  syntax.options.add_options()(
      "group", po::value<std::vector<std::string>>()->composing()->value_name("SPEC=NAME"),
      "another disk, at the same moment, or none; may be given several times")(
      "longest-pause", po::value<unsigned>()->value_name("MS")->default_value(kGroupPause),
      "where the disks of a group would stand still for longer, none is taken");
  add_format_options(syntax);
  add_runtime_dir_option(syntax.options);
  return run_command(syntax, args, log,
                     [&](const po::variables_map& vm) { return run_snapshot(vm, log); });
}

int clone(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("clone [OPTION...] SPEC CLONE", {"SPEC", "CLONE"});
  syntax.options.add_options()(
      "base", po::value<std::string>()->value_name("NAME"),
      "keep the present content under this name, so that SPEC can be written further on");
  add_format_options(syntax);
  add_runtime_dir_option(syntax.options);
  return run_command(syntax, args, log,
                     [&](const po::variables_map& vm) { return run_clone(vm, log); });
}

}  // namespace vbdkit::storage
