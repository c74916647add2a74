// SPDX-License-Identifier: LGPL-2.1-or-later
//
// How results are written for people: sizes, text from images that must not reach a terminal as it
// is, and the JSON that --json prints. Any thread.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/units.h"
#include "drivers/image_format.h"

namespace vbdkit::storage {

using Json = nlohmann::ordered_json;

std::string human_size(uint64_t bytes);  // "512 MiB", "1.5 GiB"

// Control characters become '?': names in images are written by others.
std::string printable(std::string_view text);

Json to_json(const drivers::ImageFacts& facts, const std::string& path);
Json to_json(const Error& error);
// Paths need not be UTF-8.
void print_json(const Json& json);

}  // namespace vbdkit::storage
