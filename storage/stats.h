// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What instances count (QMP query-blockstats), and rates between two samples: for stats and top.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <span>
#include <string>

#include "backend/control/json.h"
#include "backend/control/qmp_client.h"
#include "storage/registry.h"
#include "storage/terminal.h"

namespace vbdkit::storage {

struct IoCounters {
  uint64_t reads = 0;
  uint64_t writes = 0;
  uint64_t flushes = 0;
  uint64_t discards = 0;
  uint64_t bytes_read = 0;
  uint64_t bytes_written = 0;
  uint64_t read_ns = 0;  // guests' requests alone
  uint64_t write_ns = 0;

  // Of the answer to query-blockstats.
  static IoCounters of(const control::Json& blockstats);
};

struct IoRates {
  double reads = 0;  // per second
  double writes = 0;
  double bytes_read = 0;
  double bytes_written = 0;
  double read_ms = 0;  // of a request, on average
  double write_ms = 0;

  static IoRates between(const IoCounters& before, const IoCounters& after, double seconds);
};

Json to_json(const IoCounters& counters);
Json to_json(const IoRates& rates);

// Keeps a connection to each instance it has asked.
class StatsSource {
 public:
  struct Sample {
    std::chrono::steady_clock::time_point when;
    IoCounters counters;
  };
  // By UUID; without those that do not answer.
  std::map<std::string, Sample> sample(std::span<const InstanceRecord> instances);

 private:
  std::map<std::string, control::QmpClient> clients_;
};

}  // namespace vbdkit::storage
