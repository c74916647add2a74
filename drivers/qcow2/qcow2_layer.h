// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Qcow2Layer: a qcow2 image in a chain. Opening reads the header, the L1 table and, for writing,
// the refcount table; L2 tables follow as they are needed.
// What the leaf shares with an internal snapshot it calls kCompressed, so that the chain neither
// reads nor writes it by itself: a write there must get clusters of its own.
// Thread, ownership and crash rules: drivers/chain/layer.h.
#pragma once

#include <memory>

#include "drivers/chain/layer.h"
#include "drivers/qcow2/cluster_locks.h"
#include "drivers/qcow2/cluster_writer.h"
#include "drivers/qcow2/flusher.h"

namespace vbdkit::drivers::qcow2 {

class Qcow2Layer final : public Layer {
 public:
  static Result<std::unique_ptr<Layer>> open(LayerSource source, const LayerContext& context);
  ~Qcow2Layer() override;

  const LayerInfo& info() const override { return info_; }
  Node& file() override { return *image_.file; }
  const ParentReference* parent() const override { return parent_ ? &*parent_ : nullptr; }

  void map(MapRequest& request) override;
  void read_special(Request& request) override;
  void write(Request& request) override;
  void discard(Request& request) override;
  void write_zeroes(Request& request) override;
  void flush(Request& request) override;
  Result<void> resize(Bytes size) override;
  Result<void> settle() override;
  Result<void> reload_parent() override;
  void readers_gone() override { space_.readers_gone(); }
  void set_chain(MapListener& listener, ParentReader& below) override;

 private:
  Qcow2Layer(Header header, MetadataFile metadata, LayerSource source, const LayerContext& context,
             std::vector<uint64_t> l1, std::vector<uint64_t> refcount_table);

  static Result<void> prepare_for_writing(MetadataFile& file, Header& header, Node& node,
                                          const Logger& log);
  Result<void> find_parent();
  uint64_t cluster(uint64_t offset) const { return offset >> image_.g.cluster_bits; }

  Detached run_map(MapRequest& request);
  Task<int> map_range(MapRequest& request);
  int map_slice(const SliceRef& slice, uint64_t from, uint64_t to, std::vector<Segment>& to_append);
  int add_segment(Segment segment, std::vector<Segment>& segments) const;
  enum class Change { kWrite, kDiscard, kZero };
  Detached run_change(Request& request, Change change);
  Detached run_read(Request& request);
  Task<int> read_cluster(const Request& request, uint64_t from, uint64_t to);
  Detached run_flush(Request& request);
  Task<int> change_size(uint64_t size);
  // Runs a task to its end, with file I/O that blocks.
  template <typename MakeTask>
  int run_blocking(MakeTask make_task);
  int close();

  LayerInfo info_;
  std::optional<ParentReference> parent_;
  Image image_;
  SliceCache cache_;
  ClusterLocks locks_;
  FreeSpace space_;
  Tables tables_;
  Refcounts refcounts_;
  Flusher flusher_;
  CompressedReader compressed_;
  ClusterWriter writer_;
  ParentReader* below_ = nullptr;
};

}  // namespace vbdkit::drivers::qcow2
