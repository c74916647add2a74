// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/terminal.h"

#include <algorithm>
#include <array>
#include <cstdio>

namespace vbdkit::storage {

std::string human_size(uint64_t bytes) {
  constexpr std::array kUnits = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  size_t unit = 0;
  uint64_t whole = bytes;
  uint64_t rest = 0;
  while (whole >= 1024 && unit + 1 < kUnits.size()) {
    rest = whole % 1024;
    whole /= 1024;
    ++unit;
  }
  const uint64_t tenth = rest * 10 / 1024;
  std::string text = std::to_string(whole);
  if (tenth != 0 && whole < 100) text += "." + std::to_string(tenth);
  return text + " " + kUnits[unit];
}

std::string printable(std::string_view text) {
  std::string out(text);
  std::replace_if(
      out.begin(), out.end(),
      [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }, '?');
  return out;
}

Json to_json(const drivers::ImageFacts& facts, const std::string& path) {
  Json json = {{"path", path},
               {"format", facts.format},
               {"size", facts.size.v},
               {"file-size", facts.file_size.v},
               {"allocated", facts.allocated.v}};
  if (facts.cluster != 0) json["cluster"] = facts.cluster;
  if (!facts.uuid.empty()) json["uuid"] = facts.uuid;
  if (facts.parent) {
    Json parent = {{"path", facts.parent->path}, {"format", facts.parent->format}};
    if (!facts.parent->uuid.empty()) parent["uuid"] = facts.parent->uuid;
    json["parent"] = std::move(parent);
  }
  for (const drivers::Attribute& attribute : facts.attributes)
    std::visit([&](const auto& value) { json[attribute.name] = value; }, attribute.value);
  if (!facts.snapshots.empty()) {
    Json list = Json::array();
    for (const drivers::InternalSnapshot& s : facts.snapshots)
      list.push_back({{"id", s.id}, {"name", s.name}, {"time", s.seconds}, {"size", s.size.v}});
    json["snapshots"] = std::move(list);
  }
  return json;
}

Json to_json(const Error& error) {
  return {{"kind", std::string(to_string(error.kind()))}, {"message", error.message()}};
}

void print_json(const Json& json) {
  std::puts(json.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
}

}  // namespace vbdkit::storage
