// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Fuzzes what a client can say before anything is done: the handshake, then request headers.
// Besides not crashing: the answer must not depend on how the bytes are cut, and a request that
// passes the check must lie inside the disk.
#include <cstdlib>
#include <span>
#include <string>

#include "backend/nbd/negotiation.h"
#include "backend/nbd/protocol.h"
#include "base/units.h"

namespace {

using vbdkit::nbd::Negotiation;
using State = Negotiation::State;

void require(bool condition) {
  if (!condition) std::abort();
}

vbdkit::nbd::Export exported() {
  vbdkit::nbd::Export e;
  e.name = "disk";
  e.description = "fuzzed";
  e.size = 1 << 20;
  e.minimum_block = 512;
  e.contexts = {"base:allocation", "x-fuzz:dirty"};
  return e;
}

struct Outcome {
  std::string out;
  State state = State::kMore;
  size_t consumed = 0;
};

// `cut`: how many bytes arrive at a time; 0: all of them.
Outcome negotiate(std::span<const uint8_t> in, size_t cut) {
  Negotiation n(exported());
  Outcome o;
  size_t have = cut == 0 ? in.size() : 0;
  while (o.state == State::kMore) {
    const auto step = n.step(in.subspan(o.consumed, have - o.consumed), o.out);
    require(step.consumed <= have - o.consumed);
    o.consumed += step.consumed;
    o.state = step.state;
    if (step.state != State::kMore || step.consumed > 0) continue;
    if (have == in.size()) break;
    have = std::min(in.size(), have + cut);
  }
  return o;
}

void judge_requests(std::span<const uint8_t> in) {
  vbdkit::nbd::RequestLimits limits;
  limits.size = 1 << 20;
  limits.alignment = 512;
  limits.can_trim = limits.structured = limits.contexts = true;
  while (in.size() >= vbdkit::nbd::kRequestSize) {
    const auto header = vbdkit::nbd::decode_request(in.first<vbdkit::nbd::kRequestSize>());
    in = in.subspan(vbdkit::nbd::kRequestSize);
    if (!header) continue;
    const auto verdict = vbdkit::nbd::check_request(*header, limits);
    const bool flush = header->command == static_cast<uint16_t>(vbdkit::nbd::Command::kFlush);
    if (verdict == vbdkit::nbd::WireError::kNone && !flush)
      require(header->length > 0 && header->offset % 512 == 0 && header->length % 512 == 0 &&
              vbdkit::range_inside(header->offset, header->length, limits.size));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const uint8_t> in(data, size);
  const Outcome whole = negotiate(in, 0);
  const Outcome cut = negotiate(in, 7);
  require(whole.state == cut.state && whole.out == cut.out && whole.consumed == cut.consumed);
  if (whole.state == State::kTransmission) judge_requests(in.subspan(whole.consumed));
  judge_requests(in);
  return 0;
}
