// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/qcow2/cluster_writer.h"

#include <algorithm>
#include <bit>

#include "drivers/iov.h"

namespace vbdkit::drivers::qcow2 {
namespace {

using Kind = ClusterState::Kind;

bool all_zero(std::span<const uint8_t> data) {
  return data.empty() ||
         (data[0] == 0 && memcmp(data.data(), data.data() + 1, data.size() - 1) == 0);
}

void append_data(std::vector<iovec>& to, const DiskWrite& data) {
  for_each_piece(data.iov, data.skip, data.to - data.from, [&](char* base, size_t length) {
    to.push_back({base, length});
  });
}

}  // namespace

void ClusterWriter::set_state(const SliceRef& slice, uint64_t offset, const ClusterState& state) {
  g_.encode_at(tables_.entry(slice, offset), state);
  tables_.mark_dirty(slice);
}

void ClusterWriter::notify(uint64_t from, uint64_t to, const ClusterState& state) {
  to = std::min(to, image_.header.size);
  for_each_segment(g_, state, cluster_start(from), from, to,
                   [&](uint64_t at, const Segment& segment) { listener_->remapped(at, segment); });
}

// The disk does not refer to what the state names any more.
void ClusterWriter::release(const ClusterState& state) {
  if (state.kind == Kind::kCompressed) {
    compressed_.forget(state.host);
    const uint64_t first = state.host >> g_.cluster_bits;
    const uint64_t last = (state.host + state.compressed_length - 1) >> g_.cluster_bits;
    space_.give_back(first, last - first + 1);
  } else if (state.host != 0) {
    space_.give_back(state.host >> g_.cluster_bits, 1);
  }
}

Task<int> ClusterWriter::write(DiskWrite data) {
  const uint64_t span = g_.slice_span();
  if (data.from / span == (data.to - 1) / span) co_return co_await write_in_slice(data);
  Group group(image_.ready);
  for (uint64_t at = data.from; at < data.to;) {
    const uint64_t end = std::min(data.to, align_down(at, span) + span);
    group.start(write_in_slice(data.part(at, end)));
    at = end;
  }
  co_return co_await group.join();
}

Task<int> ClusterWriter::write_in_slice(DiskWrite data) {
  const SliceCache::Loaded loaded = co_await tables_.writable_slice(data.from);
  if (loaded.error != 0) co_return loaded.error;
  auto planned = plan(loaded.slice, data);
  if (!planned) co_return image_.mark_corrupt(planned.error().message());
  std::vector<Run> runs = std::move(planned).value();
  const int error = co_await place_fresh(runs);
  if (error != 0) co_return error;
  if (runs.size() == 1) co_return co_await execute(loaded.slice, runs[0], data);
  Group group(image_.ready);
  for (const Run& run : runs) group.start(execute(loaded.slice, run, data.part(run.from, run.to)));
  co_return co_await group.join();
}

Result<std::vector<ClusterWriter::Run>> ClusterWriter::plan(const SliceRef& slice,
                                                            const DiskWrite& data) {
  std::vector<Run> runs;
  const uint64_t file_size = image_.file->info().size.v;
  for (uint64_t at = data.from; at < data.to;) {
    Run run;
    run.from = at;
    run.to = std::min(data.to, cluster_end(at));
    at = run.to;
    const uint64_t in = g_.in_cluster(run.from);
    const uint32_t units = g_.units_of(in, in + run.to - run.from);
    const ClusterState state = state_at(slice, run.from);
    const bool outside =
        state.kind == Kind::kPlain && state.host != 0 &&
        (state.host < g_.cluster_size() || !range_inside(state.host, g_.cluster_size(), file_size));
    if (state.kind == Kind::kInvalid || outside)
      return Error(ErrorKind::kCorrupt, "the L2 entry of the cluster at " +
                                            std::to_string(cluster_start(run.from)) +
                                            " is invalid");
    if (state.kind == Kind::kCompressed || (state.allocated != 0 && !state.copied)) {
      run.kind = Run::Kind::kRewrite;
    } else if (state.copied) {
      run.kind = (units & ~state.allocated) == 0 ? Run::Kind::kInPlace : Run::Kind::kFill;
      run.host = state.host + (run.kind == Run::Kind::kInPlace ? in : 0);
    } else {
      run.kind = Run::Kind::kFresh;
    }
    Run* const last = runs.empty() ? nullptr : &runs.back();
    const bool follows =
        last != nullptr && last->kind == run.kind &&
        (run.kind == Run::Kind::kFresh ||
         (run.kind == Run::Kind::kInPlace && last->host + (last->to - last->from) == run.host));
    if (follows)
      last->to = run.to;
    else
      runs.push_back(run);
  }
  return runs;
}

// Gives fresh runs their clusters; a run is split where there is no piece large enough.
Task<int> ClusterWriter::place_fresh(std::vector<Run>& runs) {
  for (size_t i = 0; i < runs.size(); ++i) {
    if (runs[i].kind != Run::Kind::kFresh) continue;
    const uint64_t start = cluster_start(runs[i].from);
    const uint64_t count = g_.clusters_for(runs[i].to - start);
    const FreeSpace::Taken taken = co_await space_.take_or_wait(count);
    if (taken.error != 0) {
      for (size_t k = 0; k < i; ++k)
        if (runs[k].kind == Run::Kind::kFresh)
          space_.give_back(runs[k].host >> g_.cluster_bits,
                           g_.clusters_for(runs[k].to - cluster_start(runs[k].from)));
      co_return taken.error;
    }
    runs[i].host = taken.range.first << g_.cluster_bits;
    runs[i].zeroed = taken.range.zeroed;
    if (taken.range.count == count) continue;
    Run rest = runs[i];
    rest.from = runs[i].to = start + (taken.range.count << g_.cluster_bits);
    runs.insert(runs.begin() + static_cast<ptrdiff_t>(i) + 1, rest);
  }
  co_return 0;
}

Task<int> ClusterWriter::execute(const SliceRef& slice, const Run& run, DiskWrite data) {
  switch (run.kind) {
    case Run::Kind::kInPlace:
      return write_in_place(run, data);
    case Run::Kind::kRewrite:
      return rewrite(slice, run, data);
    default:
      return write_fill(slice, run, data);
  }
}

Task<int> ClusterWriter::write_in_place(const Run& run, DiskWrite data) {
  std::vector<iovec> iov;
  append_data(iov, data);
  co_return co_await image_.write(run.host, data.to - data.from, iov);
}

// What a unit of that state holds in [from, to), which the write does not cover.
ClusterWriter::Edge ClusterWriter::edge(const ClusterState& state, uint64_t from,
                                        uint64_t to) const {
  Edge edge;
  edge.from = edge.to = from;
  if (from == to) return edge;
  const uint32_t bit = 1u << (g_.in_cluster(from) >> g_.unit_bits());
  if (state.allocated & bit) return edge;  // there already
  edge.to = to;
  edge.zero = (state.zero & bit) != 0 || !has_parent();
  return edge;
}

// What parents hold; the last cluster may go beyond the disk.
Task<int> ClusterWriter::read_below(uint64_t from, std::span<uint8_t> to) {
  const uint64_t size = image_.header.size;
  const uint64_t inside = from < size ? std::min<uint64_t>(size - from, to.size()) : 0;
  std::fill(to.begin() + static_cast<ptrdiff_t>(inside), to.end(), uint8_t{0});
  if (inside == 0) co_return 0;
  co_return co_await NodeIo(image_.ready, *below_, from, to.first(inside));
}

Task<int> ClusterWriter::read_edge(Edge& edge) {
  if (edge.empty()) co_return 0;
  edge.data = Buffer(edge.to - edge.from);
  if (edge.zero) {
    memset(edge.data.data(), 0, edge.data.size());
    co_return 0;
  }
  const int error = co_await read_below(edge.from, edge.data.span());
  edge.zero = all_zero(edge.data.span());
  co_return error;
}

Task<int> ClusterWriter::write_fill(const SliceRef& slice, const Run& run, DiskWrite data) {
  const uint64_t unit = g_.unit_size();
  const uint64_t from = align_down(run.from, unit);
  const uint64_t to = align_up(run.to, unit);
  ClusterState first = state_at(slice, run.from);
  ClusterState last = state_at(slice, run.to - 1);
  if (run.kind == Run::Kind::kFresh) first.allocated = last.allocated = 0;
  Edge head = edge(first, from, run.from);
  Edge tail = edge(last, run.to, to);
  const Budget::Loan loan = co_await memory_.take((head.to - head.from) + (tail.to - tail.from));
  int error = 0;
  // The space reads as zeroes: zeroes need not be written.
  const auto skip = [&](const Edge& e) { return e.empty() || (e.zero && run.zeroed); };
  if (!skip(head) && !skip(tail) && !head.zero && !tail.zero) {
    Group group(image_.ready);
    group.start(read_edge(head));
    group.start(read_edge(tail));
    error = co_await group.join();
  } else {
    if (!skip(head)) error = co_await read_edge(head);
    if (error == 0 && !skip(tail)) error = co_await read_edge(tail);
  }
  if (error == 0) {
    std::vector<iovec> iov;
    uint64_t start = run.from;
    uint64_t end = run.to;
    if (!skip(head)) {
      iov.push_back({head.data.data(), head.data.size()});
      start = head.from;
    }
    append_data(iov, data);
    if (!skip(tail)) {
      iov.push_back({tail.data.data(), tail.data.size()});
      end = tail.to;
    }
    error = co_await image_.write(run.host + (start - cluster_start(run.from)), end - start, iov);
  }
  if (error != 0) {
    if (run.kind == Run::Kind::kFresh)
      space_.give_back(run.host >> g_.cluster_bits,
                       g_.clusters_for(run.to - cluster_start(run.from)));
    co_return error;
  }
  map_fill(slice, run, from, to);
  co_return 0;
}

// The units of [from, to) hold data now.
void ClusterWriter::map_fill(const SliceRef& slice, const Run& run, uint64_t from, uint64_t to) {
  uint64_t host = run.host;
  for (uint64_t at = from; at < to; host += g_.cluster_size()) {
    const uint64_t end = std::min(to, cluster_end(at));
    ClusterState state = state_at(slice, at);
    if (run.kind == Run::Kind::kFresh) {
      release(state);
      state.allocated = 0;
    }
    const uint32_t units = g_.units_of(g_.in_cluster(at), g_.in_cluster(at) + (end - at));
    state.host = host;
    state.copied = true;
    state.allocated |= units;
    state.zero &= ~units;
    set_state(slice, at, state);
    notify(at, end, state);
    at = end;
  }
}

// Fills `cluster` with what it is to hold beside the new data; `units` says which units those are.
Task<int> ClusterWriter::read_old(const ClusterState& state, uint64_t start, const DiskWrite& data,
                                  Buffer& cluster, uint32_t& units) {
  memset(cluster.data(), 0, cluster.size());
  const uint32_t touched = g_.units_of(data.from - start, data.to - start);
  if (state.kind == Kind::kCompressed) {
    units = g_.all_units();
    const CompressedReader::Content content = co_await compressed_.read(state);
    if (content.error == 0) memcpy(cluster.data(), content.cluster->data.data(), cluster.size());
    co_return content.error;
  }
  units = state.allocated | touched;
  const uint64_t first = static_cast<uint64_t>(std::countr_zero(state.allocated)) << g_.unit_bits();
  const uint64_t end = static_cast<uint64_t>(32 - std::countl_zero(state.allocated))
                       << g_.unit_bits();
  int error = co_await image_.read(state.host + first, cluster.span().subspan(first, end - first));
  // Units between those that are allocated came along; they are not the disk's.
  for (uint32_t i = 0; i < g_.units(); ++i)
    if ((state.allocated >> i & 1) == 0)
      memset(cluster.data() + (uint64_t{i} << g_.unit_bits()), 0, g_.unit_size());
  const Edge edges[] = {edge(state, align_down(data.from, g_.unit_size()), data.from),
                        edge(state, data.to, align_up(data.to, g_.unit_size()))};
  for (const Edge& e : edges) {
    if (error == 0 && !e.empty() && !e.zero)
      error = co_await read_below(e.from, cluster.span().subspan(e.from - start, e.to - e.from));
  }
  co_return error;
}

Task<int> ClusterWriter::rewrite(const SliceRef& slice, const Run& run, DiskWrite data) {
  const ClusterState old = state_at(slice, run.from);
  const uint64_t start = cluster_start(run.from);
  const Budget::Loan loan = co_await memory_.take(g_.cluster_size());
  Buffer cluster(g_.cluster_size());
  uint32_t units = 0;
  int error = co_await read_old(old, start, data, cluster, units);
  if (error != 0) co_return error;
  copy_from_iov(data.iov, data.skip, reinterpret_cast<char*>(cluster.data()) + (data.from - start),
                data.to - data.from);
  const FreeSpace::Taken taken = co_await space_.take_or_wait(1);
  if (taken.error != 0) co_return taken.error;
  const uint64_t host = taken.range.first << g_.cluster_bits;
  const uint64_t first = static_cast<uint64_t>(std::countr_zero(units)) << g_.unit_bits();
  const uint64_t end = static_cast<uint64_t>(32 - std::countl_zero(units)) << g_.unit_bits();
  error = co_await image_.write(host + first, cluster.span().subspan(first, end - first));
  if (error != 0) {
    space_.give_back(taken.range.first, 1);
    co_return error;
  }
  release(old);
  ClusterState state;
  state.host = host;
  state.copied = true;
  state.allocated = units;
  state.zero = old.zero & ~units;
  set_state(slice, start, state);
  notify(start, start + g_.cluster_size(), state);
  co_return 0;
}

}  // namespace vbdkit::drivers::qcow2
