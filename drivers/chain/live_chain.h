// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Changes of a chain that is in use, between two requests: a new leaf in front, other parents. The
// disk reads the same before and after; that is what lets the map of the chain be kept.
//
// What costs time is done before the disk is paused; in the pause, no more is opened and read than
// the one or two layers concerned, at any depth. No failure leaves a disk without a chain: the
// layers in use are given up when those that replace them are open.
//
// The reactor's thread. All that is said to be in the pause: with no request in flight.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "drivers/chain/chain_node.h"
#include "drivers/chain/chain_steps.h"
#include "drivers/registry.h"

namespace vbdkit::drivers {

struct NewLeaf {
  NodeSpec image;      // it stands on the present leaf, and is empty
  std::string former;  // where the present leaf's file is by now
};

// A new leaf, in two steps in the same pause, with as much time between as is needed. Until apply()
// the present leaf is as it was, and nobody else can read it. After a flush, so that there is
// little left to write.
class NewFront {
 public:
  // The new leaf for writing, the present one once more, as a parent.
  static Result<NewFront> open(ChainNode& node, const NewLeaf& leaf, const OpenContext& context);
  // The present leaf becomes a parent, and the new one takes the writes.
  Result<void> apply(const OpenContext& context);

 private:
  NewFront(ChainNode& node, NewLeaf leaf) : node_(&node), leaf_(std::move(leaf)) {}
  Result<void> open_both(const OpenContext& context);

  ChainNode* node_;
  NewLeaf leaf_;
  Chain next_;
};
// Both steps.
Result<void> put_in_front(ChainNode& node, const NewLeaf& leaf, const OpenContext& context);

// Reads again which images the chain is made of. Those that are in it already, beneath the same
// image, and whose files have not changed stay; the others are opened anew.
class ChainRefresh {
 public:
  // `node` does not change otherwise meanwhile.
  ChainRefresh(ChainNode& node, const OpenContext& context);
  // Likewise, and the leaf, which is open for writing, is put on another parent.
  ChainRefresh(ChainNode& node, const OpenContext& context, ParentReference parent);
  // Likewise, and the leaf, of whose parent nothing shows through, stands alone.
  struct NoParent {};
  ChainRefresh(ChainNode& node, const OpenContext& context, NoParent);

  // While the disk is in use: goes on by one image; false where there is none left. Blocks for the
  // opening. The error tells all steps that led to it, as when a chain is opened.
  Result<bool> step();
  // In the pause, when step() said false. What is not part of the chain any more is closed.
  Result<void> apply();

  size_t opened() const { return opened_; }  // images

 private:
  Result<bool> add_next();
  Result<void> add(const std::string& path, const std::string& format, bool keep);
  bool stood_here(size_t layer) const;
  Result<void> relink();
  const Layer& last() const;

  ChainNode& node_;
  const OpenContext context_;
  ChainSteps steps_;
  Chain next_;
  std::optional<ParentReference> parent_;
  bool alone_ = false;
  size_t opened_ = 0;
};

}  // namespace vbdkit::drivers
