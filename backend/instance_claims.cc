// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Images that other hosts may have too: they are claimed before they are opened, and what a guest
// sees when this host may not touch them for a while, or any more.
#include <unistd.h>

#include <string>

#include "backend/claimed_open.h"
#include "backend/instance.h"

namespace vbdkit {

using control::Json;
using control::JsonWriter;
using control::Reply;

// A job may have claimed what it works on.
void Instance::settle_claims() {
  if (options_.claims != nullptr && jobs_->running() == nullptr && !quitting_)
    options_.claims->settle(uses_of(graph_->top(), options_.shared));
}

void Instance::watch_claims() {
  const auto tell = [this](const char* name, const std::string& reason) {
    update_record();
    JsonWriter w;
    w.begin_object();
    if (!reason.empty()) w.field("reason", reason);
    w.end_object();
    if (qmp_) qmp_->event(name, w.take());
  };
  options_.claims->on({
      .holding = [tell] { tell("X_VBDKIT_HOLDING", "the host's lease is not renewed"); },
      .going_on = [tell] { tell("X_VBDKIT_GOING_ON", {}); },
      .taken = [tell](const std::string& why) { tell("X_VBDKIT_IMAGE_TAKEN", why); },
  });
}

// For a job, which begins inside of `done`.
void Instance::claim_new_file(const std::string& path, LiveGraph::Done done) {
  if (options_.claims == nullptr) return done({});
  options_.claims->acquire({{path, ImageClaims::Mode::kWrite}},
                           [this, done = std::move(done)](Result<void> claimed) {
                             done(std::move(claimed));
                             settle_claims();  // where no job was started
                           });
}

// Has what `target` says (a path, or a spec, or nothing) claimed for writing before the command.
void Instance::claim_first(std::string_view command,
                           std::function<std::string(const Json&)> target) {
  const control::CommandTable::Command* const known = commands_.find(command);
  if (known == nullptr) return;
  commands_.add(
      command, known->arguments,
      [this, run = known->handler, target = std::move(target)](const Json& arguments, Reply reply) {
        std::string path = target(arguments);
        if (const auto graph = drivers::parse_graph(path)) path = graph->leaf().path;
        if (path.empty()) return run(arguments, std::move(reply));
        options_.claims->acquire(
            {{path, ImageClaims::Mode::kWrite}},
            [this, run, arguments,
             held = std::make_shared<Reply>(std::move(reply))](const Result<void>& claimed) {
              if (!claimed) return held->error(claimed.error());
              run(arguments, std::move(*held));
              settle_claims();  // where no job was started
            });
      });
}

// What changes files beside the reactor is not done while that may be another host's right.
void Instance::refuse_while_held(std::string_view command) {
  const control::CommandTable::Command* const known = commands_.find(command);
  if (known == nullptr) return;
  commands_.add(command, known->arguments,
                [this, run = known->handler](const Json& arguments, Reply reply) {
                  if (const auto may = options_.claims->may_write(); !may)
                    return reply.error(may.error());
                  run(arguments, std::move(reply));
                });
}

void Instance::add_claiming() {
  if (options_.claims == nullptr) return;
  watch_claims();
  for (const char* name :
       {"blockdev-snapshot-sync", "x-vbdkit-snapshot", "x-vbdkit-relink", "x-vbdkit-refresh",
        "x-vbdkit-group-prepare", "block_resize", "block-job-complete", "job-complete"})
    refuse_while_held(name);
  for (const char* name : {"blockdev-mirror", "x-vbdkit-migrate", "blockdev-backup"})
    claim_first(name, [](const Json& arguments) {
      return arguments.member("target").string().value_or("");
    });
  // What the command makes itself is claimed when it is there.
  for (const char* name : {"drive-mirror", "drive-backup"})
    claim_first(name, [](const Json& arguments) {
      std::string path = arguments.member("target").string().value_or("");
      return ::access(path.c_str(), F_OK) == 0 ? path : std::string();
    });
  // It writes to the parent.
  claim_first("block-commit", [this](const Json&) {
    const auto* const chain = graph_->chain();
    return chain == nullptr || chain->chain().paths.size() < 2 ? std::string()
                                                               : chain->chain().paths[1];
  });
}

}  // namespace vbdkit
