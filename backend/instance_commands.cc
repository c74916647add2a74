// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The commands of an instance's control socket. Names and results are QEMU's where the meaning is
// the same (QEMU's qapi/block-core.json); what QEMU has no word for is x-vbdkit-….
#include <memory>
#include <string>

#include "backend/instance.h"
#include "backend/jobs/start_commands.h"
#include "config.h"

namespace vbdkit {

using control::Json;
using control::JsonWriter;
using control::Reply;

namespace {

// The one disk's name for commands that take `device`.
constexpr const char* kDevice = "disk";

void write_node(JsonWriter& w, const drivers::Node& node, size_t depth) {
  w.begin_object();
  w.field("node-name", "node" + std::to_string(depth));
  w.field("drv", node.driver());
  w.field("file", node.spec());
  w.field("ro", node.info().read_only);
  w.field("virtual-size", node.info().size.v);
  w.end_object();
}

}  // namespace

void Instance::add_commands() {
  commands_.add("query-version", {}, [](const Json&, Reply reply) {
    const std::string greeting = control::qmp_greeting(VERSION);
    const auto parsed = Json::parse(greeting);
    reply.value(parsed->member("QMP").member("version").dump());
  });
  commands_.add("query-commands", {}, [this](const Json&, Reply reply) {
    JsonWriter w;
    w.begin_array();
    for (const std::string_view name : commands_.names())
      w.begin_object().field("name", name).end_object();
    w.end_array();
    reply.value(w.take());
  });
  commands_.add("query-status", {}, [this](const Json&, Reply reply) {
    JsonWriter w;
    w.begin_object().field("running", !settings_->paused());
    w.field("status", !settings_->paused() ? "running" : "paused").end_object();
    reply.value(w.take());
  });
  commands_.add("query-block", {},
                [this](const Json&, Reply reply) { query_block(std::move(reply)); });
  commands_.add("query-blockstats", {"query-nodes"},
                [this](const Json&, Reply reply) { query_blockstats(std::move(reply)); });
  commands_.add("query-named-block-nodes", {"flat"},
                [this](const Json&, Reply reply) { query_named_block_nodes(std::move(reply)); });
  jobs_ = std::make_unique<jobs::JobTable>(jobs::JobContext{
      reactor_, log_, *graph_,
      [this](std::string_view name, std::string_view data) { job_event(name, data); },
      [this] { return options_.claims ? options_.claims->may_write() : Result<void>(); },
      [this](const std::string& path, LiveGraph::Done done) {
        claim_new_file(path, std::move(done));
      }});
  jobs_->add_commands(commands_);
  jobs::add_start_commands(commands_, *jobs_);
  commands_.add("quit", {}, [this](const Json&, Reply reply) {
    reply.ok();
    quit();
  });
  commands_.add("x-vbdkit-attach-vbd", {"backend"}, [this](const Json& arguments, Reply reply) {
    attach_vbd(arguments, std::move(reply));
  });
  commands_.add("x-vbdkit-detach-vbd", {"backend"}, [this](const Json& arguments, Reply reply) {
    detach_vbd(arguments, std::move(reply));
  });
  commands_.add("x-vbdkit-query", {},
                [this](const Json&, Reply reply) { query_instance(std::move(reply)); });
  commands_.add("x-vbdkit-activate", {},
                [this](const Json&, Reply reply) { activate(std::move(reply)); });
  commands_.add("x-vbdkit-deactivate", {},
                [this](const Json&, Reply reply) { deactivate(std::move(reply)); });
  settings_ = std::make_unique<DiskSettings>(reactor_, *graph_,
                                             DiskSettings::Events{
                                                 .resized = [this] { disk_resized(); },
                                                 .state_changed = [this] { update_record(); },
                                                 .resumed_by_time =
                                                     [this] {
                                                       if (qmp_)
                                                         qmp_->event("X_VBDKIT_RESUMED", "{}");
                                                     },
                                             });
  settings_->add_commands(commands_);
}

void Instance::query_block(Reply reply) const {
  const drivers::NodeInfo& info = graph_->top().info();
  JsonWriter w;
  w.begin_array().begin_object();
  w.field("device", kDevice).field("type", "unknown");
  w.field("removable", false).field("locked", false);
  w.key("inserted").begin_object();
  w.field("node-name", "node0")
      .field("drv", graph_->top().driver())
      .field("file", graph_->top().spec());
  w.field("ro", info.read_only).field("encrypted", false);
  w.field("backing_file_depth", uint64_t{0});
  const drivers::ThrottleLimits limits = settings_->limits();
  for (const ThrottleArgument& argument : kThrottleArguments) {
    const drivers::Limit& limit = limits.*argument.limit;
    w.field(argument.rate, limit.rate);
    if (limit.burst != 0) w.field(argument.burst, limit.burst);
  }
  w.field("detect_zeroes", "off").field("write_threshold", uint64_t{0});
  w.key("cache").begin_object().field("writeback", info.volatile_cache);
  w.field("direct", false).field("no-flush", false).end_object();
  w.key("image")
      .begin_object()
      .field("filename", graph_->top().spec())
      .field("format", graph_->top().driver());
  w.field("virtual-size", info.size.v).end_object();
  w.end_object().end_object().end_array();
  reply.value(w.take());
}

void Instance::query_blockstats(Reply reply) const {
  const blkif::Stats guests = vbd_totals();
  const nbd::ServerStats nbd = nbd_ ? nbd_->stats() : nbd::ServerStats{};
  JsonWriter w;
  w.begin_array().begin_object();
  w.field("device", kDevice).field("node-name", "node0");
  w.key("stats").begin_object();
  w.field("rd_bytes", guests.reads.sectors.value() * kSectorSize + nbd.bytes_read);
  w.field("wr_bytes", guests.writes.sectors.value() * kSectorSize + nbd.bytes_written);
  w.field("rd_operations", guests.reads.completed.value() + nbd.reads);
  w.field("wr_operations", guests.writes.completed.value() + nbd.writes);
  w.field("flush_operations", guests.flushes.value() + nbd.flushes);
  w.field("unmap_operations", guests.discards.value());
  // An export's requests are not timed: these are the guests' alone.
  w.field("rd_total_time_ns", guests.reads.ticks_us.value() * 1000);
  w.field("wr_total_time_ns", guests.writes.ticks_us.value() * 1000);
  w.field("flush_total_time_ns", uint64_t{0});
  w.field("rd_merged", uint64_t{0}).field("wr_merged", graph_->scheduler().counters().merged);
  w.end_object().end_object().end_array();
  reply.value(w.take());
}

void Instance::query_named_block_nodes(Reply reply) const {
  JsonWriter w;
  w.begin_array();
  size_t depth = 0;
  for (drivers::Node* node = &graph_->top(); node != nullptr; node = node->next_node())
    write_node(w, *node, depth++);
  w.end_array();
  reply.value(w.take());
}

void Instance::attach_vbd(const Json& arguments, Reply reply) {
  const auto backend = arguments.member("backend").string();
  if (!backend) return reply.error("GenericError", "Parameter 'backend' is missing");
  if (auto attached = attach(*backend); !attached) return reply.error(attached.error());
  reply.ok();
}

void Instance::detach_vbd(const Json& arguments, Reply reply) {
  const auto backend = arguments.member("backend").string();
  if (!backend) return reply.error("GenericError", "Parameter 'backend' is missing");
  const auto slot = vbds_.find(*backend);
  if (slot == vbds_.end())
    return reply.error("DeviceNotFound", "VBD '" + *backend + "' is not attached here");
  slot->second.detaching.push_back(std::move(reply));
  if (slot->second.detaching.size() > 1) return;  // on its way
  if (!quitting_) let_go(*slot->second.vbd);
}

void Instance::query_instance(Reply reply) const {
  JsonWriter w;
  w.begin_object();
  write_identity(w);
  write_chain(w);
  write_consumers(w);
  const io::ReactorCounters& r = reactor_.counters();
  w.key("reactor").begin_object().field("engine", reactor_.engine_name());
  w.field("turns", r.turns).field("kernel-entries", r.kernel_entries);
  w.field("file-ops", r.file_ops).field("socket-ops", r.socket_ops).end_object();
  const SchedulerCounters& s = graph_->scheduler().counters();
  w.key("scheduler").begin_object().field("submitted", s.submitted);
  w.field("dispatched", s.dispatched).field("merged", s.merged);
  w.field("delayed", s.delayed).end_object();
  w.key("vbds").begin_array();
  for (const auto& [backend, slot] : vbds_) {
    const blkif::Stats v = slot.vbd->stats();
    w.begin_object().field("backend", backend);
    w.field("state", static_cast<uint64_t>(slot.vbd->state()));
    w.field("connected", slot.vbd->connected());
    w.field("reads", v.reads.completed.value()).field("read-sectors", v.reads.sectors.value());
    w.field("writes", v.writes.completed.value())
        .field("written-sectors", v.writes.sectors.value());
    w.field("flushes", v.flushes.value())
        .field("discards", v.discards.value())
        .field("errors", v.errors.value());
    w.field("events", v.events.value()).field("notifies", v.notifies.value());
    w.field("grant-maps", v.grant_maps.value()).field("grant-copies", v.grant_copies.value());
    w.end_object();
  }
  w.end_array();
  w.field("threads", uint64_t{1} + threads_.size());
  w.field("grants-mapped", grants_ ? grants_->mapped_pages() : 0);
  w.end_object();
  reply.value(w.take());
}

void Instance::disk_resized() {
  for (const auto& thread : threads_) thread->set_info(graph_->top().info());
  for (const auto& [backend, slot] : vbds_) slot.vbd->resized();
  JsonWriter w;
  w.begin_object().field("device", kDevice).field("size", graph_->top().info().size.v);
  w.end_object();
  qmp_->event("X_VBDKIT_RESIZED", w.take());
}

}  // namespace vbdkit
