// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/arguments.h"

#include <iostream>

#include "drivers/drivers.h"
#include "drivers/options.h"
#include "storage/command.h"

namespace vbdkit::storage {
namespace {

std::string command_of(const Syntax& syntax) {
  const std::string line = syntax.usage;
  return line.substr(0, line.find(' '));
}

Result<po::variables_map> parse(const Syntax& syntax, const std::vector<std::string>& args) {
  po::options_description all;
  po::options_description operands;
  po::positional_options_description positional;
  std::vector<const char*> names = syntax.operands;
  names.insert(names.end(), syntax.optional.begin(), syntax.optional.end());
  for (const char* name : names) {
    operands.add_options()(name, po::value<std::string>());
    positional.add(name, 1);
  }
  all.add(syntax.options).add(operands);
  po::variables_map vm;
  try {
    po::store(po::command_line_parser(args).options(all).positional(positional).run(), vm);
    po::notify(vm);
  } catch (const po::error& e) {
    return usage_error(e.what());
  }
  if (vm.count("help") != 0) return vm;
  for (const char* name : syntax.operands)
    if (vm.count(name) == 0)
      return usage_error(std::string(name) + " is missing (vbdkit " + syntax.usage + ")");
  return vm;
}

}  // namespace

Error usage_error(std::string message) { return Error(ErrorKind::kInvalid, std::move(message)); }

int run_command(Syntax& syntax, const std::vector<std::string>& args, const Logger& log,
                const std::function<Result<int>(const po::variables_map&)>& run) {
  syntax.options.add_options()("help,h", "this text");
  const auto failed = [&](const Error& error) {
    log.error("%s: %s", command_of(syntax).c_str(), error.message().c_str());
    return error.kind() == ErrorKind::kInvalid ? kExitUsage : kExitFailure;
  };
  const auto vm = parse(syntax, args);
  if (!vm) return failed(vm.error());
  if (vm->count("help") != 0) {
    std::cout << "Usage: vbdkit " << syntax.usage << "\n\n" << syntax.options << std::flush;
    return kExitOk;
  }
  const auto status = run(*vm);
  return status ? *status : failed(status.error());
}

Result<Bytes> parse_size_argument(const std::string& text, Bytes present) {
  const bool grow = text.starts_with('+');
  const bool shrink = text.starts_with('-');
  const auto size = drivers::parse_size(std::string_view(text).substr(grow || shrink ? 1 : 0));
  if (!size) return usage_error(size.error().message());
  if (shrink && *size >= present.v)
    return usage_error(text + ": the disk has only " + std::to_string(present.v) + " bytes");
  if (*size > INT64_MAX - (grow ? present.v : 0)) return usage_error(text + " is too large");
  return Bytes{grow ? present.v + *size : shrink ? present.v - *size : *size};
}

Result<drivers::NodeSpec> parse_image(const std::string& spec) {
  const auto graph = drivers::parse_graph(spec);
  if (!graph) return usage_error(graph.error().message());
  if (graph->nodes.size() != 1)
    return usage_error("'" + spec + "': an image is meant, so filters have no place here");
  return graph->leaf();
}

Result<drivers::NodeSpec> parse_image_or_path(const std::string& text) {
  const std::string driver = text.substr(0, text.find_first_of(",:"));
  if (text.starts_with('{') || drivers::find_driver(driver) != nullptr) return parse_image(text);
  const drivers::ImageFormat* const format = drivers::format_by_name_of(text);
  if (format == nullptr)
    return usage_error("'" + text +
                       "': its name does not tell which format it is; say so, as in vhd:" + text);
  return drivers::NodeSpec{format->name, text, {}};
}

Result<const drivers::ImageFormat*> format_of(const drivers::NodeSpec& image) {
  const drivers::ImageFormat* const format = drivers::find_image_format(image.driver);
  if (format == nullptr) return usage_error(image.driver + " is not the format of an image file");
  return format;
}

}  // namespace vbdkit::storage
