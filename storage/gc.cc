// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit gc: what is left to do in a directory of images: coalesces that were interrupted, files
// that an interrupted command left, and images that nobody wants. Nobody wants a VHD that is marked
// hidden (as storage managers mark a snapshot that was deleted); with --inner, nobody wants any
// image that others stand on. An image is merged into its parent where nobody else stands on that.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "drivers/group_snapshot.h"
#include "drivers/image_forest.h"
#include "storage/arguments.h"
#include "storage/coalesce.h"
#include "storage/command.h"
#include "storage/instance_argument.h"
#include "storage/job_runner.h"
#include "storage/offline_claims.h"
#include "storage/terminal.h"

namespace vbdkit::storage {
namespace {

using drivers::ForestImage;
using drivers::ImageForest;

struct Step {
  enum class What { kFinish, kCoalesce, kRemove };
  What what = What::kRemove;
  std::string path;    // of the image, or of the file that is left
  std::string format;  // of the image
  std::string lock;    // to be had before a file is removed: nobody works on it
  std::string why;

  friend auto operator<=>(const Step&, const Step&) = default;
};

const char* name_of(Step::What what) {
  switch (what) {
    case Step::What::kFinish:
      return "finish";
    case Step::What::kCoalesce:
      return "coalesce";
    case Step::What::kRemove:
      break;
  }
  return "remove";
}

bool is_hidden(const ForestImage& image) {
  for (const drivers::Attribute& attribute : image.facts.attributes) {
    const bool* const value = std::get_if<bool>(&attribute.value);
    if (value != nullptr && *value && attribute.name == "hidden") return true;
  }
  return false;
}

std::optional<Step> step_for_file(const std::string& path) {
  if (path.ends_with(drivers::kGroupJournal) || path.ends_with(drivers::kGroupTaken))
    return Step{Step::What::kFinish, path, {}, {}, "a group's snapshot was interrupted"};
  if (path.ends_with(drivers::kMemberRecord))
    return Step{Step::What::kFinish,
                path.substr(0, path.size() - drivers::kMemberRecord.size()),
                {},
                {},
                "a group's snapshot was interrupted"};
  if (path.ends_with(drivers::kCoalesceJournal)) {
    const std::string image = path.substr(0, path.size() - drivers::kCoalesceJournal.size());
    const auto* const format = drivers::format_by_name_of(image);
    if (format == nullptr) return std::nullopt;
    return Step{Step::What::kFinish, image, format->name, {}, "its coalesce was interrupted"};
  }
  for (const std::string_view suffix : drivers::kUnfinished) {
    if (!path.ends_with(suffix)) continue;
    // A leaf that was merged is nobody's but its own.
    const size_t own = suffix == drivers::kMerged ? 0 : suffix.size();
    return Step{Step::What::kRemove,
                path,
                {},
                path.substr(0, path.size() - own),
                "left by a command that was interrupted"};
  }
  return std::nullopt;
}

std::optional<Step> step_for_image(const ImageForest& forest, const ForestImage& image,
                                   bool inner) {
  if (!image.problem.empty() || image.missing) return std::nullopt;
  const bool hidden = is_hidden(image);
  if (image.children.empty()) {
    if (!hidden || !forest.disguised_children_of(image.path).empty()) return std::nullopt;
    return Step{Step::What::kRemove, image.path, image.facts.format, image.path,
                "hidden, and nothing stands on it"};
  }
  if (image.parent == ForestImage::kNone || !(hidden || inner)) return std::nullopt;
  const ForestImage& parent = forest.images()[image.parent];
  if (parent.missing || !parent.problem.empty() || parent.children.size() != 1) return std::nullopt;
  return Step{Step::What::kCoalesce,
              image.path,
              image.facts.format,
              {},
              hidden ? "hidden" : "others stand on it, and it on nobody else's parent"};
}

// Files first, so that what was begun is ended before more is.
Result<std::vector<Step>> find_steps(const std::string& directory, bool inner) {
  std::vector<Step> steps;
  std::error_code error;
  for (std::filesystem::directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error))
    if (auto step = step_for_file(it->path().string())) steps.push_back(std::move(*step));
  if (error) return Error::from_errno(error.value(), "open " + directory);
  std::sort(steps.begin(), steps.end());
  VBDKIT_ASSIGN(const ImageForest forest, ImageForest::scan(directory));
  for (const ForestImage& image : forest.images())
    if (auto step = step_for_image(forest, image, inner)) steps.push_back(std::move(*step));
  return steps;
}

Result<void> remove_file(const Step& step, const Logger& log) {
  std::optional<OfflineClaims> claims;
  std::optional<drivers::ImageLock> lock;
  if (std::filesystem::exists(step.lock)) {
    // Whoever writes the journal of an image's coalesce has marked the image; guests may read it.
    const bool of_journal = step.path.ends_with(drivers::kNewCoalesceJournal);
    VBDKIT_ASSIGN(claims,
                  OfflineClaims::take({{step.lock, ImageClaims::mode_of(of_journal, false)}}, log));
    VBDKIT_ASSIGN(
        lock, drivers::ImageLock::take(
                  step.lock, of_journal ? drivers::LockMode::kReader : drivers::LockMode::kWriter));
    if (of_journal) VBDKIT_TRY(lock->mark_merging());
    VBDKIT_TRY(claims->may_write());
  }
  // Whoever took the lock may have ended what the file was left of.
  if (::unlink(step.path.c_str()) != 0 && errno != ENOENT)
    return Error::from_errno(errno, "remove " + step.path);
  return drivers::sync_directory(drivers::directory_of(step.path));
}

// A disk in use that waits for a command that is no more finds that out in a moment; now it is
// told.
Result<void> tell_member(const std::string& image, const Registry& registry) {
  VBDKIT_ASSIGN(const auto member, drivers::open_membership(image));
  if (!member || !drivers::group_abandoned(member->journal)) return {};
  VBDKIT_ASSIGN(const auto users, registry.find_image(member->name, Registry::Where::kLeaf));
  for (const InstanceRecord& user : users) {
    const auto told = ask(user, "x-vbdkit-group-settle");
    if (!told && told.error().kind() != ErrorKind::kNotFound) return told.error();
  }
  return {};
}

// A member's image, or a journal.
Result<void> end_group(const Step& step, const Registry& registry, const Logger& log) {
  if (step.path.ends_with(drivers::kGroupJournal) || step.path.ends_with(drivers::kGroupTaken))
    return drivers::end_abandoned_group(step.path);
  VBDKIT_TRY(tell_member(step.path, registry));
  VBDKIT_ASSIGN(const OfflineClaims claims,
                OfflineClaims::take({{step.path, ImageClaims::mode_of(false, false)}}, log));
  VBDKIT_TRY(claims.may_write());
  return drivers::end_interrupted_group(step.path);
}

class Collector {
 public:
  Collector(const po::variables_map& vm, const Logger& log) : vm_(vm), log_(log) {}

  Result<int> run() {
    const std::string directory = text_of(vm_, "DIR");
    const bool inner = vm_.count("inner") != 0;
    if (vm_.count("dry-run") != 0) {
      VBDKIT_ASSIGN(const auto steps, find_steps(directory, inner));
      for (const Step& step : steps) report(step, nullptr);
      return finish(kExitOk);
    }
    VBDKIT_ASSIGN(engine_, engine_of(vm_));
    bool failed = false;
    // Each step may make others possible.
    for (std::set<Step> tried;;) {
      VBDKIT_ASSIGN(const auto steps, find_steps(directory, inner));
      const auto next = std::find_if(steps.begin(), steps.end(),
                                     [&](const Step& s) { return !tried.contains(s); });
      if (next == steps.end()) return finish(failed ? kExitFailure : kExitOk);
      tried.insert(*next);
      const Result<void> done = take(*next);
      report(*next, &done);
      failed = failed || !done.ok();
    }
  }

 private:
  Result<void> take(const Step& step) {
    if (step.what == Step::What::kRemove) return remove_file(step, log_);
    if (step.what == Step::What::kFinish && step.format.empty())
      return end_group(step, registry_of(vm_), log_);
    VBDKIT_ASSIGN(const auto outcome, merge_into_parent({step.format, step.path, {}}, {},
                                                        registry_of(vm_), engine_, log_));
    return {};
  }

  void report(const Step& step, const Result<void>* done) {
    const bool ok = done == nullptr || done->ok();
    if (vm_.count("json") != 0) {
      nlohmann::ordered_json entry = {
          {"step", name_of(step.what)}, {"path", step.path}, {"reason", step.why}};
      if (done != nullptr) entry["done"] = ok;
      if (!ok) entry["error"] = done->error().message();
      list_.push_back(std::move(entry));
    } else if (ok) {
      std::printf("%s %s (%s)\n", name_of(step.what), printable(step.path).c_str(),
                  step.why.c_str());
    }
    if (!ok) log_.error("%s: %s", name_of(step.what), done->error().message().c_str());
  }
  int finish(int status) {
    if (vm_.count("json") != 0) print_json(list_);
    return status;
  }

  const po::variables_map& vm_;
  const Logger& log_;
  io::EngineKind engine_ = io::EngineKind::kAuto;
  nlohmann::ordered_json list_ = nlohmann::ordered_json::array();
};

}  // namespace

int gc(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("gc [OPTION...] DIR", {"DIR"});
  syntax.options.add_options()                                                      //
      ("dry-run,n", "say what would be done first, and do nothing")                 //
      ("inner", "merge all images that others stand on, not only those marked so")  //
      ("json", "for programs");
  add_engine_option(syntax);
  add_runtime_dir_option(syntax.options);
  return run_command(syntax, args, log,
                     [&](const po::variables_map& vm) { return Collector(vm, log).run(); });
}

}  // namespace vbdkit::storage
