// SPDX-License-Identifier: LGPL-2.1-or-later
#include "tests/sim/store.h"

namespace vbdkit::sim {

std::string Store::read_or(const std::string& path, std::string otherwise) {
  auto value = read(path);
  return value ? std::move(*value) : std::move(otherwise);
}

Result<std::string> Store::wait_for(const std::string& path,
                                    const std::function<bool(const std::string&)>& done,
                                    Deadline deadline) {
  const std::string token = "wait-" + std::to_string(next_wait_token_++);
  VBDKIT_TRY(watch(path, token));
  std::string value;
  Result<void> outcome;
  for (;;) {
    value = read_or(path);
    if (done(value)) break;
    auto event = next_event(deadline);
    if (event) continue;
    outcome = Error(event.error().kind(), "store: wait for " + path + " (now \"" + value +
                                              "\"): " + event.error().message());
    break;
  }
  VBDKIT_TRY(unwatch(path, token));
  VBDKIT_TRY(outcome);
  return value;
}

Result<void> Store::wait_gone(const std::string& path, Deadline deadline) {
  auto waited = wait_for(
      path,
      [&](const std::string&) {
        auto value = read(path);
        return !value && value.error().kind() == ErrorKind::kNotFound;
      },
      deadline);
  if (!waited) return std::move(waited).error();
  return {};
}

}  // namespace vbdkit::sim
