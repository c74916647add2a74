// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/live_commands.h"

#include <unistd.h>

#include <chrono>
#include <optional>
#include <utility>

#include "backend/control/arguments.h"
#include "drivers/image_forest.h"
#include "drivers/image_format.h"
#include "drivers/image_snapshot.h"

namespace vbdkit {

using control::Json;
using control::JsonWriter;
using control::Reply;
using control::wrong_type;
using drivers::NodeSpec;
using drivers::same_file;

namespace {

constexpr std::chrono::seconds kRetakeInterval{5};

// std::function wants a copyable target.
std::shared_ptr<Reply> hold(Reply reply) { return std::make_shared<Reply>(std::move(reply)); }

// The image beneath the filters, as a spec.
Result<NodeSpec> image_spec(const LiveGraph& graph) {
  if (const auto* const chain = graph.chain()) return chain->options().image;
  VBDKIT_ASSIGN(const auto spec, drivers::parse_graph(graph.image().spec()));
  return spec.leaf();
}

}  // namespace

struct LiveCommands::Snapshot {
  NodeSpec image;      // the new leaf
  std::string former;  // where the present one's file is then
  // Beside the loop: makes the files; and takes that back.
  std::function<Result<void>()> make;
  std::function<Result<void>()> undo;
  bool made = false;
};

LiveCommands::LiveCommands(io::Reactor& reactor, const Logger& log, LiveGraph& graph,
                           drivers::OpenOptions options, Admit admit, Settled settled)
    : reactor_(reactor),
      log_(log),
      graph_(graph),
      options_(std::move(options)),
      admit_(std::move(admit)),
      settled_(std::move(settled)),
      beside_(reactor) {
  // A parent may have been met while it was being written by a coalescer.
  retake_ = reactor_.timer([this] { retake_locks(); });
  if (graph_.chain() != nullptr && graph_.chain()->chain().layers.size() > 1)
    retake_->arm(io::Timer::Clock::now() + kRetakeInterval);
}

void LiveCommands::add_to(control::CommandTable& commands) {
  commands.add(
      "blockdev-snapshot-sync",
      {"device", "node-name", "snapshot-file", "snapshot-node-name", "format", "mode"},
      [this](const Json& arguments, Reply reply) { snapshot_sync(arguments, std::move(reply)); });
  commands.add(
      "x-vbdkit-snapshot", {"name", "options"},
      [this](const Json& arguments, Reply reply) { snapshot_name(arguments, std::move(reply)); });
  commands.add("x-vbdkit-refresh", {},
               [this](const Json&, Reply reply) { refresh(std::move(reply)); });
  commands.add("x-vbdkit-relink", {"from", "parent", "parent-format"},
               [this](const Json& arguments, Reply reply) { relink(arguments, std::move(reply)); });
  commands.add("x-vbdkit-yield-lock", {"paths"}, [this](const Json& arguments, Reply reply) {
    yield_lock(arguments, std::move(reply));
  });
}

// QEMU's arguments and meaning: the new file is the leaf.
void LiveCommands::snapshot_sync(const Json& arguments, Reply reply) {
  const auto file = arguments.member("snapshot-file").string();
  if (!file) return reply.error(wrong_type("snapshot-file", "string"));
  const std::string mode = arguments.member("mode").string().value_or("absolute-paths");
  if (mode != "absolute-paths" && mode != "existing")
    return reply.error("GenericError", "Parameter 'mode' does not accept value '" + mode + "'");
  auto present = image_spec(graph_);
  if (!present) return reply.error(present.error());
  auto snapshot = std::make_shared<Snapshot>();
  snapshot->image = *present;
  snapshot->image.driver = arguments.member("format").string().value_or("qcow2");
  snapshot->image.path = *file;
  snapshot->former = present->path;
  const auto* const format = drivers::find_image_format(snapshot->image.driver);
  if (format == nullptr || format->plan_parent == nullptr)
    return reply.error("GenericError",
                       "Format '" + snapshot->image.driver + "' cannot stand on another image");
  snapshot->make = [format, mode, path = *file, parent = *present]() -> Result<void> {
    if (mode == "existing") return {};
    drivers::CreateRequest request;
    request.path = path;
    VBDKIT_ASSIGN(request.parent, drivers::absolute_parent(parent.path));
    request.parent_format = parent.driver;
    VBDKIT_TRY(format->create(request));
    return drivers::sync_directory(drivers::directory_of(path));
  };
  snapshot->undo = [mode, path = *file]() -> Result<void> {
    if (mode != "existing" && ::unlink(path.c_str()) != 0)
      return Error::from_errno(errno, "remove " + path);
    return {};
  };
  take(std::move(snapshot), std::move(reply));
}

void LiveCommands::snapshot_name(const Json& arguments, Reply reply) {
  auto name = arguments.member("name").string();
  if (!name) return reply.error(wrong_type("name", "string"));
  auto options = control::string_map(arguments, "options");
  if (!options) return reply.error(options.error());
  auto present = image_spec(graph_);
  if (!present) return reply.error(present.error());
  if (name->find('/') == std::string::npos)
    *name = drivers::directory_of(present->path) + "/" + *name;
  auto snapshot = std::make_shared<Snapshot>();
  snapshot->image = *present;
  snapshot->former = *name;
  auto files = std::make_shared<std::optional<drivers::ImageSnapshot>>();
  snapshot->make = [files, image = *present, name = *name,
                    options = std::move(*options)]() -> Result<void> {
    VBDKIT_ASSIGN(auto prepared, drivers::ImageSnapshot::prepare(image, name, options));
    files->emplace(std::move(prepared));
    return (*files)->commit();
  };
  snapshot->undo = [files] { return (*files)->undo(); };
  take(std::move(snapshot), std::move(reply));
}

void LiveCommands::take(std::shared_ptr<Snapshot> snapshot, Reply reply) {
  if (const auto free = graph_.unreserved(); !free) return reply.error(free.error());
  const auto held = hold(std::move(reply));
  LiveGraph::Change change;
  change.flush = true;
  change.prepare = [this, snapshot](LiveGraph::Done ready) {
    if (graph_.top().info().read_only)
      return ready(Error(ErrorKind::kPermission, "snapshot: the disk is read-only", EROFS));
    beside_.run(snapshot->make, [this, snapshot, ready = std::move(ready)](Result<void> made) {
      snapshot->made = made.ok();
      if (!made || !admit_) return ready(std::move(made));
      admit_(snapshot->image.path, ready);
    });
  };
  change.apply = [this, snapshot](drivers::NodePtr& top) -> Result<void> {
    if (auto* const chain = graph_.chain())
      return put_in_front(*chain, {snapshot->image, snapshot->former}, context());
    return put_over_raw(top, *snapshot);
  };
  change.done = [this, snapshot, held](Result<void> result) {
    if (result) return held->ok();
    log_.error("snapshot: %s", result.error().message().c_str());
    if (snapshot->made)
      if (const auto undone = snapshot->undo(); !undone)
        log_.error("snapshot: taking it back: %s", undone.error().message().c_str());
    held->error(result.error());
  };
  graph_.change(std::move(change));
}

// A plain file gets a chain in its place.
Result<void> LiveCommands::put_over_raw(drivers::NodePtr& top, const Snapshot& snapshot) {
  drivers::Node& present = graph_.image();
  NodeSpec spec = snapshot.image;
  spec.options["raw-parent"] = "on";
  VBDKIT_TRY(present.share(drivers::Sharing::kReaders));
  auto opened = drivers::open_graph({{spec}}, context());
  if (opened && opened.value()->info().size != present.info().size)
    opened = Error(ErrorKind::kInvalid, "snapshot: " + spec.path + ": its disk has " +
                                            std::to_string(opened.value()->info().size.v) +
                                            " bytes, that beneath it " +
                                            std::to_string(present.info().size.v));
  const auto* const chain =
      opened ? dynamic_cast<const drivers::ChainNode*>(opened.value().get()) : nullptr;
  if (opened && (chain == nullptr || chain->chain().paths.size() != 2 ||
                 !same_file(chain->chain().paths[1], snapshot.former)))
    opened = Error(ErrorKind::kInvalid,
                   "snapshot: " + spec.path + " does not stand on " + snapshot.former);
  if (!opened) {
    if (const auto taken = present.share(drivers::Sharing::kAsOpened); !taken)
      log_.warning("%s", taken.error().message().c_str());
    return std::move(opened).error();
  }
  LiveGraph::replace(top, present, std::move(opened).value());
  return {};
}

void LiveCommands::refresh(Reply reply) {
  change_parents(
      std::make_shared<std::unique_ptr<drivers::ChainRefresh>>(),
      [this]() -> Result<std::unique_ptr<drivers::ChainRefresh>> {
        auto* const chain = graph_.chain();
        if (chain == nullptr) return std::unique_ptr<drivers::ChainRefresh>();
        return std::make_unique<drivers::ChainRefresh>(*chain, context());
      },
      false, std::move(reply));
}

void LiveCommands::relink(const Json& arguments, Reply reply) {
  const auto from = arguments.member("from").string();
  if (!from) return reply.error(wrong_type("from", "string"));
  drivers::ParentReference parent;
  if (const auto path = arguments.member("parent").string())
    parent.path = *path;
  else
    return reply.error(wrong_type("parent", "string"));
  parent.tried = {parent.path};
  parent.format = arguments.member("parent-format").string().value_or("");
  change_parents(
      std::make_shared<std::unique_ptr<drivers::ChainRefresh>>(),
      [this, parent, from = *from]() -> Result<std::unique_ptr<drivers::ChainRefresh>> {
        auto* const chain = graph_.chain();
        if (chain == nullptr || graph_.top().info().read_only)
          return Error(ErrorKind::kInvalid, "no image that has a parent is open for writing here");
        // A snapshot may have put another image in front meanwhile.
        const auto& paths = chain->chain().paths;
        if (paths.size() < 2 || (!same_file(paths[1], from) && !same_file(paths[1], parent.path)))
          return Error(ErrorKind::kBusy, paths.front() + " does not stand on " + from, EBUSY);
        return std::make_unique<drivers::ChainRefresh>(*chain, context(), parent);
      },
      true, std::move(reply));
}

void LiveCommands::change_parents(std::shared_ptr<std::unique_ptr<drivers::ChainRefresh>> refresh,
                                  MakeRefresh make, bool flush, Reply reply) {
  if (const auto free = graph_.unreserved(); !free) return reply.error(free.error());
  const auto held = hold(std::move(reply));
  LiveGraph::Change change;
  change.flush = flush;
  change.prepare = [this, refresh, make = std::move(make)](LiveGraph::Done ready) {
    auto made = make();
    if (!made) return ready(made.error());
    *refresh = std::move(made).value();
    if (*refresh == nullptr) return ready({});
    LiveGraph::take_steps(reactor_, refresh, std::move(ready));
  };
  change.apply = [refresh](drivers::NodePtr& top) -> Result<void> {
    if (*refresh != nullptr) VBDKIT_TRY((*refresh)->apply());
    return top->refresh_size();
  };
  change.done = [this, refresh, held](Result<void> result) {
    const size_t opened = *refresh ? (*refresh)->opened() : 0;
    refresh->reset();
    retake_locks();
    if (!result) return held->error(result.error());
    JsonWriter w;
    w.begin_object().field("opened", uint64_t{opened});
    w.field("virtual-size", graph_.top().info().size.v).end_object();
    // Who removes an image waits for this answer.
    if (settled_)
      settled_([held, answer = w.take()] { held->value(answer); });
    else
      held->value(w.take());
  };
  graph_.change(std::move(change));
}

void LiveCommands::yield_lock(const Json& arguments, Reply reply) {
  const Json paths = arguments.member("paths");
  if (!paths.is_array()) return reply.error(wrong_type("paths", "array"));
  auto* const node = graph_.chain();
  JsonWriter w;
  w.begin_object().key("yielded").begin_array();
  for (size_t i = 0; i < paths.size(); ++i) {
    const auto path = paths.at(i).string();
    if (!path) return reply.error(wrong_type("paths", "array of strings"));
    for (size_t k = 0; node != nullptr && k < node->chain().layers.size(); ++k) {
      if (!same_file(node->chain().paths[k], *path)) continue;
      if (auto r = node->chain().layers[k]->file().share(drivers::Sharing::kCoalescer); !r)
        return reply.error(r.error());
      w.string(*path);
    }
  }
  w.end_array().end_object();
  retake_->arm(io::Timer::Clock::now() + kRetakeInterval);
  reply.value(w.take());
}

void LiveCommands::retake_locks() {
  auto* const node = graph_.chain();
  if (node == nullptr) return;
  bool all = true;
  // The leaf's is as it was opened, or as a snapshot that failed left it.
  for (const auto& layer : node->chain().layers)
    all = layer->file().share(drivers::Sharing::kAsOpened).ok() && all;
  if (!all) retake_->arm(io::Timer::Clock::now() + kRetakeInterval);
}

}  // namespace vbdkit
