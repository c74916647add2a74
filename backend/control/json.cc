// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/control/json.h"

#include <array>
#include <charconv>
#include <nlohmann/json.hpp>

namespace vbdkit::control {

Result<Json> Json::parse(std::string_view text) {
  auto document = std::make_shared<const nlohmann::json>(
      nlohmann::json::parse(text, /*cb=*/nullptr, /*allow_exceptions=*/false));
  if (document->is_discarded()) return Error(ErrorKind::kInvalid, "JSON parse error");
  const nlohmann::json* root = document.get();
  return Json(std::move(document), root);
}

bool Json::is_null() const { return value_ == nullptr || value_->is_null(); }
bool Json::is_object() const { return value_ != nullptr && value_->is_object(); }
bool Json::is_array() const { return value_ != nullptr && value_->is_array(); }

std::optional<std::string> Json::string() const {
  if (value_ == nullptr || !value_->is_string()) return std::nullopt;
  return *value_->get_ptr<const nlohmann::json::string_t*>();
}

std::optional<uint64_t> Json::number() const {
  if (value_ == nullptr || !value_->is_number_unsigned()) return std::nullopt;
  return *value_->get_ptr<const nlohmann::json::number_unsigned_t*>();
}

std::optional<bool> Json::boolean() const {
  if (value_ == nullptr || !value_->is_boolean()) return std::nullopt;
  return *value_->get_ptr<const nlohmann::json::boolean_t*>();
}

Json Json::member(std::string_view key) const {
  if (!is_object()) return {};
  const auto found = value_->find(key);
  if (found == value_->end()) return {};
  return {document_, &*found};
}

std::vector<std::string> Json::keys() const {
  std::vector<std::string> out;
  if (!is_object()) return out;
  for (auto it = value_->begin(); it != value_->end(); ++it) out.push_back(it.key());
  return out;
}

size_t Json::size() const { return is_array() ? value_->size() : 0; }

Json Json::at(size_t index) const {
  if (index >= size()) return {};
  return {document_, &(*value_)[index]};
}

std::string Json::dump() const {
  if (value_ == nullptr) return "null";
  return value_->dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

namespace {

// Length of the UTF-8 sequence at the start of `s`, or 0 where there is none (RFC 3629).
size_t utf8_length(std::string_view s) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(s[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  size_t length = 0;
  unsigned char low = 0x80, high = 0xbf;  // bounds of the second byte
  if (first >= 0xc2 && first <= 0xdf) {
    length = 2;
  } else if (first >= 0xe0 && first <= 0xef) {
    length = 3;
    if (first == 0xe0) low = 0xa0;
    if (first == 0xed) high = 0x9f;
  } else if (first >= 0xf0 && first <= 0xf4) {
    length = 4;
    if (first == 0xf0) low = 0x90;
    if (first == 0xf4) high = 0x8f;
  } else {
    return 0;
  }
  if (s.size() < length || byte(1) < low || byte(1) > high) return 0;
  for (size_t i = 2; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  return length;
}

void append_escaped(std::string& out, std::string_view s) {
  static constexpr std::string_view kHex = "0123456789abcdef";
  while (!s.empty()) {
    const char c = s.front();
    size_t length = 1;
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      const auto u = static_cast<unsigned char>(c);
      out += "\\u00";
      out += kHex[u >> 4];
      out += kHex[u & 0xf];
    } else if ((length = utf8_length(s)) != 0) {
      out.append(s.substr(0, length));
    } else {
      out += "\xef\xbf\xbd";
      length = 1;
    }
    s.remove_prefix(length);
  }
}

}  // namespace

void JsonWriter::separate() {
  if (need_comma_) text_ += ',';
  need_comma_ = true;
}

JsonWriter& JsonWriter::begin_object() {
  separate();
  text_ += '{';
  need_comma_ = false;
  return *this;
}

JsonWriter& JsonWriter::end_object() {
  text_ += '}';
  need_comma_ = true;
  return *this;
}

JsonWriter& JsonWriter::begin_array() {
  separate();
  text_ += '[';
  need_comma_ = false;
  return *this;
}

JsonWriter& JsonWriter::end_array() {
  text_ += ']';
  need_comma_ = true;
  return *this;
}

JsonWriter& JsonWriter::key(std::string_view name) {
  string(name);
  text_ += ':';
  need_comma_ = false;
  return *this;
}

JsonWriter& JsonWriter::string(std::string_view value) {
  separate();
  text_ += '"';
  append_escaped(text_, value);
  text_ += '"';
  return *this;
}

JsonWriter& JsonWriter::number(uint64_t value) {
  separate();
  std::array<char, 20> digits;
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
  text_.append(digits.data(), end);
  return *this;
}

JsonWriter& JsonWriter::boolean(bool value) { return raw(value ? "true" : "false"); }
JsonWriter& JsonWriter::null() { return raw("null"); }

JsonWriter& JsonWriter::raw(std::string_view json) {
  separate();
  text_.append(json);
  return *this;
}

JsonWriter& JsonWriter::field(std::string_view name, std::string_view value) {
  return key(name).string(value);
}
JsonWriter& JsonWriter::field(std::string_view name, uint64_t value) {
  return key(name).number(value);
}
JsonWriter& JsonWriter::field(std::string_view name, bool value) {
  return key(name).boolean(value);
}

JsonFramer::Frame JsonFramer::cut(Kind kind, size_t end) {
  Frame frame{kind, buffer_.substr(0, end)};
  buffer_.erase(0, end);
  scanned_ = 0;
  depth_ = 0;
  in_string_ = false;
  escaped_ = false;
  return frame;
}

JsonFramer::Frame JsonFramer::next() {
  if (depth_ == 0) {
    buffer_.erase(0, buffer_.find_first_not_of(" \t\r\n"));
    if (buffer_.empty()) return {};
    if (buffer_.front() != '{' && buffer_.front() != '[') {
      const size_t newline = buffer_.find('\n');
      if (newline != std::string::npos) return cut(Kind::kGarbage, newline);
      return buffer_.size() > limit_ ? Frame{Kind::kTooLong, {}} : Frame{};
    }
  }
  for (; scanned_ < buffer_.size(); ++scanned_) {
    if (scanned_ >= limit_) return {Kind::kTooLong, {}};
    const char c = buffer_[scanned_];
    if (in_string_) {
      if (escaped_) {
        escaped_ = false;
      } else if (c == '\\') {
        escaped_ = true;
      } else if (c == '"') {
        in_string_ = false;
      }
    } else if (c == '"') {
      in_string_ = true;
    } else if (c == '{' || c == '[') {
      if (++depth_ > kMaxDepth) return {Kind::kTooLong, {}};
    } else if (c == '}' || c == ']') {
      if (--depth_ == 0) return cut(Kind::kMessage, scanned_ + 1);
    }
  }
  return {};
}

}  // namespace vbdkit::control
