// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The two forms of a node spec, behind parse_graph() (drivers/registry.h has the grammar). These
// functions know the syntax only; spec.cc checks drivers and keys. Pure: text in, values out.
#pragma once

#include <string>
#include <string_view>

#include "drivers/registry.h"

namespace vbdkit::drivers {

inline constexpr size_t kMaxSpecLength = 64 * 1024;  // bytes
inline constexpr size_t kMaxNodes = 32;

// Adds key=value to a node; refuses an empty or repeated key.
[[gnu::cold]] Result<void> add_option(NodeSpec& node, std::string_view key, std::string_view value);

[[gnu::cold]] Result<GraphSpec> parse_graph_text(std::string_view text);

[[gnu::cold]] Result<GraphSpec> parse_graph_json(std::string_view text);
std::string graph_to_json(const GraphSpec& graph);

}  // namespace vbdkit::drivers
