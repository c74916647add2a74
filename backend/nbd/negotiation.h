// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The handshake of one NBD client, fixed newstyle only (proto.md "Newstyle negotiation", "Option
// types"). Bytes in, bytes out: no I/O, so that it is tested and fuzzed as it stands. The
// connection feeds it and bounds how long it may last.
//
// Limits: one option carries at most kMaxOptionData bytes; a longer one is answered with
// NBD_REP_ERR_TOO_BIG and ends the session (QEMU's CVE-2017-15119 was reading it all).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/nbd/protocol.h"

namespace vbdkit::nbd {

// The one export of a server, as it stands when a client asks.
struct Export {
  std::string name;
  std::string description;
  uint64_t size = 0;                // bytes; a multiple of minimum_block
  uint32_t minimum_block = 1;       // bytes
  uint32_t preferred_block = 4096;  // bytes
  uint16_t flags = kHasFlags;  // transmission flags but for kSendDf, which depends on the client
  std::vector<std::string> contexts;  // metadata contexts; the index is the context id less one
};

inline constexpr size_t kMaxOptionData = 32 << 10;

class Negotiation {
 public:
  enum class State {
    kMore,          // goes on with the next message
    kTransmission,  // agreed: what follows in the input are requests
    kAborted,       // the client ended it properly, or may not go on: send the output, then close
    kBroken,        // the client broke the protocol; why() says how: close
  };
  struct Step {
    size_t consumed = 0;  // bytes of the input; 0 with kMore: the message is not complete yet
    State state = State::kMore;
  };

  explicit Negotiation(Export exported) : export_(std::move(exported)) {}

  // What the server says first.
  void greet(std::string& out);
  // Takes one message from the front of `in`, appends the answer to `out`.
  Step step(std::span<const uint8_t> in, std::string& out);

  const char* why() const { return why_; }
  bool structured() const { return structured_; }
  // Ids of the selected metadata contexts; each is an index into Export::contexts plus one.
  const std::vector<uint32_t>& contexts() const { return selected_; }
  const std::string& context_name(uint32_t id) const { return export_.contexts[id - 1]; }

 private:
  Step take_client_flags(std::span<const uint8_t> in);
  Step take_option(std::span<const uint8_t> in, std::string& out);
  State handle(Option option, std::span<const uint8_t> data, std::string& out);
  State enter_by_name(std::string_view name, std::string& out);
  State inform(Option option, std::span<const uint8_t> data, std::string& out);
  void list(std::span<const uint8_t> data, std::string& out);
  void meta_context(Option option, std::span<const uint8_t> data, std::string& out);
  Step broken(const char* why) {
    why_ = why;
    return {0, State::kBroken};
  }

  bool is_export(std::string_view name) const { return name.empty() || name == export_.name; }
  uint16_t transmission_flags() const {
    return static_cast<uint16_t>(export_.flags | (structured_ ? kSendDf : 0));
  }

  Export export_;
  bool have_flags_ = false;
  bool no_zeroes_ = false;
  bool structured_ = false;
  std::vector<uint32_t> selected_;
  const char* why_ = "";
};

}  // namespace vbdkit::nbd
