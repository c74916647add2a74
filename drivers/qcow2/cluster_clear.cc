// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The part of ClusterWriter that takes data away: zeroes and discards.
#include <algorithm>
#include <array>

#include "drivers/qcow2/cluster_writer.h"

namespace vbdkit::drivers::qcow2 {
namespace {

using Kind = ClusterState::Kind;

alignas(4096) constexpr std::array<uint8_t, 4096> kZeroes{};
constexpr size_t kZeroPieces = 16;  // of one write

}  // namespace

Task<int> ClusterWriter::clear(uint64_t from, uint64_t to, Clear how) {
  const uint64_t span = g_.slice_span();
  while (from < to) {
    const uint64_t end = std::min(to, align_down(from, span) + span);
    const int error = co_await clear_in_slice(from, end, how);
    if (error != 0) co_return error;
    from = end;
  }
  co_return 0;
}

Task<int> ClusterWriter::clear_in_slice(uint64_t from, uint64_t to, Clear how) {
  // Version 2 cannot say that a cluster of its own reads as zeroes.
  const bool flags = image_.header.version >= 3;
  if (how == Clear::kDiscard && !flags && has_parent()) co_return 0;
  SliceCache::Loaded loaded = co_await tables_.slice(from);
  if (loaded.error != 0) co_return loaded.error;
  // All of it is absent.
  if (!loaded.slice && (how == Clear::kDiscard || !has_parent())) co_return 0;
  loaded = co_await tables_.writable_slice(from);
  if (loaded.error != 0) co_return loaded.error;
  std::vector<Partial> rest;
  for (uint64_t at = from; at < to;) {
    const uint64_t end = std::min(to, cluster_end(at));
    if (!clear_cluster(loaded.slice, at, end, how, rest))
      co_return image_.mark_corrupt("the L2 entry of the cluster at " +
                                    std::to_string(cluster_start(at)) + " is invalid");
    at = end;
  }
  for (const Partial& part : rest) {
    const int error = co_await write_zeroes(part.from, part.to);
    if (error != 0) co_return error;
  }
  co_return 0;
}

// Clears what the entry can say of [from, to), which is in one cluster; what must be written as
// data goes to `rest`. False where the entry is invalid.
bool ClusterWriter::clear_cluster(const SliceRef& slice, uint64_t from, uint64_t to, Clear how,
                                  std::vector<Partial>& rest) {
  const ClusterState old = state_at(slice, from);
  if (old.kind == Kind::kInvalid) return false;
  const bool flags = image_.header.version >= 3;
  const bool discard = how == Clear::kDiscard;
  const uint64_t start = cluster_start(from);
  // Beyond the end of the disk there is nothing to keep.
  const uint64_t limit = to == image_.header.size ? start + g_.cluster_size() : to;
  uint64_t first = align_up(from, g_.unit_size());
  uint64_t end = align_down(limit, g_.unit_size());
  if (first > end) first = end = from;
  uint32_t units = first < end ? g_.units_of(first - start, end - start) : 0;
  if (old.kind == Kind::kCompressed && units != g_.all_units()) units = 0;
  // In place, as the space is to stay or nothing else can be said.
  const bool as_data = !flags && !discard && (has_parent() || how == Clear::kZero) &&
                       (old.kind == Kind::kCompressed || old.allocated != 0 || has_parent());
  if (as_data) units = 0;
  if (!discard) {
    const auto add_rest = [&](uint64_t a, uint64_t b) {
      if (a >= b) return;
      const uint32_t bit = old.kind == Kind::kCompressed
                               ? 0
                               : g_.units_of(g_.in_cluster(a), g_.in_cluster(a) + (b - a));
      const bool zero_already =
          bit != 0 && (bit & ~(has_parent() ? old.zero : old.zero | ~old.allocated)) == 0;
      if (!zero_already) rest.push_back({a, b});
    };
    if (units == 0) {
      add_rest(from, to);
    } else {
      add_rest(from, first);
      add_rest(std::min(end, to), to);
    }
  }
  if (units == 0) return true;

  ClusterState state;
  if (old.kind == Kind::kPlain) state = old;
  state.allocated &= ~units;
  // Where parents show through, zeroes have to be said; a discard says them for what was here.
  const bool say_zero = flags && (discard ? has_parent() : true);
  const uint32_t zero =
      discard && old.kind == Kind::kPlain ? units & (old.allocated | old.zero) : units;
  if (say_zero)
    state.zero |= zero;
  else
    state.zero &= ~units;
  if (old.kind == Kind::kCompressed) {
    release(old);
  } else if (state.host != 0 && state.allocated == 0 && (how != Clear::kZero || !state.copied)) {
    release(old);
    state.host = 0;
    state.copied = false;
  }
  const bool same = old.kind == Kind::kPlain && state.host == old.host &&
                    state.allocated == old.allocated && state.zero == old.zero;
  if (same) return true;
  set_state(slice, start, state);
  notify(first, std::min(end, start + g_.cluster_size()), state);
  return true;
}

Task<int> ClusterWriter::write_zeroes(uint64_t from, uint64_t to) {
  while (from < to) {
    constexpr uint64_t kMost = kZeroPieces * kZeroes.size();
    const uint64_t end = std::min(to, align_down(from, kMost) + kMost);
    std::array<iovec, kZeroPieces> pieces;
    for (uint64_t left = end - from; iovec & piece : pieces) {
      // The vector is only read.
      piece = {const_cast<uint8_t*>(kZeroes.data()), std::min(left, kZeroes.size())};
      left -= piece.iov_len;
    }
    const int error = co_await write({from, end, pieces.data(), 0});
    if (error != 0) co_return error;
    from = end;
  }
  co_return 0;
}

}  // namespace vbdkit::drivers::qcow2
