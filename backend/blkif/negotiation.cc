// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/blkif/negotiation.h"

#include <charconv>
#include <optional>

namespace vbdkit::blkif {
namespace {

Result<std::optional<uint32_t>> find_number(const xen::StoreView& store, const std::string& path) {
  VBDKIT_ASSIGN(auto text, store.find(path));
  if (!text) return std::optional<uint32_t>();
  uint32_t value = 0;
  const char* end = text->data() + text->size();
  auto [stop, error] = std::from_chars(text->data(), end, value);
  if (error != std::errc() || stop != end)
    return Error(ErrorKind::kProtocol, path + ": not a number: " + text->substr(0, 32));
  return std::optional<uint32_t>(value);
}

Result<uint32_t> need_number(const xen::StoreView& store, const std::string& path) {
  VBDKIT_ASSIGN(auto value, find_number(store, path));
  if (!value) return Error(ErrorKind::kProtocol, path + ": missing");
  return *value;
}

// The single page of a ring is "ring-ref" to most, "ring-ref0" to those who write ring-page-order.
Result<RingOffer> read_ring(const xen::StoreView& store, const std::string& dir, unsigned order) {
  RingOffer ring;
  if (order == 0) {
    VBDKIT_ASSIGN(auto ref, find_number(store, dir + "/ring-ref"));
    if (!ref) {
      VBDKIT_ASSIGN(ref, find_number(store, dir + "/ring-ref0"));
    }
    if (!ref) return Error(ErrorKind::kProtocol, dir + "/ring-ref: missing");
    ring.refs.push_back(*ref);
  } else {
    for (unsigned i = 0; i < 1u << order; ++i) {
      VBDKIT_ASSIGN(uint32_t ref, need_number(store, dir + "/ring-ref" + std::to_string(i)));
      ring.refs.push_back(ref);
    }
  }
  VBDKIT_ASSIGN(ring.event_channel, need_number(store, dir + "/event-channel"));
  return ring;
}

}  // namespace

Result<FrontendOffer> read_offer(const xen::StoreView& store, const std::string& frontend,
                                 const Limits& limits) {
  FrontendOffer offer;
  VBDKIT_ASSIGN(auto protocol, store.find(frontend + "/protocol"));
  offer.layout = layout_of(protocol);
  if (offer.layout == nullptr)
    return Error(ErrorKind::kProtocol,
                 frontend + "/protocol: unknown protocol: " + protocol->substr(0, 32));

  VBDKIT_ASSIGN(auto persistent, find_number(store, frontend + "/feature-persistent"));
  offer.persistent = persistent.value_or(0) != 0;

  VBDKIT_ASSIGN(auto order, find_number(store, frontend + "/ring-page-order"));
  if (order.value_or(0) > limits.ring_page_order)
    return Error(ErrorKind::kProtocol, frontend + "/ring-page-order: " + std::to_string(*order) +
                                           " is more than " +
                                           std::to_string(limits.ring_page_order));

  const std::string count_path = frontend + "/multi-queue-num-queues";
  VBDKIT_ASSIGN(auto count, find_number(store, count_path));
  if (count.value_or(1) < 1 || count.value_or(1) > limits.queues)
    return Error(ErrorKind::kProtocol, count_path + ": " + std::to_string(*count) +
                                           " is not between 1 and " +
                                           std::to_string(limits.queues));
  const unsigned queues = count.value_or(1);
  for (unsigned i = 0; i < queues; ++i) {
    const std::string dir = queues == 1 ? frontend : frontend + "/queue-" + std::to_string(i);
    VBDKIT_ASSIGN(RingOffer ring, read_ring(store, dir, order.value_or(0)));
    offer.rings.push_back(std::move(ring));
  }
  return offer;
}

}  // namespace vbdkit::blkif
