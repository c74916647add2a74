// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/qcow2/geometry.h"

namespace vbdkit::drivers::qcow2 {

ClusterState Geometry::decode(uint64_t descriptor, uint64_t bitmap) const {
  ClusterState state;
  if (descriptor & kCompressedFlag) {
    const uint32_t length_shift = 62 - (cluster_bits - 8);
    const uint64_t offset_mask = (uint64_t{1} << length_shift) - 1;
    const uint64_t sectors = (descriptor & ~(kCompressedFlag | kCopiedFlag)) >> length_shift;
    state.kind = ClusterState::Kind::kCompressed;
    state.host = descriptor & offset_mask;
    state.compressed_length =
        static_cast<uint32_t>((sectors + 1) * kSectorSize - state.host % kSectorSize);
    if (state.host >> 56 != 0) state.kind = ClusterState::Kind::kInvalid;
    return state;
  }
  state.host = descriptor & kOffsetMask;
  state.copied = (descriptor & kCopiedFlag) != 0;
  if (extended) {
    state.allocated = static_cast<uint32_t>(bitmap);
    state.zero = static_cast<uint32_t>(bitmap >> 32);
  } else {
    state.zero = descriptor & kZeroFlag ? 1 : 0;
    state.allocated = state.host != 0 && state.zero == 0 ? 1 : 0;
  }
  // Reserved bits are not checked: other implementations ignore them, too.
  const bool contradicts = in_cluster(state.host) != 0 || (state.allocated & state.zero) != 0 ||
                           (state.allocated != 0 && state.host == 0) ||
                           (state.host == 0 && state.copied);
  if (contradicts) state.kind = ClusterState::Kind::kInvalid;
  return state;
}

void Geometry::encode_at(uint8_t* entry, const ClusterState& state) const {
  uint64_t descriptor = state.host;
  if (state.host != 0 && state.copied) descriptor |= kCopiedFlag;
  if (extended)
    store_be<uint64_t>(entry + 8, uint64_t{state.zero} << 32 | state.allocated);
  else if (state.zero != 0)
    descriptor |= kZeroFlag;
  store_be<uint64_t>(entry, descriptor);
}

uint64_t Geometry::get_refcount(const uint8_t* block, uint64_t index) const {
  switch (refcount_order) {
    case 3:
      return block[index];
    case 4:
      return load_be<uint16_t>(block + index * 2);
    case 5:
      return load_be<uint32_t>(block + index * 4);
    case 6:
      return load_be<uint64_t>(block + index * 8);
    default: {
      const uint64_t bit = index << refcount_order;
      return (block[bit / 8] >> (bit % 8)) & max_refcount();
    }
  }
}

void Geometry::set_refcount(uint8_t* block, uint64_t index, uint64_t value) const {
  switch (refcount_order) {
    case 3:
      block[index] = static_cast<uint8_t>(value);
      return;
    case 4:
      store_be(block + index * 2, static_cast<uint16_t>(value));
      return;
    case 5:
      store_be(block + index * 4, static_cast<uint32_t>(value));
      return;
    case 6:
      store_be(block + index * 8, value);
      return;
    default: {
      const uint64_t bit = index << refcount_order;
      uint8_t& byte = block[bit / 8];
      byte = static_cast<uint8_t>((byte & ~(max_refcount() << (bit % 8))) | value << (bit % 8));
    }
  }
}

}  // namespace vbdkit::drivers::qcow2
