// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Node specs come from a domain's configuration: any text gets a graph or an error, and the
// canonical form of a graph parses to the same graph.
#include <cstdlib>
#include <string_view>

#include "drivers/registry.h"

using vbdkit::drivers::parse_graph;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto graph = parse_graph({reinterpret_cast<const char*>(data), size});
  if (!graph) {
    if (graph.error().message().empty()) abort();
    return 0;
  }
  const auto again = parse_graph(graph->to_string());
  if (!again || !(*again == *graph)) abort();
  return 0;
}
