// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What the commands for running instances have in common: which instance is meant, and asking it.
// An instance is named by its UUID (or the beginning of it), by its image (path or node spec), or
// by DOMAIN:VDEV. Blocks; any thread.
#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "backend/control/json.h"
#include "storage/arguments.h"
#include "storage/registry.h"

namespace vbdkit::storage {

inline constexpr std::chrono::seconds kAnswerTimeout{30};

// --runtime-dir
void add_runtime_dir_option(po::options_description& options);
Registry registry_of(const po::variables_map& vm);

// The error says what was looked for, and where the image is a parent, who has it as one.
Result<InstanceRecord> find_instance(const Registry& registry, const std::string& text,
                                     const Logger& log);

// A domain's number, by name or as it is.
Result<uint16_t> find_domain(const std::string& name, const Logger& log);

// One QMP command. `arguments`: an object's text, or empty. An instance that does not know the
// command is an error of kind kUnsupported that says so.
Result<control::Json> ask(const InstanceRecord& instance, std::string_view command,
                          std::string_view arguments = {},
                          std::chrono::milliseconds timeout = kAnswerTimeout);

// How an instance is called in messages: "a4f2b1c0 (vhd:/srv/a.vhd)".
std::string title_of(const InstanceRecord& instance);
// "5:xvda 7:xvdb"
std::string users_of(const InstanceRecord& instance);

}  // namespace vbdkit::storage
