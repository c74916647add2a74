// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/stats.h"

#include <cstdio>
#include <set>

#include "storage/arguments.h"
#include "storage/command.h"
#include "storage/instance_argument.h"
#include "storage/table.h"

namespace vbdkit::storage {

namespace {

constexpr std::chrono::seconds kSampleTimeout{2};  // one that hangs must not stop the others' show

double per_request_ms(uint64_t ns, uint64_t requests) {
  return requests == 0 ? 0 : static_cast<double>(ns) / 1e6 / static_cast<double>(requests);
}

void print_table(std::span<const InstanceRecord> instances,
                 const std::map<std::string, StatsSource::Sample>& samples) {
  using enum Table::Align;
  Table table({{"UUID"},
               {"READS", kRight},
               {"READ", kRight},
               {"WRITES", kRight},
               {"WRITTEN", kRight},
               {"FLUSHES", kRight},
               {"DISCARDS", kRight},
               {"IMAGE"}});
  for (const InstanceRecord& instance : instances) {
    const auto sample = samples.find(instance.uuid);
    if (sample == samples.end()) continue;
    const IoCounters& c = sample->second.counters;
    table.add({instance.uuid, std::to_string(c.reads), human_size(c.bytes_read),
               std::to_string(c.writes), human_size(c.bytes_written), std::to_string(c.flushes),
               std::to_string(c.discards), instance.spec});
  }
  std::fputs(table.text().c_str(), stdout);
}

}  // namespace

IoCounters IoCounters::of(const control::Json& blockstats) {
  const control::Json stats = blockstats.at(0).member("stats");
  const auto number = [&](const char* key) { return stats.member(key).number().value_or(0); };
  return {.reads = number("rd_operations"),
          .writes = number("wr_operations"),
          .flushes = number("flush_operations"),
          .discards = number("unmap_operations"),
          .bytes_read = number("rd_bytes"),
          .bytes_written = number("wr_bytes"),
          .read_ns = number("rd_total_time_ns"),
          .write_ns = number("wr_total_time_ns")};
}

IoRates IoRates::between(const IoCounters& before, const IoCounters& after, double seconds) {
  if (seconds <= 0) return {};
  // An instance that was started anew counts from 0.
  const auto grown = [](uint64_t from, uint64_t to) { return to >= from ? to - from : to; };
  const uint64_t reads = grown(before.reads, after.reads);
  const uint64_t writes = grown(before.writes, after.writes);
  const auto rate = [&](uint64_t n) { return static_cast<double>(n) / seconds; };
  return {.reads = rate(reads),
          .writes = rate(writes),
          .bytes_read = rate(grown(before.bytes_read, after.bytes_read)),
          .bytes_written = rate(grown(before.bytes_written, after.bytes_written)),
          .read_ms = per_request_ms(grown(before.read_ns, after.read_ns), reads),
          .write_ms = per_request_ms(grown(before.write_ns, after.write_ns), writes)};
}

Json to_json(const IoCounters& c) {
  return {{"reads", c.reads},           {"writes", c.writes},
          {"flushes", c.flushes},       {"discards", c.discards},
          {"bytes-read", c.bytes_read}, {"bytes-written", c.bytes_written},
          {"read-ns", c.read_ns},       {"write-ns", c.write_ns}};
}

Json to_json(const IoRates& r) {
  return {{"reads", r.reads},           {"writes", r.writes},
          {"bytes-read", r.bytes_read}, {"bytes-written", r.bytes_written},
          {"read-ms", r.read_ms},       {"write-ms", r.write_ms}};
}

std::map<std::string, StatsSource::Sample> StatsSource::sample(
    std::span<const InstanceRecord> instances) {
  std::map<std::string, Sample> samples;
  std::set<std::string> present;
  for (const InstanceRecord& instance : instances) {
    if (!instance.alive) continue;
    auto client = clients_.find(instance.uuid);
    if (client == clients_.end()) {
      auto connected = control::QmpClient::connect(instance.qmp_socket(), kSampleTimeout);
      if (!connected) continue;
      client = clients_.emplace(instance.uuid, std::move(*connected)).first;
    }
    const auto answer = client->second.execute("query-blockstats", {}, kSampleTimeout);
    if (!answer) {
      clients_.erase(client);  // the next sample connects anew
      continue;
    }
    present.insert(instance.uuid);
    samples[instance.uuid] = {std::chrono::steady_clock::now(), IoCounters::of(*answer)};
  }
  std::erase_if(clients_, [&](const auto& entry) { return !present.contains(entry.first); });
  return samples;
}

int stats(const std::vector<std::string>& args, const Logger& log) {
  Syntax syntax("stats [OPTION...] [INSTANCE]", {}, {"INSTANCE"});
  syntax.options.add_options()("json", "for programs; of one instance with all that it knows");
  add_runtime_dir_option(syntax.options);
  return run_command(syntax, args, log, [&](const po::variables_map& vm) -> Result<int> {
    const Registry registry = registry_of(vm);
    const bool json = vm.count("json") != 0;
    std::vector<InstanceRecord> instances;
    if (vm.count("INSTANCE") != 0) {
      VBDKIT_ASSIGN(InstanceRecord one, find_instance(registry, text_of(vm, "INSTANCE"), log));
      instances.push_back(std::move(one));
    } else {
      VBDKIT_ASSIGN(instances, registry.list());
    }
    const auto samples = StatsSource().sample(instances);
    if (!json) {
      print_table(instances, samples);
      return kExitOk;
    }
    Json all = Json::array();
    for (const InstanceRecord& instance : instances) {
      const auto sample = samples.find(instance.uuid);
      if (sample == samples.end()) continue;
      Json one = {{"uuid", instance.uuid}, {"spec", instance.spec}};
      one["io"] = to_json(sample->second.counters);
      if (vm.count("INSTANCE") != 0) {
        VBDKIT_ASSIGN(const auto details, ask(instance, "x-vbdkit-query"));
        one["instance"] = Json::parse(details.dump(), nullptr, false);
      }
      all.push_back(std::move(one));
    }
    print_json(all);
    return kExitOk;
  });
}

}  // namespace vbdkit::storage
