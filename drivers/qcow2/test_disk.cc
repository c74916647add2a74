// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/qcow2/test_disk.h"

#include <stdlib.h>
#include <sys/wait.h>

#include "drivers/qcow2/create.h"

namespace vbdkit::drivers::qcow2 {

TestDisk::TestDisk() : log_("test", LogLevel::kWarning) {
  const char* base = getenv("TMPDIR");
  directory_ = std::string(base != nullptr ? base : "/var/tmp") + "/vbdkit-qcow2-XXXXXX";
  EXPECT_NE(nullptr, mkdtemp(directory_.data()));
  auto reactor = io::Reactor::create({}, log_);
  EXPECT_TRUE(reactor.ok()) << reactor.error().message();
  reactor_ = std::move(reactor).value();
}

TestDisk::~TestDisk() {
  node_.reset();
  run("rm -rf " + directory_);
}

int TestDisk::run(const std::string& command) const {
  const int status = system(("cd " + directory_ + " && " + command).c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void TestDisk::make_image(const std::string& name, std::map<std::string, std::string> options,
                          uint64_t size, const std::string& prepare) {
  const auto parsed = parse_create_options(Bytes{size}, options);
  ASSERT_TRUE(parsed.ok()) << parsed.error().message();
  const auto created = create_image(path(name), *parsed);
  ASSERT_TRUE(created.ok()) << created.error().message();
  if (prepare.empty()) return;
  ASSERT_EQ(0, run("IMAGE=" + name + "; " + prepare)) << prepare;
}

void TestDisk::open(const std::string& spec, OpenOptions options) {
  close();
  const auto graph = parse_graph(spec);
  ASSERT_TRUE(graph.ok()) << graph.error().message();
  auto node = open_graph(*graph, {*reactor_, log_, options});
  ASSERT_TRUE(node.ok()) << node.error().message();
  node_ = std::move(node).value();
}

int TestDisk::submit(Op op, uint64_t offset, uint64_t length, std::vector<uint8_t>* memory,
                     uint8_t flags) {
  struct Io {
    Request request;  // first
    io::Reactor* reactor;
    bool running = false;
    int error = -1;
  } io{{}, reactor_.get()};
  const iovec iov{memory != nullptr ? memory->data() : nullptr, length};
  io.request.op = op;
  io.request.flags = flags;
  io.request.offset = offset;
  io.request.length = length;
  if (memory != nullptr) {
    io.request.iov = &iov;
    io.request.iov_count = 1;
  }
  io.request.done = [](Request& request, int error) {
    Io& self = reinterpret_cast<Io&>(request);
    self.error = error;
    if (self.running) self.reactor->stop();
  };
  node_->submit(io.request);
  io.running = true;
  if (io.error == -1) {
    const auto ran = reactor_->run();
    EXPECT_TRUE(ran.ok());
  }
  return io.error;
}

std::vector<uint8_t> TestDisk::read(uint64_t offset, uint64_t length) {
  std::vector<uint8_t> data(length, 0xee);
  EXPECT_EQ(0, submit(Op::kRead, offset, length, &data));
  return data;
}

void TestDisk::write(uint64_t offset, std::vector<uint8_t> data) {
  EXPECT_EQ(0, submit(Op::kWrite, offset, data.size(), &data));
}

}  // namespace vbdkit::drivers::qcow2
