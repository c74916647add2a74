// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit map: which file holds which part of a disk, or which parts were changed.
#include <cstdio>

#include "drivers/chain/open_chain.h"
#include "drivers/dirty_bitmap.h"
#include "drivers/jobs/map_job.h"
#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/job_runner.h"
#include "storage/terminal.h"

namespace vbdkit::storage {
namespace {

using drivers::MapRun;
using drivers::Segment;

const char* name_of(Segment::Kind kind) {
  switch (kind) {
    case Segment::Kind::kData:
      return "data";
    case Segment::Kind::kZero:
      return "zero";
    case Segment::Kind::kCompressed:
      return "compressed";
    case Segment::Kind::kAbsent:
      break;
  }
  return "absent";
}

// Writes runs as they are found: the map of a large disk need not fit into memory.
class Printer {
 public:
  Printer(bool json, const std::vector<std::string>& paths) : json_(json), paths_(paths) {
    if (json_)
      std::putchar('[');
    else
      std::printf("%15s %15s  %-10s %5s %15s  %s\n", "OFFSET", "LENGTH", "KIND", "DEPTH",
                  "FILE OFFSET", "FILE");
  }

  void add(const MapRun& run) {
    if (json_)
      add_json(run);
    else
      add_text(run);
  }
  void end() {
    if (json_) std::puts(first_ ? "]" : "\n]");
  }

 private:
  void add_json(const MapRun& run) {
    Json json = {{"offset", run.offset}, {"length", run.length}, {"kind", name_of(run.kind)}};
    if (run.kind != Segment::Kind::kAbsent) {
      json["depth"] = run.layer;
      json["file"] = paths_[run.layer];
    }
    if (run.kind == Segment::Kind::kData) json["file-offset"] = run.file_offset;
    std::printf("%s\n  %s", std::exchange(first_, false) ? "" : ",",
                json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  }
  void add_text(const MapRun& run) {
    std::printf("%15llu %15llu  %-10s", static_cast<unsigned long long>(run.offset),
                static_cast<unsigned long long>(run.length), name_of(run.kind));
    if (run.kind != Segment::Kind::kAbsent) {
      std::printf(" %5zu ", run.layer);
      if (run.kind == Segment::Kind::kData)
        std::printf("%15llu", static_cast<unsigned long long>(run.file_offset));
      else
        std::printf("%15s", "");
      std::printf("  %s", printable(paths_[run.layer]).c_str());
    }
    std::putchar('\n');
  }

  const bool json_;
  bool first_ = true;
  const std::vector<std::string>& paths_;
};

// Of a bitmap that a filter of the graph keeps.
Result<int> run_changed(const po::variables_map& vm, const Logger& log) {
  VBDKIT_ASSIGN(const drivers::GraphSpec graph, drivers::parse_graph(text_of(vm, "SPEC")));
  VBDKIT_ASSIGN(const io::EngineKind engine, engine_of(vm));
  VBDKIT_ASSIGN(const auto runner, JobRunner::create(engine, log));
  VBDKIT_ASSIGN(const drivers::NodePtr node, drivers::open_graph(graph, runner->context(true)));
  const std::string name = text_of(vm, "changed");
  const drivers::DirtyBitmap* const bitmap = drivers::find_dirty_bitmap(*node, name);
  if (bitmap == nullptr)
    return usage_error("no bitmap '" + name + "' in " + graph.to_string() +
                       " (a filter keeps it: cbt:name=" + name + ",file=...)");
  const bool json = vm.count("json") != 0;
  if (!json) std::printf("%15s %15s\n", "OFFSET", "LENGTH");
  bool first = true;
  const uint64_t end = node->info().size.v;
  for (uint64_t at = 0; at < end;) {
    const auto found = bitmap->run_at(at, end);
    const auto offset = static_cast<unsigned long long>(at);
    const auto length = static_cast<unsigned long long>(found.length);
    at += found.length;
    if (!found.dirty) continue;
    if (json)
      std::printf("%s\n  {\"offset\":%llu,\"length\":%llu}",
                  std::exchange(first, false) ? "[" : ",", offset, length);
    else
      std::printf("%15llu %15llu\n", offset, length);
  }
  if (json) std::puts(first ? "[]" : "\n]");
  return kExitOk;
}

Result<int> run(const po::variables_map& vm, const Logger& log) {
  if (vm.count("changed") != 0) return run_changed(vm, log);
  VBDKIT_ASSIGN(const drivers::NodeSpec image, parse_image(text_of(vm, "SPEC")));
  if (drivers::find_layer_format(image.driver) == nullptr)
    return usage_error(image.driver + " is not the format of an image file");
  VBDKIT_ASSIGN(const io::EngineKind engine, engine_of(vm));
  VBDKIT_ASSIGN(const auto runner, JobRunner::create(engine, log));
  const drivers::ChainPolicy policy{.raw_parent = image.driver == "qcow2"};
  VBDKIT_ASSIGN(const drivers::Chain chain,
                drivers::open_layers(image, policy, runner->context(true)));
  Printer printer(vm.count("json") != 0, chain.paths);
  drivers::MapJob job(chain, [&](const MapRun& found) { printer.add(found); });
  int error = 0;
  VBDKIT_TRY(runner->run("map", job, [&] {
    job.start([&](int e) {
      error = e;
      runner->finished();
    });
  }));
  printer.end();
  if (error != 0) return Error::from_errno(error, "map of " + image.to_string());
  return kExitOk;
}

}  // namespace

int map(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("map [OPTION...] SPEC", {"SPEC"});
  syntax.options.add_options()("json", "for programs")  //
      ("changed", po::value<std::string>()->value_name("NAME"),
       "what was changed, by the bitmap of that name");
  add_engine_option(syntax);
  return run_command(syntax, args, log, [&](const po::variables_map& vm) { return run(vm, log); });
}

}  // namespace vbdkit::storage
