// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What is said to etcd and what it answers, as text: its v3 API through the JSON gateway
// (etcd's api/etcdserverpb/rpc.proto, mapped to JSON: bytes are base64, 64-bit numbers are strings,
// fields that are zero or empty are left out). Answers come from a network: anything may be in
// them, and what is not as it should be is an error of kind kProtocol.
//
// Pure; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace vbdkit::registryd {

struct KeyValue {
  std::string key;
  std::string value;
  int64_t create_revision = 0;
  int64_t mod_revision = 0;
  int64_t lease = 0;  // 0: none
};

struct RangeAnswer {
  int64_t revision = 0;  // of the store, when it was read
  std::vector<KeyValue> values;
  bool more = false;  // beyond the limit
};

struct TxnAnswer {
  bool succeeded = false;  // all comparisons were true
  int64_t revision = 0;    // of the store, after it
  std::vector<RangeAnswer> ranges;
};

struct LeaseAnswer {
  int64_t id = 0;
  int64_t ttl = 0;  // seconds; 0 or less: there is no such lease (any more)
};

// The first key behind all that begin with `prefix`.
std::string end_of_prefix(std::string prefix);

std::string range_request(std::string_view key);
// From `from` on (a key that has the prefix), in their order; limit 0: all.
std::string range_prefix_request(std::string_view prefix, std::string_view from = {},
                                 uint64_t limit = 0);
std::string grant_request(int64_t ttl);
std::string keepalive_request(int64_t id);

// A transaction: where all comparisons hold it does all that is wanted, else nothing.
class Txn {
 public:
  Txn& if_absent(std::string_view key) { return if_created(key, 0); }
  Txn& if_created(std::string_view key, int64_t create_revision);
  // No key with the prefix has been made or changed after `revision`.
  Txn& if_unchanged(std::string_view prefix, int64_t revision);

  Txn& put(std::string_view key, std::string_view value, int64_t lease = 0);
  Txn& remove(std::string_view key);
  Txn& read_prefix(std::string_view prefix);

  size_t actions() const { return actions_count_; }
  std::string text() const;

 private:
  void compare(std::string json);
  void action(std::string json);

  std::string compares_;
  std::string actions_;
  size_t actions_count_ = 0;
};

Result<RangeAnswer> parse_range(std::string_view text);
Result<TxnAnswer> parse_txn(std::string_view text);
Result<LeaseAnswer> parse_grant(std::string_view text);
Result<LeaseAnswer> parse_keepalive(std::string_view text);
// What an answer that is no success says of the reason; `status` where it says nothing.
Error parse_failure(std::string_view text, long status);

}  // namespace vbdkit::registryd
