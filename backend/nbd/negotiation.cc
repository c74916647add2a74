// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/nbd/negotiation.h"

#include <algorithm>
#include <optional>

namespace vbdkit::nbd {
namespace {

constexpr size_t kClientFlagsSize = 4;
constexpr size_t kOptionHeaderSize = 16;
constexpr size_t kReservedZeroes = 124;  // after NBD_OPT_EXPORT_NAME, unless NO_ZEROES

template <typename T>
void put(std::string& out, T v) {
  v = to_big_endian(v);
  out.append(reinterpret_cast<const char*>(&v), sizeof v);
}

void put_reply(std::string& out, Option option, OptionReply reply, std::string_view data = {}) {
  put(out, kOptionReplyMagic);
  put(out, static_cast<uint32_t>(option));
  put(out, static_cast<uint32_t>(reply));
  put(out, static_cast<uint32_t>(data.size()));
  out.append(data);
}

// Reads the fields of an option's data; once something is missing, everything is.
class Fields {
 public:
  explicit Fields(std::span<const uint8_t> data) : rest_(data) {}

  template <typename T>
  std::optional<T> integer() {
    if (rest_.size() < sizeof(T)) return std::nullopt;
    const T v = load_be<T>(rest_.data());
    rest_ = rest_.subspan(sizeof(T));
    return v;
  }
  // A string after its 32-bit length.
  std::optional<std::string_view> string() {
    const auto length = integer<uint32_t>();
    if (!length || *length > rest_.size() || *length > kMaxStringLength) return std::nullopt;
    const std::string_view s(reinterpret_cast<const char*>(rest_.data()), *length);
    rest_ = rest_.subspan(*length);
    return s;
  }
  bool at_end() const { return rest_.empty(); }

 private:
  std::span<const uint8_t> rest_;
};

struct MetaQuery {
  std::string_view export_name;
  std::vector<std::string_view> queries;
};

std::optional<MetaQuery> parse_meta_query(std::span<const uint8_t> data) {
  Fields fields(data);
  MetaQuery result;
  const auto name = fields.string();
  const auto count = fields.integer<uint32_t>();
  if (!name || !count) return std::nullopt;
  result.export_name = *name;
  for (uint32_t i = 0; i < *count; ++i) {
    const auto query = fields.string();
    if (!query) return std::nullopt;
    result.queries.push_back(*query);
  }
  if (!fields.at_end()) return std::nullopt;
  return result;
}

// What ends in a colon stands for all that begin with it when listing, and for nothing when
// selecting.
bool matches(std::string_view query, std::string_view context, bool listing) {
  if (query == context) return true;
  return listing && query.ends_with(':') && context.starts_with(query);
}

}  // namespace

void Negotiation::greet(std::string& out) {
  put(out, kMagic);
  put(out, kOptionMagic);
  put(out, static_cast<uint16_t>(kFlagFixedNewstyle | kFlagNoZeroes));
}

Negotiation::Step Negotiation::step(std::span<const uint8_t> in, std::string& out) {
  return have_flags_ ? take_option(in, out) : take_client_flags(in);
}

Negotiation::Step Negotiation::take_client_flags(std::span<const uint8_t> in) {
  if (in.size() < kClientFlagsSize) return {};
  const uint32_t flags = load_be<uint32_t>(in.data());
  if (flags & ~(kClientFixedNewstyle | kClientNoZeroes)) return broken("unknown client flags");
  if (!(flags & kClientFixedNewstyle)) return broken("no fixed newstyle handshake");
  no_zeroes_ = flags & kClientNoZeroes;
  have_flags_ = true;
  return {kClientFlagsSize, State::kMore};
}

Negotiation::Step Negotiation::take_option(std::span<const uint8_t> in, std::string& out) {
  if (in.size() < kOptionHeaderSize) return {};
  if (load_be<uint64_t>(in.data()) != kOptionMagic) return broken("bad option magic");
  const auto option = static_cast<Option>(load_be<uint32_t>(in.data() + 8));
  const uint32_t length = load_be<uint32_t>(in.data() + 12);
  if (length > kMaxOptionData) {
    if (option == Option::kExportName) return broken("export name too long");
    put_reply(out, option, OptionReply::kErrTooBig, "option data too long");
    why_ = "option data too long";
    return {kOptionHeaderSize, State::kAborted};
  }
  if (in.size() - kOptionHeaderSize < length) return {};
  const State state = handle(option, in.subspan(kOptionHeaderSize, length), out);
  return {kOptionHeaderSize + length, state};
}

Negotiation::State Negotiation::handle(Option option, std::span<const uint8_t> data,
                                       std::string& out) {
  switch (option) {
    case Option::kExportName:
      return enter_by_name({reinterpret_cast<const char*>(data.data()), data.size()}, out);
    case Option::kAbort:
      put_reply(out, option, OptionReply::kAck);
      return State::kAborted;
    case Option::kInfo:
    case Option::kGo:
      return inform(option, data, out);
    case Option::kList:
      list(data, out);
      return State::kMore;
    case Option::kStructuredReply:
      if (data.empty()) {
        structured_ = true;
        put_reply(out, option, OptionReply::kAck);
      } else {
        put_reply(out, option, OptionReply::kErrInvalid, "no data expected");
      }
      return State::kMore;
    case Option::kListMetaContext:
    case Option::kSetMetaContext:
      meta_context(option, data, out);
      return State::kMore;
    case Option::kStartTls:
      if (data.empty())
        put_reply(out, option, OptionReply::kErrPolicy, "TLS is not offered on a unix socket");
      else
        put_reply(out, option, OptionReply::kErrInvalid, "no data expected");
      return State::kMore;
  }
  put_reply(out, option, OptionReply::kErrUnsup);
  return State::kMore;
}

// This option has no way to answer with an error.
Negotiation::State Negotiation::enter_by_name(std::string_view name, std::string& out) {
  if (!is_export(name)) {
    why_ = "unknown export";
    return State::kBroken;
  }
  put(out, export_.size);
  put(out, transmission_flags());
  if (!no_zeroes_) out.append(kReservedZeroes, '\0');
  return State::kTransmission;
}

Negotiation::State Negotiation::inform(Option option, std::span<const uint8_t> data,
                                       std::string& out) {
  Fields fields(data);
  const auto name = fields.string();
  const auto count = fields.integer<uint16_t>();
  bool asked[4] = {};
  bool complete = name && count;
  for (unsigned i = 0; complete && i < *count; ++i) {
    const auto wanted = fields.integer<uint16_t>();
    complete = wanted.has_value();
    if (complete && *wanted < std::size(asked)) asked[*wanted] = true;
  }
  if (!complete || !fields.at_end()) {
    put_reply(out, option, OptionReply::kErrInvalid, "malformed request");
    return State::kMore;
  }
  if (!is_export(*name)) {
    put_reply(out, option, OptionReply::kErrUnknown, "no such export");
    return State::kMore;
  }

  std::string info;
  put(info, static_cast<uint16_t>(Info::kExport));
  put(info, export_.size);
  put(info, transmission_flags());
  put_reply(out, option, OptionReply::kInfo, info);
  if (asked[static_cast<size_t>(Info::kName)]) {
    info.clear();
    put(info, static_cast<uint16_t>(Info::kName));
    put_reply(out, option, OptionReply::kInfo, info + export_.name);
  }
  if (asked[static_cast<size_t>(Info::kDescription)] && !export_.description.empty()) {
    info.clear();
    put(info, static_cast<uint16_t>(Info::kDescription));
    put_reply(out, option, OptionReply::kInfo, info + export_.description);
  }
  // Whoever did not ask is told all the same and is refused unaligned requests, no more.
  info.clear();
  put(info, static_cast<uint16_t>(Info::kBlockSize));
  put(info, export_.minimum_block);
  put(info, export_.preferred_block);
  put(info, kMaxPayload);
  put_reply(out, option, OptionReply::kInfo, info);
  put_reply(out, option, OptionReply::kAck);
  return option == Option::kGo ? State::kTransmission : State::kMore;
}

void Negotiation::list(std::span<const uint8_t> data, std::string& out) {
  if (!data.empty()) {
    put_reply(out, Option::kList, OptionReply::kErrInvalid, "no data expected");
    return;
  }
  std::string entry;
  put(entry, static_cast<uint32_t>(export_.name.size()));
  entry += export_.name;
  entry += export_.description;
  put_reply(out, Option::kList, OptionReply::kServer, entry);
  put_reply(out, Option::kList, OptionReply::kAck);
}

void Negotiation::meta_context(Option option, std::span<const uint8_t> data, std::string& out) {
  const bool listing = option == Option::kListMetaContext;
  if (!listing) selected_.clear();  // also where this one fails
  if (!listing && !structured_) {
    put_reply(out, option, OptionReply::kErrInvalid, "structured replies come first");
    return;
  }
  const auto request = parse_meta_query(data);
  if (!request) {
    put_reply(out, option, OptionReply::kErrInvalid, "malformed request");
    return;
  }
  if (!is_export(request->export_name)) {
    put_reply(out, option, OptionReply::kErrUnknown, "no such export");
    return;
  }
  const auto& queries = request->queries;
  for (uint32_t i = 0; i < export_.contexts.size(); ++i) {
    const std::string& context = export_.contexts[i];
    const bool wanted = (listing && queries.empty()) ||
                        std::any_of(queries.begin(), queries.end(), [&](std::string_view query) {
                          return matches(query, context, listing);
                        });
    if (!wanted) continue;
    if (!listing) selected_.push_back(i + 1);
    std::string entry;
    put(entry, listing ? 0 : i + 1);
    put_reply(out, option, OptionReply::kMetaContext, entry + context);
  }
  put_reply(out, option, OptionReply::kAck);
}

}  // namespace vbdkit::nbd
