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
#include "storage/offline_claims.h"

namespace vbdkit::storage {
namespace {

// So long the disks of a group stand still at most.
constexpr std::chrono::seconds kGroupPause{30};

struct Member {
  drivers::NodeSpec image;
  std::string name;
};

// "vhd:/srv/b.vhd=/srv/b-before.vhd"
Result<Member> parse_member(const std::string& text) {
  const size_t equals = text.rfind('=');
  if (equals == std::string::npos || equals + 1 == text.size())
    return usage_error("--group " + text + ": expected SPEC=NAME");
  VBDKIT_ASSIGN(drivers::NodeSpec image, parse_image(text.substr(0, equals)));
  return Member{std::move(image), text.substr(equals + 1)};
}

// An instance whose disk stands still, until this ends or the instance has waited long enough.
class Paused {
 public:
  static Result<Paused> take(InstanceRecord instance) {
    const std::string timeout = std::to_string(std::chrono::milliseconds(kGroupPause).count());
    VBDKIT_ASSIGN(const auto done,
                  ask(instance, "x-vbdkit-pause", "{\"timeout-ms\":" + timeout + "}"));
    return Paused(std::move(instance));
  }
  Paused(Paused&& other) noexcept : instance_(std::exchange(other.instance_, std::nullopt)) {}
  Paused& operator=(Paused&&) = delete;
  ~Paused() {
    if (!instance_) return;
    // Where that fails, it resumes by itself.
    const auto ignored = ask(*instance_, "x-vbdkit-resume");
    static_cast<void>(ignored);
  }

 private:
  explicit Paused(InstanceRecord instance) : instance_(std::move(instance)) {}
  std::optional<InstanceRecord> instance_;
};

// All of one moment: disks in use stand still together meanwhile.
Result<void> take_group(const std::vector<Member>& members,
                        const std::map<std::string, std::string>& options, const Registry& registry,
                        const Logger& log) {
  std::vector<Paused> paused;
  const auto start = std::chrono::steady_clock::now();
  for (const Member& member : members) {
    VBDKIT_ASSIGN(auto users, registry.find_image(member.image.path, Registry::Where::kLeaf));
    for (InstanceRecord& user : users) {
      if (user.read_only) continue;
      VBDKIT_ASSIGN(Paused one, Paused::take(std::move(user)));
      paused.push_back(std::move(one));
    }
  }
  std::string taken;
  for (const Member& member : members) {
    auto done = take_snapshot(member.image, member.name, options, registry, log);
    if (!done)
      return std::move(done).error().context(taken.empty() ? "of the group none was taken"
                                                           : "of the group were taken:" + taken);
    taken += " " + member.name;
  }
  if (std::chrono::steady_clock::now() - start < kGroupPause) return {};
  return Error(
      ErrorKind::kTimedOut,
      "the snapshots took longer than disks stand still, and are not of one moment:" + taken);
}

Result<int> run_snapshot(const po::variables_map& vm, const Logger& log) {
  std::vector<Member> members;
  VBDKIT_ASSIGN(drivers::NodeSpec image, parse_image(text_of(vm, "SPEC")));
  members.push_back({std::move(image), text_of(vm, "NAME")});
  if (vm.count("group") != 0)
    for (const std::string& text : vm["group"].as<std::vector<std::string>>()) {
      VBDKIT_ASSIGN(Member member, parse_member(text));
      members.push_back(std::move(member));
    }
  VBDKIT_ASSIGN(const auto options, parse_options(vm));
  const Registry registry = registry_of(vm);
  if (members.size() == 1)
    VBDKIT_TRY(take_snapshot(members[0].image, members[0].name, options, registry, log));
  else
    VBDKIT_TRY(take_group(members, options, registry, log));
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

Result<void> take_snapshot(const drivers::NodeSpec& image, const std::string& name,
                           const std::map<std::string, std::string>& options,
                           const Registry& registry, const Logger& log) {
  VBDKIT_ASSIGN(const auto users, registry.find_image(image.path, Registry::Where::kLeaf));
  for (const InstanceRecord& user : users)
    if (!user.read_only) return ask_for_snapshot(user, name, options);
  VBDKIT_ASSIGN(const auto claims,
                OfflineClaims::take({{image.path, ImageClaims::Mode::kWrite}}, log));
  VBDKIT_ASSIGN(const auto lock, drivers::ImageLock::take(image.path, drivers::LockMode::kWriter));
  // An instance that is just taking a snapshot has made this file, and writes its parent still.
  std::optional<drivers::ImageLock> parent_lock;
  if (const auto* const format = drivers::find_image_format(image.driver);
      format != nullptr && format->plan_parent != nullptr) {
    VBDKIT_ASSIGN(const auto facts, format->inspect(image.path));
    if (facts.parent) {
      VBDKIT_ASSIGN(parent_lock,
                    drivers::ImageLock::take(facts.parent->path, drivers::LockMode::kReader));
    }
  }
  VBDKIT_TRY(drivers::check_childless(image.path));
  VBDKIT_ASSIGN(auto taken, drivers::ImageSnapshot::prepare(image, name, options));
  VBDKIT_TRY(claims.may_write());
  return taken.commit();
}

int snapshot(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("snapshot [OPTION...] SPEC NAME", {"SPEC", "NAME"});
  syntax.options.add_options()(
      "group", po::value<std::vector<std::string>>()->composing()->value_name("SPEC=NAME"),
      "another disk, at the same moment; may be given several times");
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
