// SPDX-License-Identifier: LGPL-2.1-or-later
#include "registryd/etcd_client.h"

namespace vbdkit::registryd {

namespace {

constexpr long kOk = 200;
constexpr long kClientError = 400;  // up to kServerError: the request itself is wrong
constexpr long kServerError = 500;

}  // namespace

Result<EtcdClient> EtcdClient::create(Options options) {
  if (options.endpoints.empty()) return Error(ErrorKind::kInvalid, "etcd: no endpoint is named");
  VBDKIT_ASSIGN(HttpClient http, HttpClient::create(options.tls));
  return EtcdClient(std::move(options), std::move(http));
}

Result<std::string> EtcdClient::call(const char* path, const std::string& body) {
  const auto deadline = std::chrono::steady_clock::now() + timeout_;
  Error last(ErrorKind::kTimedOut, "etcd: no answer");
  for (size_t tried = 0; tried < options_.endpoints.size(); ++tried) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) break;
    // One that hangs leaves time for the others.
    const auto share = left / static_cast<int64_t>(options_.endpoints.size() - tried);
    auto answer = http_.post(options_.endpoints[current_] + path, body, share);
    if (options_.counters != nullptr) {
      ++options_.counters->requests;
      options_.counters->bytes_sent += body.size();
      options_.counters->bytes_received += answer ? answer->body.size() : 0;
    }
    if (answer && answer->status == kOk) return std::move(answer->body);
    last = answer ? parse_failure(answer->body, answer->status)
                  : std::move(answer).error().context("etcd");
    if (answer && answer->status >= kClientError && answer->status < kServerError) return last;
    current_ = (current_ + 1) % options_.endpoints.size();
  }
  return last;
}

Result<RangeAnswer> EtcdClient::range(std::string_view key) {
  VBDKIT_ASSIGN(const std::string text, call("/v3/kv/range", range_request(key)));
  return parse_range(text);
}

Result<RangeAnswer> EtcdClient::range_prefix(std::string_view prefix, std::string_view from,
                                             uint64_t limit) {
  VBDKIT_ASSIGN(const std::string text,
                call("/v3/kv/range", range_prefix_request(prefix, from, limit)));
  return parse_range(text);
}

Result<TxnAnswer> EtcdClient::txn(const Txn& txn) {
  VBDKIT_ASSIGN(const std::string text, call("/v3/kv/txn", txn.text()));
  return parse_txn(text);
}

Result<LeaseAnswer> EtcdClient::grant(int64_t ttl) {
  VBDKIT_ASSIGN(const std::string text, call("/v3/lease/grant", grant_request(ttl)));
  return parse_grant(text);
}

Result<LeaseAnswer> EtcdClient::keepalive(int64_t id) {
  VBDKIT_ASSIGN(const std::string text, call("/v3/lease/keepalive", keepalive_request(id)));
  return parse_keepalive(text);
}

}  // namespace vbdkit::registryd
