// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/remote.h"

#include <unistd.h>

#include <cstring>

#include "storage/command.h"
#include "storage/shared_registry.h"

namespace vbdkit::storage {

std::string quoted(const std::string& word) {
  std::string out = "'";
  for (const char c : word) {
    if (c == '\'')
      out += "'\\''";
    else
      out += c;
  }
  return out + "'";
}

Result<std::string> host_named(const std::string& text) {
  if (!text.starts_with('@')) return text;
  VBDKIT_ASSIGN(auto shared, SharedRegistry::open(default_runtime_dir()));
  if (!shared) return Error(ErrorKind::kNotFound, "this host shares its registry with no others");
  VBDKIT_ASSIGN(HostInstance found, shared->find(text.substr(1)));
  return std::move(found.host);
}

int run_on_host(const std::string& host, const std::vector<std::string>& args, const Logger& log) {
  std::string command = "vbdkit";
  for (const std::string& arg : args) command += " " + quoted(arg);
  std::vector<std::string> words = {"ssh"};
  // For `top`: keys and the size of the terminal.
  if (::isatty(STDIN_FILENO) != 0 && ::isatty(STDOUT_FILENO) != 0) words.emplace_back("-t");
  words.insert(words.end(), {"--", host, command});
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  ::execvp("ssh", argv.data());
  log.error("--host %s: ssh: %s", host.c_str(), std::strerror(errno));
  return kExitFailure;
}

}  // namespace vbdkit::storage
