// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/image_options.h"

namespace vbdkit::storage {

void add_format_options(Syntax& syntax) {
  std::string help = "of the new image's format; may be given several times.";
  for (const drivers::ImageFormat& format : drivers::image_formats()) {
    help += std::string("\n") + format.name + ":";
    for (const drivers::FormatOption& option : format.create_options)
      help += std::string(" ") + option.key + "=" + option.values;
  }
  syntax.options.add_options()(
      "option,o", po::value<std::vector<std::string>>()->composing()->value_name("KEY=VALUE"),
      help.c_str());
}

Result<std::map<std::string, std::string>> parse_options(const po::variables_map& vm) {
  std::map<std::string, std::string> options;
  if (vm.count("option") == 0) return options;
  for (const std::string& text : vm["option"].as<std::vector<std::string>>()) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0)
      return usage_error("--option " + text + ": expected KEY=VALUE");
    if (!options.emplace(text.substr(0, equals), text.substr(equals + 1)).second)
      return usage_error("--option " + text + ": given twice");
  }
  return options;
}

}  // namespace vbdkit::storage
