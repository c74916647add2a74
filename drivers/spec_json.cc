// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The JSON form of a node spec. The only file here that knows the JSON library; no exception of
// that leaves it.
#include <nlohmann/json.hpp>

#include "drivers/spec.h"

namespace vbdkit::drivers {
namespace {

using nlohmann::json;

Error invalid(std::string message) { return Error(ErrorKind::kInvalid, std::move(message)); }

Result<std::string> option_text(const NodeSpec& node, const std::string& key, const json& value) {
  switch (value.type()) {
    case json::value_t::string:
      return value.get_ref<const std::string&>();
    case json::value_t::boolean:
      return std::string(value.get<bool>() ? "on" : "off");
    case json::value_t::number_unsigned:
      return std::to_string(value.get<uint64_t>());
    default:
      return invalid(node.driver + ": key '" + key +
                     "': expected a string, a whole number, true or false");
  }
}

// Everything of one node but what follows it.
Result<NodeSpec> node_of(const json& object) {
  if (!object.is_object()) return invalid("a node must be a JSON object");
  const auto driver = object.find("driver");
  if (driver == object.end() || !driver->is_string())
    return invalid("a node needs the key 'driver' with a string");
  NodeSpec node;
  node.driver = driver->get_ref<const std::string&>();
  for (const auto& [key, value] : object.items()) {
    if (key == "driver" || key == "next") continue;
    VBDKIT_ASSIGN(std::string text, option_text(node, key, value));
    if (text.find('\0') != std::string::npos)
      return invalid(node.driver + ": key '" + key + "': contains a NUL character");
    if (key == "path") {
      if (!value.is_string()) return invalid(node.driver + ": key 'path': expected a string");
      node.path = std::move(text);
    } else {
      VBDKIT_TRY(add_option(node, key, text));
    }
  }
  return node;
}

json object_of(const NodeSpec& node) {
  json object = {{"driver", node.driver}};
  if (!node.path.empty()) object["path"] = node.path;
  for (const auto& [key, value] : node.options) object[key] = value;
  return object;
}

}  // namespace

// The library keeps the last of two equal keys, and parses and frees without recursion, so that
// depth is bounded by the length of the text alone.
Result<GraphSpec> parse_graph_json(std::string_view text) {
  json root;
  try {
    root = json::parse(text);
  } catch (const json::parse_error& e) {
    return invalid("not valid JSON, at byte " + std::to_string(e.byte));
  } catch (const json::out_of_range&) {
    return invalid("not valid JSON: a number is out of range");
  }
  GraphSpec graph;
  for (const json* object = &root;;) {
    VBDKIT_ASSIGN(NodeSpec node, node_of(*object));
    graph.nodes.push_back(std::move(node));
    const auto next = object->find("next");
    if (next == object->end() || graph.nodes.size() > kMaxNodes) return graph;
    object = &*next;
  }
}

std::string graph_to_json(const GraphSpec& graph) {
  json object;
  for (auto it = graph.nodes.rbegin(); it != graph.nodes.rend(); ++it) {
    json outer = object_of(*it);
    if (!object.is_null()) outer["next"] = std::move(object);
    object = std::move(outer);
  }
  // A path need not be UTF-8; such bytes cannot be written in JSON and must not throw.
  return object.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace vbdkit::drivers
