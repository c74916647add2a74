// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Running instances as text and JSON: the list of them, and which images they stand on together.
// Pure; any thread.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "storage/registry.h"
#include "storage/terminal.h"

namespace vbdkit::storage {

// A record as it was written, with "alive".
Json to_json(const InstanceRecord& record);

// `hosts`: of each, where they are shown.
std::string draw_list(std::span<const InstanceRecord> records,
                      const std::vector<std::string>* hosts = nullptr);

// The chains of the living, base images first; an image that several stand on is drawn once.
std::string draw_running_tree(std::span<const InstanceRecord> records);
Json running_tree_json(std::span<const InstanceRecord> records);

}  // namespace vbdkit::storage
