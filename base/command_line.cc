// SPDX-License-Identifier: LGPL-2.1-or-later
#include "base/command_line.h"

#include <getopt.h>

#include <charconv>
#include <cstdio>
#include <cstring>
#include <utility>

#include "config.h"

namespace vbdkit {

CommandLine::CommandLine(std::string program, const char* usage)
    : program_(std::move(program)), usage_(usage) {}

CommandLine& CommandLine::flag(const char* name, bool& target, bool value) {
  options_.push_back({name, false, [&target, value](const char*) -> Result<void> {
                        target = value;
                        return {};
                      }});
  return *this;
}

CommandLine& CommandLine::text(const char* name, std::string& target) {
  return parsed(name, [&target](const char* value) -> Result<void> {
    target = value;
    return {};
  });
}

CommandLine& CommandLine::texts(const char* name, std::vector<std::string>& target) {
  return parsed(name, [&target](const char* value) -> Result<void> {
    target.emplace_back(value);
    return {};
  });
}

CommandLine& CommandLine::number(const char* name, unsigned& target, unsigned least,
                                 unsigned most) {
  return parsed(name, [name, &target, least, most](const char* value) -> Result<void> {
    const char* const end = value + strlen(value);
    unsigned number = 0;
    const auto [stop, error] = std::from_chars(value, end, number);
    if (error != std::errc() || stop != end || number < least || number > most)
      return Error(ErrorKind::kInvalid, std::string("--") + name + " takes a number from " +
                                            std::to_string(least) + " to " + std::to_string(most) +
                                            ", not '" + value + "'");
    target = number;
    return {};
  });
}

CommandLine& CommandLine::log_level(const char* name, LogLevel& target) {
  return parsed(name, [&target](const char* value) -> Result<void> {
    VBDKIT_ASSIGN(target, parse_log_level(value));
    return {};
  });
}

CommandLine& CommandLine::parsed(const char* name,
                                 std::function<Result<void>(const char* value)> take) {
  options_.push_back({name, true, std::move(take)});
  return *this;
}

Error CommandLine::invalid(const std::string& what) const {
  return Error(ErrorKind::kInvalid, what + "; see " + program_ + " --help");
}

Result<CommandLine::Rest> CommandLine::parse(int argc, char** argv) const {
  // getopt's values: an option's index, from one past what it uses itself ('?', ':').
  constexpr int kFirst = 256, kVersion = 1, kHelp = 2;
  std::vector<option> known = {{"version", 0, nullptr, kVersion}, {"help", 0, nullptr, kHelp}};
  for (size_t i = 0; i < options_.size(); ++i)
    known.push_back(
        {options_[i].name, options_[i].has_value ? 1 : 0, nullptr, kFirst + static_cast<int>(i)});
  known.push_back({nullptr, 0, nullptr, 0});

  Rest rest;
  ::optind = 0;  // from the start, also where this is not the first call
  ::opterr = 0;
  for (int c; (c = ::getopt_long(argc, argv, ":", known.data(), nullptr)) != -1;) {
    if (c == kHelp || c == kVersion) {
      std::fputs(c == kHelp ? usage_ : (program_ + " " VERSION "\n").c_str(), stdout);
      rest.answered = true;
      return rest;
    }
    // Where getopt stands tells which word it could not take, if that was not a letter of several.
    if (c == ':') return invalid(std::string(argv[::optind - 1]) + " takes a value");
    if (c < kFirst) return invalid(std::string("unknown option '") + argv[::optind - 1] + "'");
    VBDKIT_TRY(options_[static_cast<size_t>(c - kFirst)].take(::optarg));
  }
  rest.arguments.assign(argv + ::optind, argv + argc);
  return rest;
}

Error unexpected_argument(const std::string& argument) {
  return Error(ErrorKind::kInvalid, "unexpected argument '" + argument + "'");
}

}  // namespace vbdkit
