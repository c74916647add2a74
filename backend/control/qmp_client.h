// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A QMP client that waits for its answers: for command-line tools and tests. Every call has a
// deadline. Thread: one at a time.
#pragma once

#include <chrono>
#include <deque>
#include <string>
#include <string_view>

#include "backend/control/json.h"
#include "base/fd.h"
#include "base/result.h"

namespace vbdkit::control {

class QmpClient {
 public:
  using Clock = std::chrono::steady_clock;

  // Connects and negotiates.
  [[gnu::cold]] static Result<QmpClient> connect(const std::string& path,
                                                 Clock::duration timeout = std::chrono::seconds(5));

  // Over a connection that exists already.
  [[gnu::cold]] static Result<QmpClient> adopt(Fd socket, Clock::duration timeout);

  // `arguments`: an object's text, or empty. The value of "return", or the peer's error.
  Result<Json> execute(std::string_view command, std::string_view arguments = {},
                       Clock::duration timeout = std::chrono::seconds(30));

  // The two halves of execute(), for who has several peers to ask at once. `timeout` is each
  // half's.
  Result<void> send(std::string_view command, std::string_view arguments, Clock::duration timeout);
  Result<Json> answer(Clock::duration timeout);

  // The oldest event not yet taken.
  Result<Json> event(Clock::duration timeout);

 private:
  explicit QmpClient(Fd socket) : socket_(std::move(socket)) {}
  Result<Json> receive(Clock::time_point deadline);
  Result<Json> answer(const Result<void>& sent, Clock::time_point deadline);
  Result<void> write(std::string_view text, Clock::time_point deadline);

  Fd socket_;
  JsonFramer framer_{16 * 1024 * 1024};
  std::deque<Json> events_;
};

// What a QMP message with "error" says.
Error qmp_error(const Json& error);
// {"execute":…,"arguments":…} with its end of line.
std::string qmp_command(std::string_view command, std::string_view arguments);

}  // namespace vbdkit::control
