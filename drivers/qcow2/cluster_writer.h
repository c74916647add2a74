// SPDX-License-Identifier: LGPL-2.1-or-later
//
// ClusterWriter: changes what the disk's clusters hold: writes, zeroes, discards. A write goes in
// place where it can. Where it cannot, it gets clusters of its own (neighbours in one piece), with
// the edges that it does not cover read from beneath and written together with its own data; the
// L2 entries change in memory when the data is written.
// Whoever calls holds the lock of the clusters (cluster_locks.h). Thread: the reactor of the layer.
#pragma once

#include <cstdint>
#include <vector>

#include "drivers/chain/layer.h"
#include "drivers/qcow2/compressed_reader.h"
#include "drivers/qcow2/tables.h"

namespace vbdkit::drivers::qcow2 {

// Bytes of the disk, with the memory they come from.
struct DiskWrite {
  uint64_t from = 0;
  uint64_t to = 0;
  const iovec* iov = nullptr;
  uint64_t skip = 0;  // bytes of the vector that belong to what is before `from`

  DiskWrite part(uint64_t a, uint64_t b) const { return {a, b, iov, skip + (a - from)}; }
};

// Calls emit(from, Segment) for what a cluster that is not compressed holds in [from, to) of the
// disk. `start`: where the cluster starts on the disk.
template <typename Emit>
void for_each_segment(const Geometry& g, const ClusterState& state, uint64_t start, uint64_t from,
                      uint64_t to, Emit emit) {
  while (from < to) {
    const auto kind_of = [&](uint64_t at) {
      const uint32_t bit = 1u << ((at - start) >> g.unit_bits());
      if (state.allocated & bit) return Segment::Kind::kData;
      return state.zero & bit ? Segment::Kind::kZero : Segment::Kind::kAbsent;
    };
    const Segment::Kind kind = kind_of(from);
    uint64_t end = align_down(from, g.unit_size()) + g.unit_size();
    while (end < to && kind_of(end) == kind) end += g.unit_size();
    end = end < to ? end : to;
    emit(from,
         Segment{end - from, kind == Segment::Kind::kData ? state.host + (from - start) : 0, kind});
    from = end;
  }
}

class ClusterWriter {
 public:
  ClusterWriter(Image& image, Tables& tables, FreeSpace& space, CompressedReader& compressed)
      : image_(image),
        g_(image.g),
        tables_(tables),
        space_(space),
        compressed_(compressed),
        memory_(image.ready, kMemory) {}

  void set_chain(MapListener& listener, ParentReader& below) {
    listener_ = &listener;
    below_ = &below;
  }
  bool has_parent() const { return below_ != nullptr && below_->has_parent(); }

  Task<int> write(DiskWrite data);
  enum class Clear {
    kDiscard,  // content need not stay; whole units only
    kZero,     // must read as zeroes; the space may stay
    kUnmap,    // must read as zeroes; the space should go
  };
  Task<int> clear(uint64_t from, uint64_t to, Clear how);

 private:
  // What copies of edges and clusters may take at one time.
  static constexpr uint64_t kMemory = uint64_t{16} << 20;

  // Part of a write that is handled in one way.
  struct Run {
    enum class Kind : uint8_t {
      kInPlace,  // `host`: of `from`
      kFill,     // into a cluster that the disk has; units of it are not allocated yet
      kFresh,    // into new clusters; the old ones hold no data
      kRewrite,  // into a new cluster, with data that the old one holds
    };
    Kind kind = Kind::kInPlace;
    bool zeroed = false;  // the new clusters read as zeroes
    uint64_t from = 0;    // on the disk
    uint64_t to = 0;
    uint64_t host = 0;  // file offset of the (first) cluster
  };

  // A part of a unit beside the written data.
  struct Edge {
    uint64_t from = 0;  // on the disk
    uint64_t to = 0;
    bool zero = true;  // as far as is known
    Buffer data;
    bool empty() const { return from == to; }
  };

  uint64_t cluster_start(uint64_t offset) const { return align_down(offset, g_.cluster_size()); }
  uint64_t cluster_end(uint64_t offset) const { return cluster_start(offset) + g_.cluster_size(); }
  ClusterState state_at(const SliceRef& slice, uint64_t offset) const {
    return g_.decode_at(tables_.entry(slice, offset));
  }
  void set_state(const SliceRef& slice, uint64_t offset, const ClusterState& state);
  void notify(uint64_t from, uint64_t to, const ClusterState& state);
  void release(const ClusterState& state);

  Task<int> write_in_slice(DiskWrite data);
  Result<std::vector<Run>> plan(const SliceRef& slice, const DiskWrite& data);
  Task<int> place_fresh(std::vector<Run>& runs);
  Task<int> execute(const SliceRef& slice, const Run& run, DiskWrite data);
  Task<int> write_in_place(const Run& run, DiskWrite data);
  Task<int> write_fill(const SliceRef& slice, const Run& run, DiskWrite data);
  Task<int> rewrite(const SliceRef& slice, const Run& run, DiskWrite data);
  Task<int> read_old(const ClusterState& state, uint64_t start, const DiskWrite& data,
                     Buffer& cluster, uint32_t& units);
  void map_fill(const SliceRef& slice, const Run& run, uint64_t from, uint64_t to);
  Edge edge(const ClusterState& state, uint64_t from, uint64_t to) const;
  Task<int> read_edge(Edge& edge);
  Task<int> read_below(uint64_t from, std::span<uint8_t> to);

  Task<int> clear_in_slice(uint64_t from, uint64_t to, Clear how);
  Task<int> write_zeroes(uint64_t from, uint64_t to);
  struct Partial {
    uint64_t from;
    uint64_t to;
  };
  bool clear_cluster(const SliceRef& slice, uint64_t from, uint64_t to, Clear how,
                     std::vector<Partial>& rest);

  Image& image_;
  const Geometry& g_;
  Tables& tables_;
  FreeSpace& space_;
  CompressedReader& compressed_;
  Budget memory_;
  MapListener* listener_ = nullptr;
  ParentReader* below_ = nullptr;
};

}  // namespace vbdkit::drivers::qcow2
