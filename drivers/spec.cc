// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/spec.h"

#include <algorithm>
#include <iterator>

#include "drivers/drivers.h"

namespace vbdkit::drivers {
namespace {

Error invalid(std::string message) { return Error(ErrorKind::kInvalid, std::move(message)); }

// A spec is quoted in its error; a long one only by its beginning.
std::string quoted(std::string_view text) {
  constexpr size_t kShown = 120;
  std::string out = "'";
  out += text.substr(0, kShown);
  out += text.size() > kShown ? "…'" : "'";
  return out;
}

template <typename Range, typename Name>
std::string joined(const Range& range, Name name) {
  std::string out;
  for (const auto& item : range) {
    if (!out.empty()) out += ", ";
    out += name(item);
  }
  return out;
}

// "key=value,key=value"; an empty list is no list.
Result<void> parse_options(NodeSpec& node, std::string_view list) {
  for (;;) {
    const size_t comma = list.find(',');
    const std::string_view item = list.substr(0, comma);
    const size_t equals = item.find('=');
    if (equals == std::string_view::npos)
      return invalid(node.driver + ": " + quoted(item) + ": expected key=value");
    VBDKIT_TRY(add_option(node, item.substr(0, equals), item.substr(equals + 1)));
    if (comma == std::string_view::npos) return {};
    list.remove_prefix(comma + 1);
  }
}

Result<NodeSpec> parse_node(std::string_view text) {
  NodeSpec node;
  const size_t colon = text.find(':');
  const std::string_view head = text.substr(0, colon);
  const size_t comma = head.find(',');
  node.driver = head.substr(0, comma);
  if (comma != std::string_view::npos) VBDKIT_TRY(parse_options(node, head.substr(comma + 1)));
  if (colon == std::string_view::npos) return node;
  const std::string_view argument = text.substr(colon + 1);
  const DriverEntry* entry = find_driver(node.driver);
  // Of an unknown driver it is not known either what its argument means: the check comes later.
  if (entry == nullptr || !entry->filter)
    node.path = argument;
  else if (!argument.empty())
    VBDKIT_TRY(parse_options(node, argument));
  return node;
}

Result<void> check_node(const NodeSpec& node, bool last) {
  const DriverEntry* entry = find_driver(node.driver);
  if (entry == nullptr) {
    std::string message = "unknown driver " + quoted(node.driver) + " (known: " +
                          joined(driver_table(), [](const auto& e) { return e.name; }) + ")";
    if (node.driver.starts_with('/')) message += "; a file is raw:" + node.driver;
    return invalid(std::move(message));
  }
  for (const auto& [key, value] : node.options) {
    if (std::ranges::find(entry->keys, std::string_view(key)) != entry->keys.end()) continue;
    return invalid(node.driver + ": unknown key " + quoted(key) +
                   (entry->keys.empty() ? std::string(" (it takes none)")
                                        : " (known: " + joined(entry->keys, [](const char* k) {
                                            return k;
                                          }) + ")"));
  }
  if (entry->filter && last) return invalid(node.driver + ": a filter needs a node after it");
  if (!entry->filter && !last)
    return invalid(node.driver + ": not a filter, so nothing may follow");
  if (entry->path && node.path.empty()) return invalid(node.driver + ": no path given");
  if (!entry->path && !node.path.empty())
    return invalid(node.driver + ": takes no path, but has " + quoted(node.path));
  return {};
}

Result<void> check_graph(const GraphSpec& graph) {
  if (graph.nodes.size() > kMaxNodes)
    return invalid("more than " + std::to_string(kMaxNodes) + " nodes");
  for (const NodeSpec& node : graph.nodes) VBDKIT_TRY(check_node(node, &node == &graph.leaf()));
  return {};
}

// Whatever the text form has said fits it again; only JSON can hold more.
bool fits_text(const GraphSpec& graph) {
  for (const NodeSpec& node : graph.nodes) {
    if (node.path.find('|') != std::string::npos) return false;
    // A leaf's options end at the first colon, a filter's come after it.
    const char* const ends_value = &node == &graph.leaf() ? ",|:" : ",|";
    for (const auto& [key, value] : node.options)
      if (value.find_first_of(ends_value) != std::string::npos) return false;
  }
  return true;
}

Result<GraphSpec> parse_checked(std::string_view text) {
  if (text.empty()) return invalid("empty");
  if (text.size() > kMaxSpecLength)
    return invalid("longer than " + std::to_string(kMaxSpecLength) + " bytes");
  // It would end a path early in the system calls, so that another file was opened than checked.
  if (text.find('\0') != std::string_view::npos) return invalid("contains a NUL character");
  VBDKIT_ASSIGN(GraphSpec graph,
                text.front() == '{' ? parse_graph_json(text) : parse_graph_text(text));
  VBDKIT_TRY(check_graph(graph));
  return graph;
}

}  // namespace

const DriverEntry* find_driver(std::string_view name) {
  for (const DriverEntry& entry : driver_table())
    if (name == entry.name) return &entry;
  return nullptr;
}

Result<void> add_option(NodeSpec& node, std::string_view key, std::string_view value) {
  if (key.empty()) return invalid(node.driver + ": option without a key");
  if (!node.options.emplace(key, value).second)
    return invalid(node.driver + ": key " + quoted(key) + " given twice");
  return {};
}

Result<GraphSpec> parse_graph_text(std::string_view text) {
  GraphSpec graph;
  for (;;) {
    const size_t bar = text.find('|');
    VBDKIT_ASSIGN(NodeSpec node, parse_node(text.substr(0, bar)));
    graph.nodes.push_back(std::move(node));
    if (bar == std::string_view::npos) return graph;
    if (graph.nodes.size() > kMaxNodes) return graph;  // refused by the check
    text.remove_prefix(bar + 1);
  }
}

Result<GraphSpec> parse_graph(std::string_view text) {
  auto graph = parse_checked(text);
  if (!graph) return std::move(graph).error().context("node spec " + quoted(text));
  return graph;
}

std::string NodeSpec::to_string() const {
  const DriverEntry* entry = find_driver(driver);
  const bool filter = entry != nullptr && entry->filter;
  std::string out = driver;
  char separator = filter ? ':' : ',';
  for (const auto& [key, value] : options) {
    out += separator;
    out += key;
    out += '=';
    out += value;
    separator = ',';
  }
  if (!path.empty()) {
    out += ':';
    out += path;
  }
  return out;
}

std::string GraphSpec::to_string() const {
  if (!fits_text(*this)) return graph_to_json(*this);
  std::string out;
  for (const NodeSpec& node : nodes) {
    if (!out.empty()) out += '|';
    out += node.to_string();
  }
  return out;
}

std::string spec_in_front(const NodeSpec& filter, const Node& next) {
  const std::string below = next.spec();
  GraphSpec graph{{filter}};
  // Through the parsed form, as a path may force the whole into JSON.
  auto parsed = parse_graph(below);
  if (!parsed) return graph.to_string() + "|" + below;
  std::ranges::move(parsed->nodes, std::back_inserter(graph.nodes));
  return graph.to_string();
}

}  // namespace vbdkit::drivers
