// SPDX-License-Identifier: LGPL-2.1-or-later
//
// EtcdClient: the calls to etcd that the registry needs, over its JSON gateway. One of several
// endpoints is talked to; where it does not answer, or says that it has no leader, the next one is
// asked within the same time. Reads are linearizable: a member that is cut off from the others
// cannot answer them.
//
// A call that fails may have been done all the same; whoever changes something looks first.
// Blocks; one thread.
#pragma once

#include <atomic>
#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "registryd/etcd_messages.h"
#include "registryd/http_client.h"

namespace vbdkit::registryd {

// What calls cost, of all clients that share it; for tests and statistics.
struct EtcdCounters {
  std::atomic<uint64_t> requests{0};
  std::atomic<uint64_t> bytes_sent{0};
  std::atomic<uint64_t> bytes_received{0};
};

class EtcdClient {
 public:
  struct Options {
    std::vector<std::string> endpoints;  // "http://10.0.0.1:2379"; at least one
    HttpClient::Tls tls{};
    EtcdCounters* counters = nullptr;  // outlives the client
  };

  static Result<EtcdClient> create(Options options);

  void set_timeout(std::chrono::milliseconds timeout) { timeout_ = timeout; }  // of one call

  Result<RangeAnswer> range(std::string_view key);
  Result<RangeAnswer> range_prefix(std::string_view prefix, std::string_view from = {},
                                   uint64_t limit = 0);
  Result<TxnAnswer> txn(const Txn& txn);
  Result<LeaseAnswer> grant(int64_t ttl);
  Result<LeaseAnswer> keepalive(int64_t id);

 private:
  EtcdClient(Options options, HttpClient http)
      : options_(std::move(options)), http_(std::move(http)) {}
  Result<std::string> call(const char* path, const std::string& body);

  Options options_;
  HttpClient http_;
  size_t current_ = 0;  // endpoint
  std::chrono::milliseconds timeout_{5000};
};

}  // namespace vbdkit::registryd
