// SPDX-License-Identifier: LGPL-2.1-or-later
//
// JSON for the control sockets. Json is a parsed, immutable value (copies share the document);
// JsonWriter builds text without a document in memory; JsonFramer cuts a byte stream into top-level
// values. The JSON library stays inside json.cc, so that its templates are compiled once and an
// instance that nobody talks to never touches their pages.
//
// Values only, no thread affinity. Input is hostile: sizes are bounded, nothing throws.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "base/result.h"

namespace vbdkit::control {

class Json {
 public:
  Json() = default;  // null

  [[gnu::cold]] static Result<Json> parse(std::string_view text);

  bool is_null() const;
  bool is_object() const;
  bool is_array() const;

  // The value itself, where it has that type.
  std::optional<std::string> string() const;
  std::optional<uint64_t> number() const;  // non-negative integers only
  std::optional<bool> boolean() const;

  // Of an object; a null Json where there is no such member.
  Json member(std::string_view key) const;
  std::vector<std::string> keys() const;
  // Of an array.
  size_t size() const;
  Json at(size_t index) const;

  std::string dump() const;

 private:
  Json(std::shared_ptr<const nlohmann::json> document, const nlohmann::json* value)
      : document_(std::move(document)), value_(value) {}

  std::shared_ptr<const nlohmann::json> document_;
  const nlohmann::json* value_ = nullptr;
};

// Calls must nest as JSON does; commas are put by the writer. Strings that are not UTF-8 (a path
// may be anything) have their bad bytes replaced by U+FFFD.
class JsonWriter {
 public:
  JsonWriter& begin_object();
  JsonWriter& end_object();
  JsonWriter& begin_array();
  JsonWriter& end_array();
  JsonWriter& key(std::string_view name);
  JsonWriter& string(std::string_view value);
  JsonWriter& number(uint64_t value);
  JsonWriter& boolean(bool value);
  JsonWriter& null();
  JsonWriter& raw(std::string_view json);  // a value that is JSON text already

  JsonWriter& field(std::string_view name, std::string_view value);
  JsonWriter& field(std::string_view name, const char* value) {
    return field(name, std::string_view(value));
  }
  JsonWriter& field(std::string_view name, uint64_t value);
  JsonWriter& field(std::string_view name, bool value);

  std::string take() { return std::move(text_); }

 private:
  void separate();

  std::string text_;
  bool need_comma_ = false;
};

// QMP peers need not end a message with a newline, so the end of a message is where its outermost
// bracket closes.
class JsonFramer {
 public:
  explicit JsonFramer(size_t limit) : limit_(limit) {}

  enum class Kind {
    kMore,     // no whole value yet
    kMessage,  // `text` is a bracketed value; whether it is JSON is for Json::parse to say
    kGarbage,  // `text` is what stood where a value should begin, up to the end of its line
    kTooLong,  // a value longer or nested deeper than the limits: give the stream up
  };
  // Bounds the recursion of whoever walks the value.
  static constexpr unsigned kMaxDepth = 64;
  struct Frame {
    Kind kind = Kind::kMore;
    std::string text;
  };

  void append(std::string_view bytes) { buffer_.append(bytes); }
  Frame next();

 private:
  Frame cut(Kind kind, size_t end);

  size_t limit_;
  std::string buffer_;
  size_t scanned_ = 0;  // of buffer_, by the present value's scan
  unsigned depth_ = 0;
  bool in_string_ = false;
  bool escaped_ = false;
};

}  // namespace vbdkit::control
