// SPDX-License-Identifier: LGPL-2.1-or-later
//
// vbdkit drivers: what node specs may be made of, from the registry's own table.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "drivers/registry.h"
#include "storage/command.h"

namespace vbdkit::storage {
namespace {

void print_text() {
  for (const drivers::DriverEntry& driver : drivers::driver_table()) {
    std::printf("%-10s %-7s %s\n", driver.name, driver.filter ? "filter" : "leaf", driver.summary);
    if (driver.keys.empty()) continue;
    std::printf("%-18s keys:", "");
    for (const char* key : driver.keys) std::printf(" %s", key);
    std::putchar('\n');
  }
}

void print_json() {
  auto list = nlohmann::json::array();
  for (const drivers::DriverEntry& driver : drivers::driver_table()) {
    auto keys = nlohmann::json::array();
    for (const char* key : driver.keys) keys.push_back(key);
    list.push_back({{"name", driver.name},
                    {"summary", driver.summary},
                    {"filter", driver.filter},
                    {"keys", std::move(keys)}});
  }
  std::puts(list.dump(2).c_str());
}

}  // namespace

int list_drivers(const std::vector<std::string>& args, const Logger& log) {
  if (args.empty()) {
    print_text();
    return kExitOk;
  }
  if (args.size() == 1 && args[0] == "--json") {
    print_json();
    return kExitOk;
  }
  const bool help = args.size() == 1 && (args[0] == "--help" || args[0] == "-h");
  std::fputs("Usage: vbdkit drivers [--json]\n", help ? stdout : stderr);
  if (help) return kExitOk;
  log.error("drivers: unexpected argument '%s'", args.back().c_str());
  return kExitUsage;
}

}  // namespace vbdkit::storage
