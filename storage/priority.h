// SPDX-License-Identifier: LGPL-2.1-or-later
//
// How an instance's process is weighed against others: its I/O priority (ioprio_set(2), as
// ionice(1) sets it) and its weights in a control group of its own (cgroup v2: cpu.weight,
// io.weight; the kernel's Documentation/admin-guide/cgroup-v2). Set from outside, on all of its
// threads, whenever one likes; takes root. Blocking; any thread.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "storage/arguments.h"
#include "storage/terminal.h"

namespace vbdkit::storage {

struct Priority {
  std::optional<int> io;  // as the kernel packs class and level
  std::optional<unsigned> io_weight;
  std::optional<unsigned> cpu_weight;

  bool empty() const { return !io && !io_weight && !cpu_weight; }
};

// "realtime:0", "best-effort:4", "idle".
Result<int> parse_io_priority(std::string_view text);
std::string io_priority_name(int packed);

// --ionice, --io-weight, --cpu-weight
void add_priority_options(po::options_description& options);
Result<Priority> priority_of(const po::variables_map& vm);

Result<void> set_priority(pid_t pid, const std::string& uuid, const Priority& priority);
Result<Priority> read_priority(pid_t pid, const std::string& uuid);
// Takes away the control groups of those that have ended.
void remove_empty_groups();

}  // namespace vbdkit::storage
