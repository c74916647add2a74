// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For tests: a directory of images, and one of them open as a disk whose operations block.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "drivers/node.h"
#include "drivers/registry.h"

namespace vbdkit::drivers::qcow2 {

class TestDisk {
 public:
  TestDisk();
  ~TestDisk();

  std::string path(const std::string& name) const { return directory_ + "/" + name; }
  io::Reactor& reactor() { return *reactor_; }
  const Logger& log() const { return log_; }

  // A command of the shell, in the directory; its exit status.
  int run(const std::string& command) const;
  // Makes an image with our own create, then runs `prepare` with $IMAGE set.
  void make_image(const std::string& name, std::map<std::string, std::string> options,
                  uint64_t size, const std::string& prepare);

  void open(const std::string& spec, OpenOptions options = {});
  void close() { node_.reset(); }
  Node& node() { return *node_; }

  int submit(Op op, uint64_t offset, uint64_t length, std::vector<uint8_t>* memory = nullptr,
             uint8_t flags = 0);
  std::vector<uint8_t> read(uint64_t offset, uint64_t length);
  void write(uint64_t offset, std::vector<uint8_t> data);

 private:
  Logger log_;
  std::string directory_;
  std::unique_ptr<io::Reactor> reactor_;
  NodePtr node_;
};

}  // namespace vbdkit::drivers::qcow2
