// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/group_commands.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <utility>
#include <vector>

#include "backend/control/arguments.h"
#include "drivers/chain/live_chain.h"

namespace vbdkit {

using control::Json;
using control::Reply;
using drivers::Verdict;

namespace {

// Between prepare and hold: others of the group have their files to make. The guest goes on.
constexpr std::chrono::seconds kPatience{30};
constexpr std::chrono::seconds kRetry{1};
constexpr std::chrono::milliseconds kLook{200};
constexpr uint64_t kDefaultHold = 5'000;  // milliseconds
constexpr uint64_t kLongestHold = 60'000;

}  // namespace

struct GroupCommands::Group {
  enum class Stage {
    kPreparing,
    kPrepared,
    kPausing,
    kHeld,
    kSettling,  // the verdict is asked for
    kEnding,    // and carried out
  };
  Stage stage = Stage::kPreparing;
  drivers::NodeSpec image;
  std::string name;
  std::string journal;
  std::shared_ptr<std::optional<drivers::GroupMember>> member =
      std::make_shared<std::optional<drivers::GroupMember>>();
  std::optional<drivers::NewFront> front;
  LiveGraph::Done go;          // from the stage in which it waits
  std::optional<Reply> reply;  // of the command that is under way
  std::vector<Reply> settling;
  bool no_more_waiting = false;
  bool durable = false;  // what the journal says, as somebody has told
  bool taken = false;
};

GroupCommands::GroupCommands(io::Reactor& reactor, const Logger& log, LiveGraph& graph,
                             drivers::OpenOptions options, Admit admit)
    : reactor_(reactor),
      log_(log),
      graph_(graph),
      options_(std::move(options)),
      admit_(std::move(admit)),
      timer_(reactor.timer([this] { look(); })),
      beside_(reactor) {}

GroupCommands::~GroupCommands() = default;

void GroupCommands::add_to(control::CommandTable& commands) {
  commands.add("x-vbdkit-group-prepare", {"name", "options", "journal"},
               [this](const Json& given, Reply reply) { prepare(given, std::move(reply)); });
  commands.add("x-vbdkit-group-hold", {"timeout-ms"},
               [this](const Json& given, Reply reply) { hold(given, std::move(reply)); });
  commands.add("x-vbdkit-group-settle", {"durable"},
               [this](const Json& given, Reply reply) { settle(given, std::move(reply)); });
}

void GroupCommands::wait_for_word(std::chrono::milliseconds time) {
  deadline_ = io::Timer::Clock::now() + time;
  timer_->arm(std::min(deadline_, io::Timer::Clock::now() + kLook));
}

// Whether there is still something to wait for.
void GroupCommands::look() {
  if (!group_ || group_->no_more_waiting) return;
  if (io::Timer::Clock::now() >= deadline_) return settle_now();
  auto over = std::make_shared<bool>(false);
  beside_.run(
      [over, journal = group_->journal]() -> Result<void> {
        *over = drivers::group_abandoned(journal);
        return {};
      },
      [this, over](const Result<void>&) {
        if (!group_ || group_->no_more_waiting) return;
        if (*over) return settle_now();
        timer_->arm(std::min(deadline_, io::Timer::Clock::now() + kLook));
      });
}

void GroupCommands::prepare(const Json& given, Reply reply) {
  if (closing_) return reply.error("GenericError", "The instance is shutting down");
  if (group_) return reply.error("GenericError", "A snapshot of this disk and others is under way");
  if (const auto free = graph_.unreserved(); !free) return reply.error(free.error());
  const auto* const chain = graph_.chain();
  if (chain == nullptr)
    return reply.error("GenericError",
                       "snapshot: " + graph_.image().spec() + ": images of this kind have none");
  if (graph_.top().info().read_only)
    return reply.error(Error(ErrorKind::kPermission, "snapshot: the disk is read-only", EROFS));
  const auto name = given.member("name").string();
  if (!name) return reply.error(control::wrong_type("name", "string"));
  const auto journal = given.member("journal").string();
  if (!journal) return reply.error(control::wrong_type("journal", "string"));
  auto options = control::string_map(given, "options");
  if (!options) return reply.error(options.error());

  group_ = std::make_unique<Group>();
  group_->image = chain->options().image;
  group_->name = *name;
  group_->journal = *journal;
  group_->reply.emplace(std::move(reply));
  LiveGraph::Change change;
  change.flush = true;
  change.prepare = [this, options = std::move(*options)](LiveGraph::Done ready) {
    Group& group = *group_;
    group.go = std::move(ready);
    beside_.run(
        [member = group.member, image = group.image, name = group.name, journal = group.journal,
         options]() -> Result<void> {
          VBDKIT_ASSIGN(auto made, drivers::GroupMember::prepare(image, name, options, journal));
          member->emplace(std::move(made));
          return {};
        },
        [this](Result<void> result) {
          if (!result || !admit_) return made(std::move(result));
          admit_(group_->image.path, [this](Result<void> admitted) { made(std::move(admitted)); });
        });
  };
  change.hold = [this](LiveGraph::Done go) { held(std::move(go)); };
  change.apply = [this](drivers::NodePtr&) -> Result<void> {
    return group_->front->apply({reactor_, log_, options_});
  };
  change.tidy = [this](const Result<void>& result, std::function<void()> tidied) {
    tidy(result, std::move(tidied));
  };
  change.done = [this](Result<void> result) { forget(std::move(result)); };
  graph_.change(std::move(change));
}

// A disk that stands still waits for the flushes of all others; so little is left for those.
void GroupCommands::made(Result<void> result) {
  if (!result) return prepared(std::move(result));
  flush_.op = drivers::Op::kFlush;
  flush_.commands = this;
  flush_.done = [](drivers::Request& request, int error) {
    GroupCommands& self = *static_cast<Flush&>(request).commands;
    self.reactor_.post([&self, error] {
      self.prepared(error == 0 ? Result<void>() : Error::from_errno(error, "flush"));
    });
  };
  graph_.top().submit(flush_);
}

// The guest goes on until all others are as far.
void GroupCommands::prepared(Result<void> result) {
  Group& group = *group_;
  if (!result) return std::exchange(group.go, nullptr)(std::move(result));
  group.stage = Group::Stage::kPrepared;
  std::exchange(group.reply, std::nullopt)->ok();
  if (group.no_more_waiting) return settle_now();
  wait_for_word(kPatience);
}

void GroupCommands::hold(const Json& given, Reply reply) {
  uint64_t timeout = kDefaultHold;
  if (const Json value = given.member("timeout-ms"); !value.is_null()) {
    if (!value.number() || *value.number() == 0 || *value.number() > kLongestHold)
      return reply.error("GenericError",
                         "Parameter 'timeout-ms' expects 1 to " + std::to_string(kLongestHold));
    timeout = *value.number();
  }
  if (!group_ || group_->stage != Group::Stage::kPrepared)
    return reply.error("GenericError", "This disk waits for no group, or waits no longer");
  group_->stage = Group::Stage::kPausing;
  group_->reply.emplace(std::move(reply));
  wait_for_word(std::chrono::milliseconds(timeout));
  std::exchange(group_->go, nullptr)({});
}

// Nothing is in flight, and all is on the disk.
void GroupCommands::held(LiveGraph::Done go) {
  Group& group = *group_;
  group.go = std::move(go);
  group.stage = Group::Stage::kHeld;
  if (group.no_more_waiting) return settle_now();
  auto* const chain = graph_.chain();
  auto front =
      chain == nullptr
          ? Error(ErrorKind::kBusy, "the disk's chain has just been changed", EBUSY)
          : drivers::NewFront::open(*chain, {group.image, group.name}, {reactor_, log_, options_});
  // Without our vote nobody takes the snapshots.
  if (!front) return std::exchange(group.go, nullptr)(std::move(front).error());
  group.front.emplace(std::move(*front));
  std::exchange(group.reply, std::nullopt)->ok();
}

void GroupCommands::settle(const Json& given, Reply reply) {
  if (!group_) return reply.error("DeviceNotFound", "This disk waits for no group");
  group_->settling.push_back(std::move(reply));
  group_->durable = given.member("durable").boolean().value_or(false);
  settle_now();
}

void GroupCommands::close() {
  closing_ = true;
  if (group_) settle_now();
}

// On somebody's word, or because none has come.
void GroupCommands::settle_now() {
  Group& group = *group_;
  group.no_more_waiting = true;
  if (group.stage != Group::Stage::kPrepared && group.stage != Group::Stage::kHeld) return;
  timer_->cancel();
  group.stage = Group::Stage::kSettling;
  auto verdict = std::make_shared<std::optional<Verdict>>();
  beside_.run(
      [verdict, journal = group.journal, durable = group.durable]() -> Result<void> {
        VBDKIT_ASSIGN(*verdict, drivers::settle_group(journal, durable));
        return {};
      },
      [this, verdict](Result<void> asked) {
        if (asked) return settled(**verdict);
        log_.error("snapshot of several disks: %s; this one waits",
                   asked.error().message().c_str());
        group_->stage = Group::Stage::kHeld;
        group_->no_more_waiting = false;
        wait_for_word(kRetry);
      });
}

void GroupCommands::settled(Verdict verdict) {
  Group& group = *group_;
  group.stage = Group::Stage::kEnding;
  group.taken = verdict == Verdict::kTaken && group.front.has_value();
  const auto go = std::exchange(group.go, nullptr);
  if (group.taken) return go({});
  go(Error(ErrorKind::kTimedOut, "the snapshot of this disk and others was given up"));
}

// The disk goes on in the next turn of the loop. The next change finds the names as they are to be.
void GroupCommands::tidy(const Result<void>& result, std::function<void()> tidied) {
  Group& group = *group_;
  timer_->cancel();
  group.stage = Group::Stage::kEnding;
  if (group.taken && !result) {
    // What the guest would write now belongs into the new leaf, where the next start finds it.
    log_.error("snapshot of several disks, which was taken: %s", result.error().message().c_str());
    ::_exit(EXIT_FAILURE);
  }
  group.front.reset();  // its locks
  if (!group.member->has_value()) return tidied();
  beside_.run([member = group.member,
               taken = group.taken] { return taken ? (*member)->keep() : (*member)->undo(); },
              [this, tidied = std::move(tidied)](const Result<void>& done) {
                if (!done)
                  log_.error("snapshot of several disks: tidying up: %s",
                             done.error().message().c_str());
                tidied();
              });
}

void GroupCommands::forget(Result<void> result) {
  if (!result) log_.notice("snapshot: %s", result.error().message().c_str());
  const auto group = std::exchange(group_, nullptr);
  if (group->reply) group->reply->error(result.error());
  for (Reply& reply : group->settling) reply.ok();
}

}  // namespace vbdkit
