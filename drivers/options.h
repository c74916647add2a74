// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Reads the options of one node spec; an error names the driver, the key and what was expected.
// The keys themselves were checked by parse_graph(). Any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "drivers/registry.h"

namespace vbdkit::drivers {

// "512", "64K", "10G": bytes, or with a suffix K, M, G or T (powers of 1024, either case).
Result<uint64_t> parse_size(std::string_view text);

class OptionReader {
 public:
  explicit OptionReader(const NodeSpec& spec) : spec_(spec) {}

  bool has(const std::string& key) const { return spec_.options.contains(key); }

  // Each returns `fallback` where the key is absent.
  Result<bool> flag(const std::string& key, bool fallback) const;  // on, off
  Result<uint64_t> size(const std::string& key, uint64_t fallback) const;
  Result<uint64_t> number(const std::string& key, uint64_t fallback) const;

 private:
  Error bad(const std::string& key, std::string_view expected) const;

  const NodeSpec& spec_;
};

}  // namespace vbdkit::drivers
