// SPDX-License-Identifier: LGPL-2.1-or-later
//
// WorldTest: a gtest fixture with a fresh World, whose logs it prints where a test failed. Override
// options() for a special World.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <type_traits>

#include "tests/sim/frontend.h"
#include "tests/sim/world.h"

namespace vbdkit::sim {

class WorldTest : public ::testing::Test {
 protected:
  // How long anything may take before a test calls it lost. Nothing waits this long that works.
  static Deadline soon() { return in(std::chrono::seconds(10)); }

  virtual World::Options options() const { return {}; }

  void SetUp() override {
    auto world = World::start(options());
    ASSERT_TRUE(world.ok()) << world.error().message();
    world_ = std::move(*world);
  }
  void TearDown() override {
    if (HasFailure() && world_ != nullptr) std::cerr << world_->logs();
    world_.reset();
  }

  World& world() { return *world_; }

 private:
  std::unique_ptr<World> world_;
};

// The value of a Result in a test. A failure ends the test (gtest catches it; TearDown still runs).
template <typename T>
T must(Result<T> result) {
  if (!result) throw std::runtime_error(result.error().message());
  if constexpr (!std::is_void_v<T>) return std::move(result).value();
}

}  // namespace vbdkit::sim
