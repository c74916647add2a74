// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The conformance suite: what drivers/node.h promises, tried on every driver and filter against a
// plain model in memory. A test program lists conformance.cc among its sources and instantiates the
// suite with its subjects:
//
//     INSTANTIATE_TEST_SUITE_P(Vhd, NodeConformance, testing::ValuesIn(subjects()), subject_name);
//
// Operations are random; a failure prints the seed, and VBDKIT_TEST_SEED=N repeats them.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "drivers/node.h"
#include "drivers/registry.h"

namespace vbdkit::drivers {

// One image (or what stands for one) that reads as zeroes, for as long as this lives.
class TestStorage {
 public:
  // Puts something between the node under test and the storage beneath it.
  using Wrap = std::function<NodePtr(NodePtr)>;

  virtual ~TestStorage() = default;
  // Why it cannot be used on this machine; empty where it can.
  virtual std::string missing() const { return {}; }
  // Leaves have nothing beneath them and do not call `wrap`.
  virtual Result<NodePtr> open(const OpenContext& context, const Wrap& wrap) = 0;
};

struct Subject {
  std::string name;  // letters and digits
  // New storage of that size, a multiple of 1 MiB.
  std::function<std::unique_ptr<TestStorage>(uint64_t size)> create;
  bool keeps_data = true;  // what was written can be read (all but null)
  bool persistent = true;  // another open finds the data
  bool resizable = true;
  bool registered = true;  // spec() opens again through the registry
  // The reactor to run on; none: what Reactor::create() makes of `engine`.
  std::function<std::unique_ptr<io::Reactor>(uint64_t seed)> reactor = nullptr;
  io::EngineKind engine = io::EngineKind::kAuto;
};

inline void PrintTo(const Subject& subject, std::ostream* out) { *out << subject.name; }

inline std::string subject_name(const testing::TestParamInfo<Subject>& info) {
  return info.param.name;
}

// Storage for a subject that is described by a spec. `make_spec` gets the path of a new sparse file
// of the size; it may ignore both. The file is made in `directory`, or where TMPDIR says.
std::function<std::unique_ptr<TestStorage>(uint64_t)> storage_by_spec(
    std::function<std::string(const std::string& path, uint64_t size)> make_spec,
    std::string directory = {});

// One request with its memory.
struct TestIo {
  Request request;  // first: `done` gets the rest from it
  std::vector<iovec> iov;
  std::vector<uint8_t> memory;  // holds the pieces, apart from each other
  int error = -1;               // -1: not done
  class NodeConformance* test = nullptr;
};

class NodeConformance : public testing::TestWithParam<Subject> {
 protected:
  static constexpr uint64_t kSize = 8 << 20;  // bytes

  NodeConformance();
  void SetUp() override;

  void open(OpenOptions options = {});
  void open_wrapped(const TestStorage::Wrap& wrap);
  void close() { node_.reset(); }

  // An operation on the present node; ranges are in units of its request_alignment.
  TestIo& add(Op op, uint64_t offset, uint64_t length, uint8_t flags = 0);
  // Submits what was added, waits for all of it, and leaves it in done_.
  void run();
  // Likewise; calls `meanwhile` while they are in flight.
  void run_with(const std::function<void()>& meanwhile);
  // One operation, by itself; its errno.
  int run_one(Op op, uint64_t offset, uint64_t length, uint8_t flags = 0);

  // What the storage must hold after an operation that succeeded; checks what a read returned.
  void apply(const TestIo& io);
  void apply_all();
  // Reads everything and compares.
  void expect_model();
  std::vector<uint8_t> read(uint64_t offset, uint64_t length);
  // The extents of a range, checked for form and against the model.
  void expect_status(uint64_t offset, uint64_t length, size_t max_extents);

  uint64_t random(uint64_t below) { return rng_() % below; }
  uint64_t unit() const { return node_->info().request_alignment; }
  // An aligned range inside [from, to), not empty, seldom longer than `typical`.
  std::pair<uint64_t, uint64_t> random_range(uint64_t from, uint64_t to, uint64_t typical);
  Op random_op();
  uint8_t random_flags(Op op);

  const uint64_t seed_;
  testing::ScopedTrace trace_;
  std::mt19937_64 rng_;
  Logger log_;
  std::unique_ptr<io::Reactor> reactor_;
  std::unique_ptr<TestStorage> storage_;
  NodePtr node_;
  std::vector<uint8_t> model_;
  std::deque<TestIo> ios_;   // added, or in flight
  std::deque<TestIo> done_;  // of the last run()

 private:
  static void completed(Request& request, int error);
  void wait();
  void split(TestIo& io);
  void fill(std::vector<uint8_t>& memory);

  size_t pending_ = 0;
  bool running_ = false;
};

}  // namespace vbdkit::drivers
