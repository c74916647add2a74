// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For tests of VHDs: a node opened by its spec, with calls that wait for their request.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "drivers/registry.h"
#include "io/reactor.h"

namespace vbdkit::drivers::vhd {

class TestDisk {
 public:
  TestDisk()
      : log_("test", LogLevel::kWarning),
        reactor_(std::move(io::Reactor::create({}, log_)).value()) {}

  Result<void> open(const std::string& spec, bool read_only = false) {
    node_.reset();
    VBDKIT_ASSIGN(const GraphSpec graph, parse_graph(spec));
    const OpenContext context{*reactor_, log_, {read_only, false}};
    VBDKIT_ASSIGN(node_, open_graph(graph, context));
    return {};
  }
  void close() { node_.reset(); }
  Node& node() { return *node_; }
  const io::ReactorCounters& counters() const { return reactor_->counters(); }

  int run(Op op, uint64_t offset, uint64_t length, std::byte* memory) {
    struct Waiting {
      Request request;
      io::Reactor* reactor;
      int error = 0;
    } waiting{{}, reactor_.get()};
    iovec iov{memory, length};
    Request& request = waiting.request;
    request.op = op;
    request.offset = offset;
    request.length = length;
    request.iov = &iov;
    request.iov_count = memory == nullptr ? 0 : 1;
    request.done = [](Request& r, int error) {
      auto& w = *reinterpret_cast<Waiting*>(&r);
      w.error = error;
      w.reactor->stop();
    };
    node_->submit(request);
    EXPECT_TRUE(reactor_->run().ok());
    return waiting.error;
  }
  void write(uint64_t offset, std::vector<std::byte> bytes) {
    EXPECT_EQ(0, run(Op::kWrite, offset, bytes.size(), bytes.data()));
  }
  void flush() { EXPECT_EQ(0, run(Op::kFlush, 0, 0, nullptr)); }
  std::vector<std::byte> read(uint64_t offset, uint64_t length) {
    std::vector<std::byte> bytes(length);
    EXPECT_EQ(0, run(Op::kRead, offset, length, bytes.data()));
    return bytes;
  }

 private:
  Logger log_;
  std::unique_ptr<io::Reactor> reactor_;
  NodePtr node_;
};

}  // namespace vbdkit::drivers::vhd
