// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/frontend.h"

#include <algorithm>
#include <cstring>

namespace vbdkit::sim {
namespace {

// As much as one synchronous request carries at most.
constexpr uint32_t kBouncePages = BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST * 64;

uint64_t number(const std::string& text, uint64_t otherwise) {
  if (text.empty() || text.find_first_not_of("0123456789") != std::string::npos) return otherwise;
  return std::stoull(text);
}

}  // namespace

Frontend::Frontend(Guest& guest, int devid, FrontendOptions options)
    : guest_(guest),
      devid_(devid),
      options_(std::move(options)),
      path_(guest.path() + "/device/vbd/" + std::to_string(devid)) {}

Result<std::unique_ptr<Frontend>> Frontend::create(Guest& guest, int devid,
                                                   const FrontendOptions& options) {
  std::unique_ptr<Frontend> front(new Frontend(guest, devid, options));
  VBDKIT_ASSIGN(front->backend_path_, guest.store().read(front->path_of("backend")));
  return front;
}

Frontend::~Frontend() {
  drop_queues();
  bool all = true;
  for (const GrantRef ref : bounce_refs_) all = guest_.grants().end_access(ref) && all;
  // What a backend still maps is never given to anybody else.
  if (!all || bounce_.count == 0) return;
  for (const GrantRef ref : bounce_refs_) guest_.free_ref(ref);
  guest_.free_pages(bounce_);
}

Result<void> Frontend::set_state(XenbusState state) {
  return guest_.store().write(path_of("state"), std::to_string(state));
}

XenbusState Frontend::backend_state() {
  return static_cast<XenbusState>(
      number(guest_.store().read_or(backend_path_ + "/state"), XenbusStateUnknown));
}

Result<void> Frontend::wait_backend(XenbusState state, Deadline deadline) {
  const std::string wanted = std::to_string(state);
  auto seen = guest_.store().wait_for(
      backend_path_ + "/state", [&](const std::string& s) { return s == wanted; }, deadline);
  if (!seen) return std::move(seen).error();
  return {};
}

Result<void> Frontend::connect(Deadline deadline) {
  VBDKIT_TRY(wait_backend_ready(deadline));
  VBDKIT_TRY(make_queues());
  VBDKIT_TRY(publish());
  return wait_connected(deadline);
}

Result<void> Frontend::wait_backend_ready(Deadline deadline) {
  auto seen = guest_.store().wait_for(
      backend_path_ + "/state",
      [](const std::string& s) {
        return number(s, 0) >= XenbusStateInitWait && number(s, 0) <= XenbusStateConnected;
      },
      deadline);
  if (!seen) return std::move(seen).error();
  refresh_features();
  return {};
}

void Frontend::refresh_features() {
  const auto node = [&](const char* name, uint64_t otherwise = 0) {
    return number(guest_.store().read_or(backend_path_ + "/" + name), otherwise);
  };
  features_.sectors = node("sectors");
  features_.sector_size = static_cast<uint32_t>(node("sector-size"));
  features_.physical_sector_size =
      static_cast<uint32_t>(node("physical-sector-size", features_.sector_size));
  features_.info = static_cast<uint32_t>(node("info"));
  features_.flush = node("feature-flush-cache") != 0;
  features_.barrier = node("feature-barrier") != 0;
  features_.discard = node("feature-discard") != 0;
  features_.discard_secure = node("discard-secure") != 0;
  features_.discard_granularity = node("discard-granularity");
  features_.discard_alignment = node("discard-alignment");
  features_.persistent = node("feature-persistent") != 0;
  features_.max_ring_page_order = static_cast<uint32_t>(node("max-ring-page-order"));
  features_.max_queues = static_cast<uint32_t>(node("multi-queue-max-queues", 1));
  features_.max_indirect_segments = static_cast<uint32_t>(node("feature-max-indirect-segments"));
}

Result<void> Frontend::make_queues() {
  max_segments_ =
      std::max<unsigned>(BLKIF_MAX_SEGMENTS_PER_REQUEST,
                         std::min(options_.indirect_segments, features_.max_indirect_segments));
  persistent_ = options_.persistent && features_.persistent;
  const QueueOptions queue_options{.abi = options_.abi,
                                   .order = options_.ring_order,
                                   .max_segments = max_segments_,
                                   .handle = static_cast<uint16_t>(devid_),
                                   .padding_zero = options_.padding_zero};
  for (unsigned i = 0; i < options_.queues; ++i) {
    VBDKIT_ASSIGN(auto queue, RingQueue::create(guest_, queue_options));
    queues_.push_back(std::move(queue));
  }
  if (bounce_.count == 0) {
    VBDKIT_ASSIGN(bounce_, guest_.alloc_pages(kBouncePages));
    for (uint32_t i = 0; i < bounce_.count; ++i) {
      VBDKIT_ASSIGN(const GrantRef ref, guest_.alloc_ref());
      bounce_refs_.push_back(ref);
    }
  }
  return {};
}

Result<void> Frontend::write_nodes(Store::Transaction t) {
  std::map<std::string, std::string> nodes;
  const bool many_pages = options_.ring_order != 0 || options_.always_write_order;
  for (size_t q = 0; q < queues_.size(); ++q) {
    const std::string prefix = queues_.size() == 1 ? "" : "queue-" + std::to_string(q) + "/";
    const auto& refs = queues_[q]->ring_refs();
    for (size_t i = 0; i < refs.size(); ++i)
      nodes[prefix + "ring-ref" + (many_pages ? std::to_string(i) : "")] = std::to_string(refs[i]);
    nodes[prefix + "event-channel"] = std::to_string(queues_[q]->port());
  }
  if (many_pages) nodes["ring-page-order"] = std::to_string(options_.ring_order);
  if (queues_.size() > 1) nodes["multi-queue-num-queues"] = std::to_string(queues_.size());
  if (options_.write_protocol)
    nodes["protocol"] =
        options_.abi == Abi::kX86_64 ? XEN_IO_PROTO_ABI_X86_64 : XEN_IO_PROTO_ABI_X86_32;
  nodes["feature-persistent"] = persistent_ ? "1" : "0";
  for (const auto& [name, value] : options_.overrides) nodes[name] = value;
  for (const auto& [name, value] : nodes)
    if (!value.empty()) VBDKIT_TRY(guest_.store().write(path_of(name), value, t));
  return {};
}

Result<void> Frontend::publish() {
  for (;;) {
    VBDKIT_ASSIGN(const Store::Transaction t, guest_.store().begin());
    VBDKIT_TRY(write_nodes(t));
    VBDKIT_ASSIGN(const bool committed, guest_.store().commit(t));
    if (committed) break;
  }
  return set_state(XenbusStateInitialised);
}

Result<void> Frontend::wait_connected(Deadline deadline) {
  auto seen = guest_.store().wait_for(
      backend_path_ + "/state",
      [](const std::string& s) { return number(s, 0) >= XenbusStateConnected; }, deadline);
  if (!seen) return std::move(seen).error();
  if (*seen != std::to_string(XenbusStateConnected))
    return Error(ErrorKind::kProtocol,
                 "frontend: " + path_ + ": the backend refused, state " + *seen);
  refresh_features();
  // blkfront takes persistence from what it sees now, too.
  persistent_ = options_.persistent && features_.persistent;
  if (persistent_)
    for (uint32_t i = 0; i < bounce_.count; ++i)
      guest_.grants().grant(bounce_refs_[i], 0, bounce_.first + i, true);
  return set_state(XenbusStateConnected);
}

Result<void> Frontend::close(Deadline deadline) {
  VBDKIT_TRY(set_state(XenbusStateClosing));
  auto seen = guest_.store().wait_for(
      backend_path_ + "/state",
      [](const std::string& s) { return s.empty() || number(s, 0) >= XenbusStateClosing; },
      deadline);
  if (!seen) return std::move(seen).error();
  VBDKIT_TRY(set_state(XenbusStateClosed));
  // A backend that has been told to go for good may take its directory with it.
  seen = guest_.store().wait_for(
      backend_path_ + "/state",
      [](const std::string& s) { return s.empty() || number(s, 0) == XenbusStateClosed; },
      deadline);
  if (!seen) return std::move(seen).error();
  return take_back();
}

Result<void> Frontend::take_back() {
  bool released = true;
  for (auto& queue : queues_) released = queue->end_grants() && released;
  if (persistent_)
    for (const GrantRef ref : bounce_refs_) released = guest_.grants().end_access(ref) && released;
  queues_.clear();
  if (released) return {};
  return Error(ErrorKind::kBusy, "frontend: " + path_ + ": Closed, but still maps our pages");
}

Result<void> Frontend::reset(Deadline deadline) {
  VBDKIT_TRY(set_state(XenbusStateClosing));
  VBDKIT_TRY(wait_backend(XenbusStateClosing, deadline));
  VBDKIT_TRY(set_state(XenbusStateClosed));
  VBDKIT_TRY(wait_backend(XenbusStateClosed, deadline));
  VBDKIT_TRY(take_back());
  VBDKIT_TRY(set_state(XenbusStateInitialising));
  return wait_backend(XenbusStateInitWait, deadline);
}

void Frontend::drop_queues() { queues_.clear(); }

Result<int16_t> Frontend::transfer(uint8_t operation, uint64_t sector, std::byte* data, size_t size,
                                   Deadline deadline) {
  int16_t worst = BLKIF_RSP_OKAY;
  const bool writes = operation != BLKIF_OP_READ;
  // Only reads and writes have an indirect form.
  const unsigned segments_most = operation == BLKIF_OP_READ || operation == BLKIF_OP_WRITE
                                     ? std::min<unsigned>(max_segments_, bounce_.count)
                                     : BLKIF_MAX_SEGMENTS_PER_REQUEST;
  const size_t most = size_t{segments_most} * kPageSize;
  do {
    const size_t part = std::min(size, most);
    const auto pages = static_cast<uint32_t>((part + kPageSize - 1) / kPageSize);
    std::vector<Segment> segments;
    if (writes && part != 0) std::memcpy(bounce_.data, data, part);
    for (uint32_t i = 0; i < pages; ++i) {
      const size_t in_page = std::min(kPageSize, part - i * kPageSize);
      segments.push_back({bounce_refs_[i], 0, static_cast<uint8_t>(in_page / 512 - 1)});
      if (!persistent_) guest_.grants().grant(bounce_refs_[i], 0, bounce_.first + i, !writes);
    }
    VBDKIT_ASSIGN(const int16_t status, queue().round_trip(operation, sector, segments, deadline));
    if (!persistent_)
      for (uint32_t i = 0; i < pages; ++i)
        if (!guest_.grants().end_access(bounce_refs_[i]))
          return Error(ErrorKind::kProtocol,
                       "frontend: answered while a page of the request is still mapped");
    if (!writes) std::memcpy(data, bounce_.data, part);
    if (status != BLKIF_RSP_OKAY) worst = status;
    sector += part / 512;
    if (data != nullptr) data += part;
    size -= part;
  } while (size != 0);
  if (!queue().violations().empty())
    return Error(ErrorKind::kProtocol, "frontend: " + queue().violations().front());
  return worst;
}

Result<int16_t> Frontend::read(uint64_t sector, std::span<std::byte> data, Deadline deadline) {
  return transfer(BLKIF_OP_READ, sector, data.data(), data.size(), deadline);
}

Result<int16_t> Frontend::write(uint64_t sector, std::span<const std::byte> data,
                                Deadline deadline) {
  return transfer(BLKIF_OP_WRITE, sector, const_cast<std::byte*>(data.data()), data.size(),
                  deadline);
}

Result<int16_t> Frontend::write_barrier(uint64_t sector, std::span<const std::byte> data,
                                        Deadline deadline) {
  return transfer(BLKIF_OP_WRITE_BARRIER, sector, const_cast<std::byte*>(data.data()), data.size(),
                  deadline);
}

Result<int16_t> Frontend::flush(Deadline deadline, uint64_t sector,
                                std::span<const std::byte> data) {
  return transfer(BLKIF_OP_FLUSH_DISKCACHE, sector, const_cast<std::byte*>(data.data()),
                  data.size(), deadline);
}

Result<int16_t> Frontend::discard(uint64_t sector, uint64_t sectors, Deadline deadline,
                                  bool secure) {
  RingQueue& q = queue();
  q.submit_discard(sector, sectors, secure, 0);
  q.push();
  int16_t status = 0;
  while (q.reap([&](const Completion& c) { status = c.status; }) == 0) {
    if (!q.violations().empty())
      return Error(ErrorKind::kProtocol, "frontend: " + q.violations().front());
    if (!q.wait(deadline)) return Error(ErrorKind::kTimedOut, "frontend: no response");
  }
  return status;
}

}  // namespace vbdkit::sim
