// SPDX-License-Identifier: LGPL-2.1-or-later
//
// CommandLine: the options of a program that has no room for a library of them: the daemon and the
// instances. All are long ones (getopt_long(3)). --help and --version are always there.
// An option's target must outlive parse(). Any thread, one at a time.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/log.h"
#include "base/result.h"

namespace vbdkit {

class CommandLine {
 public:
  // `usage` is what --help prints.
  CommandLine(std::string program, const char* usage);

  CommandLine& flag(const char* name, bool& target, bool value = true);
  CommandLine& text(const char* name, std::string& target);
  CommandLine& texts(const char* name, std::vector<std::string>& target);  // may be repeated
  CommandLine& number(const char* name, unsigned& target, unsigned least, unsigned most);
  CommandLine& log_level(const char* name, LogLevel& target);
  CommandLine& parsed(const char* name, std::function<Result<void>(const char* value)> take);

  struct Rest {
    bool answered = false;  // --help or --version: there is nothing else to do
    std::vector<std::string> arguments;
  };
  // Errors are of kind kInvalid and name the option.
  [[gnu::cold]] Result<Rest> parse(int argc, char** argv) const;

 private:
  struct Option {
    const char* name;
    bool has_value;
    std::function<Result<void>(const char* value)> take;
  };
  Error invalid(const std::string& what) const;

  std::string program_;
  const char* usage_;
  std::vector<Option> options_;
};

// For programs that take none, or no more.
Error unexpected_argument(const std::string& argument);

}  // namespace vbdkit
