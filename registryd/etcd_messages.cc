// SPDX-License-Identifier: LGPL-2.1-or-later
#include "registryd/etcd_messages.h"

#include <charconv>

#include "backend/control/json.h"
#include "registryd/base64.h"

namespace vbdkit::registryd {

namespace {

using control::Json;
using control::JsonWriter;

constexpr size_t kLongestReason = 500;  // characters of a message from elsewhere

Error malformed(const std::string& what) {
  return Error(ErrorKind::kProtocol, "etcd: its answer makes no sense: " + what);
}

std::string decimal(int64_t number) { return std::to_string(number); }

JsonWriter& key_range(JsonWriter& w, std::string_view prefix) {
  return w.field("key", to_base64(prefix))
      .field("range_end", to_base64(end_of_prefix(std::string(prefix))));
}

// A 64-bit number: a string of digits; absent where it is 0.
Result<int64_t> number_of(const Json& object, const char* name) {
  const Json value = object.member(name);
  if (value.is_null()) return int64_t{0};
  if (const auto small = value.number(); small && *small <= INT64_MAX)
    return static_cast<int64_t>(*small);
  const auto text = value.string();
  if (!text) return malformed(std::string(name) + " is no number");
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), number);
  if (error != std::errc() || end != text->data() + text->size())
    return malformed(std::string(name) + " is no number");
  return number;
}

Result<std::string> bytes_of(const Json& object, const char* name) {
  const Json value = object.member(name);
  if (value.is_null()) return std::string();
  const auto text = value.string();
  auto bytes = text ? from_base64(*text) : std::nullopt;
  if (!bytes) return malformed(std::string(name) + " is no base64");
  return std::move(*bytes);
}

Result<Json> parse_object(std::string_view text) {
  auto json = Json::parse(text);
  if (!json) return malformed("no JSON");
  if (!json->is_object()) return malformed("no object");
  return json;
}

Result<int64_t> revision_of(const Json& answer) {
  const Json header = answer.member("header");
  if (!header.is_object()) return malformed("it has no header");
  return number_of(header, "revision");
}

Result<KeyValue> key_value_of(const Json& json) {
  KeyValue kv;
  VBDKIT_ASSIGN(kv.key, bytes_of(json, "key"));
  if (kv.key.empty()) return malformed("a value has no key");
  VBDKIT_ASSIGN(kv.value, bytes_of(json, "value"));
  VBDKIT_ASSIGN(kv.create_revision, number_of(json, "create_revision"));
  VBDKIT_ASSIGN(kv.mod_revision, number_of(json, "mod_revision"));
  VBDKIT_ASSIGN(kv.lease, number_of(json, "lease"));
  return kv;
}

Result<RangeAnswer> range_of(const Json& json) {
  RangeAnswer range;
  VBDKIT_ASSIGN(range.revision, revision_of(json));
  const Json values = json.member("kvs");
  if (!values.is_null() && !values.is_array()) return malformed("kvs is no array");
  for (size_t i = 0; i < values.size(); ++i) {
    VBDKIT_ASSIGN(KeyValue kv, key_value_of(values.at(i)));
    range.values.push_back(std::move(kv));
  }
  range.more = json.member("more").boolean().value_or(false);
  return range;
}

Result<LeaseAnswer> lease_of(const Json& json) {
  LeaseAnswer lease;
  VBDKIT_ASSIGN(lease.id, number_of(json, "ID"));
  VBDKIT_ASSIGN(lease.ttl, number_of(json, "TTL"));
  return lease;
}

}  // namespace

std::string end_of_prefix(std::string prefix) {
  while (!prefix.empty() && static_cast<unsigned char>(prefix.back()) == 0xff) prefix.pop_back();
  if (prefix.empty()) return std::string(1, '\0');  // to the end of all
  prefix.back() = static_cast<char>(static_cast<unsigned char>(prefix.back()) + 1);
  return prefix;
}

std::string range_request(std::string_view key) {
  JsonWriter w;
  w.begin_object().field("key", to_base64(key)).end_object();
  return w.take();
}

std::string range_prefix_request(std::string_view prefix, std::string_view from, uint64_t limit) {
  JsonWriter w;
  w.begin_object().field("key", to_base64(from.empty() ? prefix : from));
  w.field("range_end", to_base64(end_of_prefix(std::string(prefix))));
  if (limit != 0) w.field("limit", decimal(static_cast<int64_t>(limit)));
  w.end_object();
  return w.take();
}

std::string grant_request(int64_t ttl) {
  JsonWriter w;
  w.begin_object().field("TTL", decimal(ttl)).end_object();
  return w.take();
}

std::string keepalive_request(int64_t id) {
  JsonWriter w;
  w.begin_object().field("ID", decimal(id)).end_object();
  return w.take();
}

void Txn::compare(std::string json) {
  if (!compares_.empty()) compares_ += ',';
  compares_ += json;
}

void Txn::action(std::string json) {
  if (!actions_.empty()) actions_ += ',';
  actions_ += json;
  ++actions_count_;
}

Txn& Txn::if_created(std::string_view key, int64_t create_revision) {
  JsonWriter w;
  w.begin_object().field("key", to_base64(key)).field("target", "CREATE");
  w.field("result", "EQUAL").field("create_revision", decimal(create_revision)).end_object();
  compare(w.take());
  return *this;
}

// A comparison with a range holds where it does for each key in it.
Txn& Txn::if_unchanged(std::string_view prefix, int64_t revision) {
  JsonWriter w;
  key_range(w.begin_object(), prefix).field("target", "MOD").field("result", "LESS");
  w.field("mod_revision", decimal(revision + 1)).end_object();
  compare(w.take());
  return *this;
}

Txn& Txn::put(std::string_view key, std::string_view value, int64_t lease) {
  JsonWriter w;
  w.begin_object().key("request_put").begin_object();
  w.field("key", to_base64(key)).field("value", to_base64(value));
  if (lease != 0) w.field("lease", decimal(lease));
  w.end_object().end_object();
  action(w.take());
  return *this;
}

Txn& Txn::remove(std::string_view key) {
  JsonWriter w;
  w.begin_object().key("request_delete_range").begin_object();
  w.field("key", to_base64(key)).end_object().end_object();
  action(w.take());
  return *this;
}

Txn& Txn::read_prefix(std::string_view prefix) {
  JsonWriter w;
  key_range(w.begin_object().key("request_range").begin_object(), prefix).end_object().end_object();
  action(w.take());
  return *this;
}

std::string Txn::text() const {
  return R"({"compare":[)" + compares_ + R"(],"success":[)" + actions_ + "]}";
}

Result<RangeAnswer> parse_range(std::string_view text) {
  VBDKIT_ASSIGN(const Json json, parse_object(text));
  return range_of(json);
}

Result<TxnAnswer> parse_txn(std::string_view text) {
  VBDKIT_ASSIGN(const Json json, parse_object(text));
  TxnAnswer answer;
  VBDKIT_ASSIGN(answer.revision, revision_of(json));
  answer.succeeded = json.member("succeeded").boolean().value_or(false);
  const Json responses = json.member("responses");
  for (size_t i = 0; i < responses.size(); ++i) {
    const Json range = responses.at(i).member("response_range");
    if (!range.is_object()) continue;
    VBDKIT_ASSIGN(RangeAnswer one, range_of(range));
    answer.ranges.push_back(std::move(one));
  }
  return answer;
}

Result<LeaseAnswer> parse_grant(std::string_view text) {
  VBDKIT_ASSIGN(const Json json, parse_object(text));
  VBDKIT_ASSIGN(const LeaseAnswer lease, lease_of(json));
  if (lease.id == 0 || lease.ttl <= 0) return malformed("a lease without an ID or a time");
  return lease;
}

// One message of a stream, which the gateway wraps.
Result<LeaseAnswer> parse_keepalive(std::string_view text) {
  VBDKIT_ASSIGN(const Json json, parse_object(text));
  const Json result = json.member("result");
  if (!result.is_object()) return malformed("a keepalive without a result");
  return lease_of(result);
}

Error parse_failure(std::string_view text, long status) {
  std::string reason;
  if (const auto json = Json::parse(text)) {
    for (const Json& from : {*json, json->member("error")})
      for (const char* name : {"message", "error"})
        if (const auto said = from.member(name).string(); said && reason.empty()) reason = *said;
  }
  if (reason.empty()) reason = "HTTP status " + std::to_string(status);
  return Error(ErrorKind::kIo, "etcd: " + reason.substr(0, kLongestReason));
}

}  // namespace vbdkit::registryd
