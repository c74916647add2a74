// SPDX-License-Identifier: LGPL-2.1-or-later
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "tests/sim/store.h"
#include "tests/sim/xen_abi.h"

namespace vbdkit::sim {
namespace {

constexpr std::chrono::seconds kAnswerTime{5};

using Index = std::atomic<XENSTORE_RING_IDX>;
using Interface = xenstore_domain_interface;

Index& index_at(std::byte* page, size_t offset) { return *reinterpret_cast<Index*>(page + offset); }
Index& req_cons(std::byte* p) { return index_at(p, offsetof(Interface, req_cons)); }
Index& req_prod(std::byte* p) { return index_at(p, offsetof(Interface, req_prod)); }
Index& rsp_cons(std::byte* p) { return index_at(p, offsetof(Interface, rsp_cons)); }
Index& rsp_prod(std::byte* p) { return index_at(p, offsetof(Interface, rsp_prod)); }

// The errno behind the name in an XS_ERROR.
int error_number(const std::string& name) {
  for (const auto& e : xsd_errors)
    if (name == e.errstring) return e.errnum;
  return EINVAL;
}

std::string with_nul(const std::string& s) { return s + '\0'; }

}  // namespace

StoreRing::StoreRing(std::byte* page, EventChannels& events, EvtPort port)
    : page_(page), events_(events), port_(port) {}

Result<void> StoreRing::wait_event(Deadline deadline) {
  if (!events_.wait(deadline)) return Error(ErrorKind::kTimedOut, "store ring: nothing came");
  const auto pending = events_.pending();
  if (pending.error == 0 && pending.port == port_) events_.unmask(port_);
  return {};
}

Result<void> StoreRing::put(const void* data, size_t size, Deadline deadline) {
  const auto* from = static_cast<const std::byte*>(data);
  std::byte* ring = page_ + offsetof(Interface, req);
  while (size != 0) {
    const uint32_t prod = req_prod(page_).load(std::memory_order_relaxed);
    const uint32_t used = prod - req_cons(page_).load(std::memory_order_acquire);
    const uint32_t at = MASK_XENSTORE_IDX(prod);
    const size_t room =
        std::min<size_t>(XENSTORE_RING_SIZE - used, size_t{XENSTORE_RING_SIZE} - at);
    if (room == 0) {
      VBDKIT_TRY(wait_event(deadline));
      continue;
    }
    const size_t n = std::min(room, size);
    std::memcpy(ring + at, from, n);
    req_prod(page_).store(prod + static_cast<uint32_t>(n), std::memory_order_release);
    events_.notify(port_);
    from += n;
    size -= n;
  }
  return {};
}

bool StoreRing::readable() const {
  return rsp_prod(page_).load(std::memory_order_acquire) !=
         rsp_cons(page_).load(std::memory_order_relaxed);
}

Result<void> StoreRing::get(void* data, size_t size, Deadline deadline) {
  auto* to = static_cast<std::byte*>(data);
  const std::byte* ring = page_ + offsetof(Interface, rsp);
  while (size != 0) {
    const uint32_t cons = rsp_cons(page_).load(std::memory_order_relaxed);
    const uint32_t filled = rsp_prod(page_).load(std::memory_order_acquire) - cons;
    if (filled == 0) {
      VBDKIT_TRY(wait_event(deadline));
      continue;
    }
    const uint32_t at = MASK_XENSTORE_IDX(cons);
    const size_t n = std::min({size_t{filled}, size_t{XENSTORE_RING_SIZE} - at, size});
    std::memcpy(to, ring + at, n);
    rsp_cons(page_).store(cons + static_cast<uint32_t>(n), std::memory_order_release);
    events_.notify(port_);
    to += n;
    size -= n;
  }
  return {};
}

Result<StoreRing::Message> StoreRing::get_message(Deadline deadline) {
  xsd_sockmsg header;
  VBDKIT_TRY(get(&header, sizeof header, deadline));
  Message message{header.type, header.req_id, std::string(header.len, '\0')};
  VBDKIT_TRY(get(message.payload.data(), header.len, deadline));
  return message;
}

Result<std::string> StoreRing::request(uint32_t type, Transaction t, std::string_view payload) {
  const auto deadline = in(kAnswerTime);
  xsd_sockmsg header{};
  header.type = type;
  header.req_id = next_id_++;
  header.tx_id = t;
  header.len = static_cast<uint32_t>(payload.size());
  VBDKIT_TRY(put(&header, sizeof header, deadline));
  VBDKIT_TRY(put(payload.data(), payload.size(), deadline));
  for (;;) {
    VBDKIT_ASSIGN(Message answer, get_message(deadline));
    if (answer.type == XS_WATCH_EVENT) {
      const size_t end = answer.payload.find('\0');
      events_queued_.push_back({answer.payload.substr(0, end),
                                answer.payload.substr(end + 1, answer.payload.size() - end - 2)});
      continue;
    }
    if (answer.type == XS_ERROR) {
      const std::string name(answer.payload.c_str());
      return Error::from_errno(error_number(name),
                               "store: " + std::string(payload.substr(0, payload.find('\0'))));
    }
    return std::move(answer.payload);
  }
}

Result<std::string> StoreRing::read(const std::string& path, Transaction t) {
  return request(XS_READ, t, with_nul(path));
}

Result<void> StoreRing::write(const std::string& path, std::string_view value, Transaction t) {
  auto answer = request(XS_WRITE, t, with_nul(path).append(value));
  if (!answer) return std::move(answer).error();
  return {};
}

Result<void> StoreRing::remove(const std::string& path, Transaction t) {
  auto answer = request(XS_RM, t, with_nul(path));
  if (!answer) return std::move(answer).error();
  return {};
}

Result<std::vector<std::string>> StoreRing::list(const std::string& path, Transaction t) {
  VBDKIT_ASSIGN(std::string names, request(XS_DIRECTORY, t, with_nul(path)));
  std::vector<std::string> out;
  for (size_t at = 0; at < names.size(); at += out.back().size() + 1)
    out.emplace_back(names.c_str() + at);
  return out;
}

Result<Store::Transaction> StoreRing::begin() {
  VBDKIT_ASSIGN(std::string id, request(XS_TRANSACTION_START, 0, with_nul("")));
  return static_cast<Transaction>(std::stoul(id));
}

Result<bool> StoreRing::commit(Transaction t) {
  auto answer = request(XS_TRANSACTION_END, t, with_nul("T"));
  if (answer) return true;
  if (answer.error().sys_errno() == EAGAIN) return false;
  return std::move(answer).error();
}

Result<void> StoreRing::watch(const std::string& path, const std::string& token) {
  auto answer = request(XS_WATCH, 0, with_nul(path) + with_nul(token));
  if (!answer) return std::move(answer).error();
  return {};
}

Result<void> StoreRing::unwatch(const std::string& path, const std::string& token) {
  auto answer = request(XS_UNWATCH, 0, with_nul(path) + with_nul(token));
  std::erase_if(events_queued_, [&](const Event& e) { return e.token == token; });
  if (!answer) return std::move(answer).error();
  return {};
}

Result<Store::Event> StoreRing::next_event(Deadline deadline) {
  while (events_queued_.empty()) {
    VBDKIT_ASSIGN(Message message, get_message(deadline));
    if (message.type != XS_WATCH_EVENT) continue;
    const size_t end = message.payload.find('\0');
    events_queued_.push_back({message.payload.substr(0, end),
                              message.payload.substr(end + 1, message.payload.size() - end - 2)});
  }
  Event event = std::move(events_queued_.front());
  events_queued_.pop_front();
  return event;
}

}  // namespace vbdkit::sim
