// SPDX-License-Identifier: LGPL-2.1-or-later
//
// From a node spec to an open graph. A driver is one .cc with an open function and one line in
// registry.cc's table.
//
// Spec grammar (DESIGN.md "Disk specs"):
//     graph  := node ('|' node)*              filters first, the leaf last
//     node   := driver (',' key '=' value)* (':' argument)?
// A leaf's argument is its path or URI, taken as it stands up to the next '|'; a filter's argument
// is a further list of key=value, separated by commas: "throttle:iops=2000|raw:/srv/a.img",
// "raw,direct=off:/srv/a.img". The JSON form {"driver":"throttle","iops":2000,"next":{"driver":
// "raw","path":"/srv/a|b.img"}} says the same and can hold any path.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/log.h"
#include "base/result.h"
#include "drivers/node.h"

namespace vbdkit::drivers {

// One node of a parsed spec; values are still text.
struct NodeSpec {
  std::string driver;
  std::string path;                            // leaves: path or URI; may be empty
  std::map<std::string, std::string> options;  // sorted, so that specs compare

  std::string to_string() const;
  friend bool operator==(const NodeSpec&, const NodeSpec&) = default;
};

// Outermost filter first, leaf last; never empty.
struct GraphSpec {
  std::vector<NodeSpec> nodes;

  const NodeSpec& leaf() const { return nodes.back(); }
  std::string to_string() const;  // canonical; JSON where the text form cannot hold it
  friend bool operator==(const GraphSpec&, const GraphSpec&) = default;
};

// Both forms; the first character '{' means JSON. Checks drivers and keys against the registry:
// the error names the bad part and lists what is known. Specs come from the domain's configuration,
// so length and number of nodes are bounded.
[[gnu::cold]] Result<GraphSpec> parse_graph(std::string_view text);

struct OpenOptions {
  bool read_only = false;
  // False: take the image for this instance alone (an OFD lock where there is a file to lock);
  // true: others that also share may have it open.
  bool shared = false;
  // A new image that is thrown away where the machine fails before it is complete: flushes order
  // nothing and make nothing durable.
  bool ignore_flush = false;
  // Of a parent: the image that stands on it. While that is being merged into this one, this one
  // may be opened for reading all the same.
  std::string child = {};
  // Others read the image while it is written: what they may have seen of its metadata stays true
  // (whoever merges a layer into its parent writes only what the layer covers).
  bool readers = false;
  // Of a file that is locked here already: its own lock is taken by the first Node::share().
  bool lock_later = false;
};

struct OpenContext {
  io::Reactor& reactor;
  const Logger& log;
  OpenOptions options;
};

// Runs at start and, for control operations, on the reactor's thread; may block for the opening.
[[gnu::cold]] Result<NodePtr> open_graph(const GraphSpec& spec, const OpenContext& context);

struct DriverEntry {
  const char* name;
  const char* summary;                // one line for --help and the manual
  bool filter;                        // has a next node
  bool path;                          // a leaf that wants a path (the others refuse one)
  std::span<const char* const> keys;  // known options
  // `next` is null for leaves.
  Result<NodePtr> (*open)(const NodeSpec& spec, NodePtr next, const OpenContext& context);
};

std::span<const DriverEntry> driver_table();

// The spec of the graph from a filter on down, for its Node::spec().
std::string spec_in_front(const NodeSpec& filter, const Node& next);

}  // namespace vbdkit::drivers
