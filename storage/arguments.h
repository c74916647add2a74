// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What the commands' argument parsing has in common: options with --help, operands by name, and
// images named by a node spec. Any thread.
#pragma once

#include <boost/program_options.hpp>
#include <functional>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/result.h"
#include "base/units.h"
#include "drivers/image_format.h"
#include "drivers/registry.h"

namespace vbdkit::storage {

namespace po = boost::program_options;

struct Syntax {
  const char* usage;                  // "resize [OPTION...] SPEC SIZE"
  std::vector<const char*> operands;  // in order; all are needed
  std::vector<const char*> optional;  // after them
  po::options_description options{"Options"};

  Syntax(const char* line, std::vector<const char*> names, std::vector<const char*> more = {})
      : usage(line), operands(std::move(names)), optional(std::move(more)) {}
};

// Parses and runs: `run` returns the exit code. Help goes to stdout. An error is written to the log
// and becomes kExitUsage where it is kInvalid, what was asked for makes no sense, else
// kExitFailure.
int run_command(Syntax& syntax, const std::vector<std::string>& args, const Logger& log,
                const std::function<Result<int>(const po::variables_map&)>& run);

// An error of the arguments.
Error usage_error(std::string message);

inline std::string text_of(const po::variables_map& vm, const char* name) {
  return vm[name].as<std::string>();
}

// "10G", "+10G", "-10G"; `present` is what a sign counts from.
Result<Bytes> parse_size_argument(const std::string& text, Bytes present = {});

// An image file by its node spec, without filters: "vhd:/srv/a.vhd".
Result<drivers::NodeSpec> parse_image(const std::string& spec);
// Likewise; a plain path is taken too, with the format that the file's name ends in. Only for
// commands that give nobody the content of the image.
Result<drivers::NodeSpec> parse_image_or_path(const std::string& text);

Result<const drivers::ImageFormat*> format_of(const drivers::NodeSpec& image);

}  // namespace vbdkit::storage
