// SPDX-License-Identifier: LGPL-2.1-or-later
//
// ChainNode: a leaf layer and its parents as one node. Reads are answered from the merged map
// (window_map.h): a read whose window is known is cut at the map's segments, and each piece goes
// straight to the file that holds it, at any depth the same. A window that is not known is built
// first (window_builder.h); requests that need the same one share the building.
// Writes to what the leaf's file holds already go straight there too, all others to the leaf.
//
// Thread: the reactor's. Ownership: the node owns the layers, and pools of operations that grow to
// the load; with the window known, a read or a write in place allocates nothing.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "drivers/chain/image_file.h"
#include "drivers/chain/layer.h"
#include "drivers/chain/window_builder.h"
#include "drivers/chain/window_map.h"
#include "drivers/node.h"
#include "drivers/registry.h"

namespace vbdkit::drivers {

// The layers of an open chain, leaf first.
struct Chain {
  std::vector<std::unique_ptr<Layer>> layers;
  // Of the layers.
  std::vector<std::string> paths;
  std::vector<FileStamp> stamps;  // from before they were opened
  std::vector<uint16_t> ids;      // the merged map's; given by the node, for as long as it has them

  Layer& leaf() const { return *layers.front(); }
};

struct ChainOptions {
  std::string driver;  // "vhd": the leaf's format as the registry calls it
  std::string spec;    // canonical
  bool read_only = false;
  size_t map_memory = 32 << 20;  // bytes; what the merged map may take
  // How its files are opened, for those that come later: the leaf's spec, without filters.
  NodeSpec image = {};
  bool raw_parent = false;  // ChainPolicy
};

class ChainNode final : public Node, private MapListener, private ParentReader {
 public:
  ChainNode(Chain chain, ChainOptions options);
  ~ChainNode() override;

  std::string_view driver() const override { return options_.driver; }
  std::string spec() const override { return options_.spec; }
  const NodeInfo& info() const override { return info_; }
  void submit(Request& request) override;
  void block_status(StatusRequest& request) override;
  Result<void> refresh_size() override;
  Result<void> resize(Bytes size) override;
  Result<void> reopen(bool read_only) override;
  bool filter_parents(const std::function<NodePtr(NodePtr)>& filter) override;
  void list_images(std::vector<StoredImage>& images) const override;

  const Chain& chain() const { return chain_; }
  const ChainOptions& options() const { return options_; }

  // Live operations, with no request in flight (live_chain.h). The disk must read the same as
  // before. Where `next` has the id of a layer of the present chain, and no layer, that one stays
  // with what the map knows of it; with a layer, that one takes its place in the map: it holds the
  // same at the same places of the same file. What the map knows of the layers that go is looked up
  // anew when it is needed, not here: the cost is a few words a layer. Gives out what has left.
  Chain exchange(Chain next, ChainOptions options);
  void renamed(const std::string& path) override;
  Result<void> readers_gone() override;
  static constexpr uint16_t kNewId = kNoLayer;
  const WindowMap& map() const { return map_; }

 private:
  struct Operation;
  struct Child;
  struct Piece;  // a run of an operation that goes to one place

  void remapped(uint64_t offset, const Segment& segment) override;
  void read_below(Request& request) override;
  bool has_parent() const override { return chain_.layers.size() > 1; }
  uint64_t size_below() const override {
    return has_parent() ? chain_.layers[1]->info().size.v : 0;
  }

  void describe();
  Operation& start(Request& request);
  // Goes on from the operation's cursor; ends early where a window has to be built first.
  void advance(Operation& op);
  bool advance_status(Operation& op);
  bool find(Operation& op, uint64_t offset, WindowMap::Run& run);
  bool needs_leaf(const Operation& op, const Source& source) const;
  void issue(Operation& op, const Piece& piece);
  void issue_to_leaf(Operation& op, void (Layer::*method)(Request&));
  Child& make_child(Operation& op, Op kind, uint64_t offset, uint64_t length);
  void release(Operation& op);  // one thing less that it waits for
  void finish(Operation& op);

  void await_window(Operation& op, uint64_t index);
  void await_window_below(Operation& op, uint64_t index);
  void window_built(uint64_t index, int error);
  void resume(Operation* waiters, int error);

  // A layer by its id. The ids of those that have gone stay empty: what the map says of them is
  // not true any more.
  struct Slot {
    Layer* layer = nullptr;
    NodePtr filtered;  // what stands over its file, or null
  };
  Node& file_of(uint16_t id) {
    Slot& slot = slots_[id];
    return slot.filtered ? *slot.filtered : slot.layer->file();
  }
  bool has_gone(const Source& source) const {
    return source.layer() != kNoLayer && slots_[source.layer()].layer == nullptr;
  }
  void give_ids();

  Chain chain_;
  std::vector<Slot> slots_;  // by id
  uint16_t leaf_id_ = 0;
  ChainOptions options_;
  const bool writable_;  // how the leaf was opened
  NodeInfo info_;
  WindowMap map_;

  struct Build {
    std::unique_ptr<WindowBuilder> builder;
    Operation* waiters = nullptr;  // linked by Operation::next
  };
  void run_builder(uint64_t index, Build& build);
  std::unordered_map<uint64_t, Build> builds_;

  std::vector<std::unique_ptr<Operation>> operations_;
  std::vector<std::unique_ptr<Child>> children_;
  Operation* idle_operations_ = nullptr;
  Child* idle_children_ = nullptr;
  uint64_t in_flight_ = 0;
};

}  // namespace vbdkit::drivers
