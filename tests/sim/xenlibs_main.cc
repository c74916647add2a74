// SPDX-License-Identifier: LGPL-2.1-or-later
//
// main() of tests that call Xen's libraries themselves: they name only the ordinary sonames, and
// are started anew with LD_LIBRARY_PATH to get the replacements.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <string>

#include "tests/sim/world.h"

int main(int argc, char** argv) {
  const std::string libraries = vbdkit::sim::build_dir() + "/xenlibs";
  const char* now = std::getenv("LD_LIBRARY_PATH");
  if (now == nullptr || !std::string(now).starts_with(libraries)) {
    ::setenv("LD_LIBRARY_PATH",
             now == nullptr ? libraries.c_str() : (libraries + ":" + now).c_str(), 1);
    ::execv("/proc/self/exe", argv);
    std::cerr << "cannot start again with " << libraries << "\n";
    return 1;
  }
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
