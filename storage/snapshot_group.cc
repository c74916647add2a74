// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/snapshot_group.h"

#include <functional>
#include <optional>
#include <utility>

#include "backend/control/qmp_client.h"
#include "drivers/group_snapshot.h"
#include "drivers/image_forest.h"
#include "storage/arguments.h"
#include "storage/instance_argument.h"
#include "storage/snapshot.h"

namespace vbdkit::storage {

using drivers::GroupMember;
using drivers::SnapshotGroup;

namespace {

using Options = std::map<std::string, std::string>;

// Each step is begun with all members and then ended with all, so that no disk waits for the others
// one after the other.
class Member {
 public:
  virtual ~Member() = default;
  virtual Result<void> begin_preparing(const std::string& journal) = 0;  // while guests go on
  virtual Result<void> begin_holding() = 0;                              // from now on they wait
  virtual Result<void> begin_settling(bool taken) = 0;                   // only what was prepared
  virtual Result<void> end() { return {}; }
};

class RunningDisk final : public Member {
 public:
  static Result<std::unique_ptr<Member>> create(InstanceRecord instance, std::string name,
                                                const Options& options,
                                                std::chrono::milliseconds longest) {
    auto client = control::QmpClient::connect(instance.qmp_socket());
    if (!client) return std::move(client).error().context(title_of(instance));
    return std::unique_ptr<Member>(new RunningDisk(std::move(instance), std::move(*client),
                                                   std::move(name), options, longest));
  }

  Result<void> begin_preparing(const std::string& journal) override {
    control::JsonWriter w;
    w.begin_object().field("name", name_).field("journal", journal).key("options").begin_object();
    for (const auto& [key, value] : options_) w.field(key, value);
    return send("x-vbdkit-group-prepare", w.end_object().end_object().take());
  }
  Result<void> begin_holding() override {
    control::JsonWriter w;
    w.begin_object().field("timeout-ms", static_cast<uint64_t>(longest_.count())).end_object();
    return send("x-vbdkit-group-hold", w.take());
  }
  // It reads the verdict itself; that is durable by now.
  Result<void> begin_settling(bool) override {
    return send("x-vbdkit-group-settle", R"({"durable":true})");
  }
  Result<void> end() override {
    auto answer = client_.answer(kAnswerTimeout);
    return named(answer ? Result<void>() : std::move(answer).error());
  }

 private:
  RunningDisk(InstanceRecord instance, control::QmpClient client, std::string name,
              const Options& options, std::chrono::milliseconds longest)
      : instance_(std::move(instance)),
        client_(std::move(client)),
        name_(std::move(name)),
        options_(options),
        longest_(longest) {}
  Result<void> send(const char* command, const std::string& arguments) {
    return named(client_.send(command, arguments, kAnswerTimeout));
  }
  Result<void> named(Result<void> result) const {
    if (!result) return std::move(result).error().context(title_of(instance_));
    return result;
  }

  const InstanceRecord instance_;
  control::QmpClient client_;
  const std::string name_;
  const Options options_;
  const std::chrono::milliseconds longest_;
};

class UnusedImage final : public Member {
 public:
  UnusedImage(GroupImage image, const Options& options, ImageHold hold)
      : image_(std::move(image)), options_(options), hold_(std::move(hold)) {}

  Result<void> begin_preparing(const std::string& journal) override {
    VBDKIT_TRY(hold_.may_write());
    VBDKIT_ASSIGN(auto member, GroupMember::prepare(image_.image, image_.name, options_, journal));
    member_.emplace(std::move(member));
    return {};
  }
  Result<void> begin_holding() override { return hold_.may_write(); }
  Result<void> begin_settling(bool taken) override {
    return taken ? member_->keep() : member_->undo();
  }

 private:
  const GroupImage image_;
  const Options options_;
  const ImageHold hold_;
  std::optional<GroupMember> member_;
};

using Members = std::vector<std::unique_ptr<Member>>;

Result<std::unique_ptr<Member>> find_member(const GroupImage& one, const Options& options,
                                            std::chrono::milliseconds longest,
                                            const Registry& registry, const Logger& log) {
  VBDKIT_ASSIGN(auto users, registry.find_image(one.image.path, Registry::Where::kLeaf));
  for (InstanceRecord& user : users) {
    if (user.read_only) continue;
    VBDKIT_ASSIGN(std::string name, drivers::absolute_parent(one.name));
    return RunningDisk::create(std::move(user), std::move(name), options, longest);
  }
  VBDKIT_ASSIGN(ImageHold hold, ImageHold::take(one.image, log));
  return std::unique_ptr<Member>(std::make_unique<UnusedImage>(one, options, std::move(hold)));
}

using Results = std::vector<Result<void>>;

Results all(const Members& members, const std::function<Result<void>(Member&)>& begin) {
  Results results(members.size());
  for (size_t i = 0; i < members.size(); ++i) results[i] = begin(*members[i]);
  for (size_t i = 0; i < members.size(); ++i)
    if (results[i]) results[i] = members[i]->end();
  return results;
}

Result<void> first_failure(const Results& results) {
  for (const Result<void>& result : results)
    if (!result) return result;
  return {};
}

// Who cannot be reached finds the verdict in the journal.
void settle(const Members& members, const Results& prepared, bool taken, const Logger& log) {
  Results results(members.size());
  for (size_t i = 0; i < members.size(); ++i)
    if (prepared[i]) results[i] = members[i]->begin_settling(taken);
  for (size_t i = 0; i < members.size(); ++i) {
    if (!prepared[i]) continue;
    if (results[i]) results[i] = members[i]->end();
    // kNotFound: it has settled already.
    if (!results[i] && results[i].error().kind() != ErrorKind::kNotFound)
      log.notice("%s; what has become of the group it finds when it starts again",
                 results[i].error().message().c_str());
  }
}

}  // namespace

Result<GroupImage> parse_group_image(const std::string& text) {
  const size_t equals = text.rfind('=');
  if (equals == std::string::npos || equals + 1 == text.size())
    return usage_error("--group " + text + ": expected SPEC=NAME");
  VBDKIT_ASSIGN(drivers::NodeSpec image, parse_image(text.substr(0, equals)));
  return GroupImage{std::move(image), text.substr(equals + 1)};
}

Result<void> take_group(const std::vector<GroupImage>& images, const Options& options,
                        std::chrono::milliseconds longest, const Registry& registry,
                        const Logger& log) {
  Members members;
  std::vector<std::string> paths;
  for (const GroupImage& one : images) {
    VBDKIT_ASSIGN(auto member, find_member(one, options, longest, registry, log));
    members.push_back(std::move(member));
    paths.push_back(one.image.path);
  }
  VBDKIT_ASSIGN(SnapshotGroup group, SnapshotGroup::begin(std::move(paths)));
  const Results prepared =
      all(members, [&](Member& m) { return m.begin_preparing(group.journal()); });
  Result<void> ready = first_failure(prepared);
  if (ready) ready = first_failure(all(members, [](Member& m) { return m.begin_holding(); }));
  if (ready) ready = group.decide();
  auto verdict = drivers::Verdict::kTaken;
  // Where it was not decided, now it is.
  if (!ready) {
    VBDKIT_ASSIGN(verdict, drivers::settle_group(group.journal()));
  }
  const bool taken = verdict == drivers::Verdict::kTaken;
  settle(members, prepared, taken, log);
  if (taken) return group.end();
  return std::move(ready).error().context("of the group none was taken");
}

}  // namespace vbdkit::storage
