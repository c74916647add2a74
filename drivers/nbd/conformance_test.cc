// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The conformance suite on exports of real servers, of which some lack what a driver would like.
#include "drivers/conformance.h"
#include "drivers/nbd/test_server.h"

namespace vbdkit::drivers::nbd {
namespace {

template <typename Server>
class ServerStorage final : public TestStorage {
 public:
  template <typename... Args>
  explicit ServerStorage(const std::string& options, Args... args)
      : server_(args...), options_(options) {
    server_.start();
  }

  Result<NodePtr> open(const OpenContext& context, const Wrap&) override {
    const std::string uri = server_.uri();
    const size_t colon = uri.find(':');
    VBDKIT_ASSIGN(const GraphSpec graph,
                  parse_graph(uri.substr(0, colon) + options_ + uri.substr(colon)));
    return open_graph(graph, context);
  }

 private:
  Server server_;
  std::string options_;
};

Subject server(std::string name, TestServer::Command command, const std::string& options = {}) {
  return {.name = std::move(name),
          .create =
              [command = std::move(command), options](uint64_t size) {
                return std::make_unique<ServerStorage<TestServer>>(options, command, size);
              },
          .resizable = false};
}

Subject on_epoll(Subject subject) {
  subject.name += "OnEpoll";
  subject.engine = io::EngineKind::kSync;
  return subject;
}

std::vector<Subject> subjects() {
  return {
      server("Nbdkit", TestServer::nbdkit()),
      on_epoll(server("Nbdkit", TestServer::nbdkit())),
      server("NbdkitWithLittleReplayMemory", TestServer::nbdkit(), ",replay-memory=64K"),
      server("NbdkitWithoutReplays", TestServer::nbdkit(), ",replay-memory=0"),
      server("NbdkitWithoutFua", TestServer::nbdkit({"fua"})),
      server("NbdkitWithoutZeroing", TestServer::nbdkit({"nozero"}, {"zeromode=none"})),
      server("NbdkitWithoutStructuredReplies",
             {"nbdkit", "--foreground", "--no-sr", "--unix", "{socket}", "--pidfile", "{pid}",
              "file", "file={file}"}),
      server("NbdkitOfLargeBlocks",
             TestServer::nbdkit({"blocksize-policy"},
                                {"blocksize-minimum=4K", "blocksize-error-policy=error"})),
      server("QemuNbd", TestServer::qemu_nbd()),
      {.name = "OverTcp",
       .create =
           [](uint64_t size) {
             return std::make_unique<ServerStorage<TcpServer>>(std::string(), size);
           },
       .resizable = false},
  };
}

INSTANTIATE_TEST_SUITE_P(Nbd, NodeConformance, testing::ValuesIn(subjects()), subject_name);

}  // namespace
}  // namespace vbdkit::drivers::nbd
