// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Opens an image and all that it stands on as one node: the leaf with the access asked for, parents
// read-only, each where its child says it is. An error names the path of each step that led to it.
// Blocks; the reactor's thread.
#pragma once

#include <span>

#include "drivers/chain/chain_node.h"
#include "drivers/chain/chain_steps.h"
#include "drivers/registry.h"

namespace vbdkit::drivers {

struct ChainPolicy {
  // Whether an image may name a file without a format as its parent. Whoever wrote such an image
  // can read any file that we can read, so this is for formats and admins that trust images.
  bool raw_parent = false;
};

// The option keys of every driver that opens chains.
inline constexpr const char* kChainKeys[] = {"align",   "direct",     "discard",
                                             "locking", "map-memory", "raw-parent"};

// `spec.driver` names the leaf's format. `policy` is what holds where the spec does not say.
Result<NodePtr> open_chain(const NodeSpec& spec, const ChainPolicy& policy,
                           const OpenContext& context);

// The same, one image after the other, for whoever has requests to serve in between.
class ChainOpening {
 public:
  ChainOpening(NodeSpec spec, ChainPolicy policy, const OpenContext& context);

  // Opens the next image; false where there is none left.
  Result<bool> step();
  // When step() has said false.
  Result<Chain> take_layers();
  Result<NodePtr> take();

 private:
  Result<bool> add_next();
  Result<void> add_parent(const ParentReference& reference);
  Result<void> add(const std::string& path, const std::string& format);

  const NodeSpec spec_;
  const ChainPolicy policy_;
  const OpenContext context_;
  Chain chain_;
  ChainSteps steps_;
};

// The layers alone, leaf first: what open_chain() makes a node of, and what tools look at.
Result<Chain> open_layers(const NodeSpec& spec, const ChainPolicy& policy,
                          const OpenContext& context);

// One layer by itself, its file opened with the options that chains pass on of `like`.
Result<std::unique_ptr<Layer>> open_layer(const std::string& path, const std::string& format,
                                          const NodeSpec& like, const OpenContext& context);

}  // namespace vbdkit::drivers
