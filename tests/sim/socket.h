// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The broker's socket and fixed-size messages with descriptors over it (layout: wire.h).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "tests/sim/wire.h"

namespace vbdkit::sim {

Result<Fd> listen_socket(const std::string& path);
Result<Fd> connect_socket(const std::string& path);

Result<void> send_request(const Fd& socket, const Request& request);
// nullopt: the peer has gone, or sent what is no request.
std::optional<Request> receive_request(const Fd& socket);

Result<void> send_reply(const Fd& socket, const Reply& reply, const std::vector<int>& fds);
struct ReplyWithFds {
  Reply reply;
  std::vector<Fd> fds;
};
Result<ReplyWithFds> receive_reply(const Fd& socket);

}  // namespace vbdkit::sim
