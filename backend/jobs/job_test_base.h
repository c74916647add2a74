// SPDX-License-Identifier: LGPL-2.1-or-later
//
// For tests of jobs: a disk of real files with its graph, jobs and control socket on a thread of
// its own, a guest that writes and verifies all the time, and a QMP client.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "backend/control/qmp_client.h"
#include "backend/control/qmp_server.h"
#include "backend/jobs/job_table.h"
#include "backend/jobs/start_commands.h"
#include "backend/live_graph.h"
#include "drivers/image_format.h"
#include "drivers/registry.h"

namespace vbdkit::jobs {

// Writes, zeroes, reads and flushes at random, several at a time, each slot in a part of the disk
// of its own; knows what the disk must read as. The reactor's thread.
class VerifyingGuest {
 public:
  VerifyingGuest(RequestSink& sink, uint64_t size, uint64_t seed)
      : sink_(sink), model_(size), random_(seed) {
    for (size_t i = 0; i < slots_.size(); ++i) {
      slots_[i].guest = this;
      slots_[i].start = size / slots_.size() * i;
      slots_[i].memory.resize(kMost);
    }
  }

  std::vector<uint8_t>& model() { return model_; }
  void go() {
    for (Slot& slot : slots_) next(slot);
  }
  // `idle` is called when nothing is in flight.
  void stop(std::function<void()> idle) {
    idle_ = std::move(idle);
    if (in_flight_ == 0) idle_();
  }
  uint64_t requests() const { return requests_; }
  uint64_t errors() const { return errors_; }
  uint64_t mismatches() const { return mismatches_; }

 private:
  static constexpr uint64_t kMost = 96 * 1024;  // bytes of one request
  struct Slot : drivers::Request {
    VerifyingGuest* guest = nullptr;
    uint64_t start = 0;
    std::vector<uint8_t> memory;
    iovec vector{};
  };

  void next(Slot& slot) {
    using drivers::Op;
    if (idle_) {
      if (in_flight_ == 0) idle_();
      return;
    }
    const uint64_t part = model_.size() / slots_.size();
    const uint64_t length = kSectorSize * (1 + random_() % (kMost / kSectorSize));
    const uint64_t offset = slot.start + align_down(random_() % (part - length), kSectorSize);
    constexpr Op kOps[] = {Op::kWrite, Op::kWrite,       Op::kWrite, Op::kRead,
                           Op::kRead,  Op::kWriteZeroes, Op::kFlush, Op::kDiscard};
    slot.op = kOps[random_() % std::size(kOps)];
    slot.flags = slot.op == Op::kWriteZeroes ? drivers::kMayUnmap : uint8_t{0};
    slot.offset = slot.op == Op::kFlush ? 0 : offset;
    slot.length = slot.op == Op::kFlush ? 0 : length;
    slot.vector = {slot.memory.data(), length};
    const bool data = slot.op == Op::kRead || slot.op == Op::kWrite;
    slot.iov = data ? &slot.vector : nullptr;
    slot.iov_count = data ? 1 : 0;
    if (slot.op == Op::kWrite) {
      uint64_t word = random_();
      for (uint64_t i = 0; i < length; i += sizeof word, ++word)
        memcpy(slot.memory.data() + i, &word, sizeof word);
    }
    slot.done = [](drivers::Request& request, int error) {
      auto& self = static_cast<Slot&>(request);
      self.guest->completed(self, error);
    };
    ++in_flight_;
    ++requests_;
    sink_.submit(slot);
  }

  void completed(Slot& slot, int error) {
    using drivers::Op;
    --in_flight_;
    const bool refused = slot.op == Op::kDiscard && error == EOPNOTSUPP;
    if (error != 0 && !refused) ++errors_;
    const auto at = model_.begin() + static_cast<ptrdiff_t>(slot.offset);
    const auto end = slot.memory.begin() + static_cast<ptrdiff_t>(slot.length);
    if (slot.op == Op::kWrite)
      std::copy(slot.memory.begin(), end, at);
    else if (slot.op == Op::kWriteZeroes)
      std::fill_n(at, slot.length, uint8_t{0});
    else if (slot.op == Op::kRead && !std::equal(slot.memory.begin(), end, at))
      ++mismatches_;
    if (slot.op == Op::kDiscard && !refused) {
      // Old or zero: it is made certain.
      slot.op = Op::kWriteZeroes;
      ++in_flight_;
      sink_.submit(slot);
      return;
    }
    next(slot);
  }

  RequestSink& sink_;
  std::vector<uint8_t> model_;
  std::mt19937_64 random_;
  std::array<Slot, 8> slots_;
  std::function<void()> idle_;
  unsigned in_flight_ = 0;
  uint64_t requests_ = 0;
  uint64_t errors_ = 0;
  uint64_t mismatches_ = 0;
};

class JobTest : public testing::Test {
 protected:
  static constexpr uint64_t kSize = 24 << 20;

  void SetUp() override {
    std::string name = std::filesystem::temp_directory_path() / "vbdkit-jobs-XXXXXX";
    ASSERT_NE(nullptr, ::mkdtemp(name.data()));
    dir_ = name;
  }
  void TearDown() override {
    close();
    std::filesystem::remove_all(dir_);
  }

  std::string path(const std::string& name) const { return dir_ / name; }
  void create(const std::string& format, const std::string& name, const std::string& parent = {}) {
    drivers::CreateRequest request;
    request.path = path(name);
    if (parent.empty())
      request.size = Bytes{kSize};
    else
      request.parent = path(parent), request.parent_format = format;
    const auto made = drivers::find_image_format(format)->create(request);
    ASSERT_TRUE(made) << made.error().message();
  }

  // Opens the disk; `before` sees the graph first.
  void open(const std::string& spec, const std::function<void(LiveGraph&)>& before = {}) {
    reactor_ = std::move(io::Reactor::create({}, log_)).value();
    commands_ = {};
    auto node = open_node(spec);
    ASSERT_NE(nullptr, node);
    graph_ = std::make_unique<LiveGraph>(*reactor_, std::move(node));
    if (before) before(*graph_);
    jobs_ = std::make_unique<JobTable>(JobContext{
        *reactor_, log_, *graph_,
        [this](std::string_view event, std::string_view data) { server_->event(event, data); }});
    jobs_->add_commands(commands_);
    add_start_commands(commands_, *jobs_);
    add_more_commands();
    server_ = std::move(*control::QmpServer::create(
        *reactor_, log_, commands_, {.path = path("qmp.sock"), .version = "1.0.0"}));
    thread_ = std::thread([this] { EXPECT_TRUE(reactor_->run()); });
    client_.emplace(std::move(*control::QmpClient::connect(path("qmp.sock"))));
  }
  virtual void add_more_commands() {}

  drivers::NodePtr open_node(const std::string& spec) {
    const auto graph = drivers::parse_graph(spec);
    if (!graph) {
      ADD_FAILURE() << graph.error().message();
      return nullptr;
    }
    auto node = drivers::open_graph(*graph, {*reactor_, log_, {}});
    if (!node) {
      ADD_FAILURE() << node.error().message();
      return nullptr;
    }
    return std::move(*node);
  }

  // Runs it on the disk's thread and waits.
  void on_disk(const std::function<void()>& work) {
    std::promise<void> done;
    reactor_->post([&] {
      work();
      done.set_value();
    });
    done.get_future().wait();
  }

  // The content to begin with, and then the load.
  void start_guest(uint64_t seed) {
    guest_ = std::make_unique<VerifyingGuest>(graph_->scheduler(), kSize, seed);
    guest_->model() = read_all();
    on_disk([this] { guest_->go(); });
  }
  // A while of load, measured in requests.
  void let_guest_write(uint64_t requests) {
    uint64_t target = 0;
    on_disk([&] { target = guest_->requests() + requests; });
    for (uint64_t now = 0; now < target;) on_disk([&] { now = guest_->requests(); });
  }
  void stop_guest() {
    std::promise<void> idle;
    reactor_->post([&] { guest_->stop([&] { idle.set_value(); }); });
    idle.get_future().wait();
    EXPECT_EQ(0u, guest_->errors());
    EXPECT_EQ(0u, guest_->mismatches()) << "the guest read something else than it wrote";
    EXPECT_TRUE(read_all() == guest_->model());
  }

  std::vector<uint8_t> read_all() {
    std::vector<uint8_t> all(kSize);
    for (uint64_t at = 0; at < kSize; at += 1 << 20)
      request(drivers::Op::kRead, at, 1 << 20, all.data() + at);
    return all;
  }
  void fill(uint64_t offset, uint64_t length, uint8_t with) {
    std::vector<uint8_t> data(length, with);
    request(drivers::Op::kWrite, offset, length, data.data());
  }
  void request(drivers::Op op, uint64_t offset, uint64_t length, uint8_t* memory) {
    struct Waiting : drivers::Request {
      std::promise<int> answer;
    } waiting;
    iovec vector{memory, length};
    waiting.op = op;
    waiting.offset = offset;
    waiting.length = length;
    waiting.iov = memory == nullptr ? nullptr : &vector;
    waiting.iov_count = memory == nullptr ? 0 : 1;
    waiting.done = [](drivers::Request& r, int error) {
      static_cast<Waiting&>(r).answer.set_value(error);
    };
    reactor_->post([&] { graph_->scheduler().submit(waiting); });
    EXPECT_EQ(0, waiting.answer.get_future().get());
  }

  std::string graph_spec() {
    std::string spec;
    on_disk([&] { spec = graph_->top().spec(); });
    return spec;
  }

  control::Json command(const std::string& name, const std::string& arguments = {}) {
    auto answer = client_->execute(name, arguments);
    EXPECT_TRUE(answer) << name << ": " << (answer ? "" : answer.error().message());
    return answer ? *answer : control::Json();
  }
  std::string refusal(const std::string& name, const std::string& arguments) {
    const auto answer = client_->execute(name, arguments);
    EXPECT_FALSE(answer) << name;
    return answer ? "" : answer.error().message();
  }
  // Waits for that event, and notes the statuses seen on the way.
  control::Json event(const std::string& name) {
    for (;;) {
      const auto next = client_->event(std::chrono::minutes(2));
      if (!next) {
        ADD_FAILURE() << "no event " << name << ": " << next.error().message();
        return {};
      }
      const std::string got = next->member("event").string().value_or("");
      if (got == "JOB_STATUS_CHANGE")
        statuses_ += next->member("data").member("status").string().value_or("?") + " ";
      if (got == name) return next->member("data");
    }
  }

  // Ends as an instance does.
  void close() {
    if (!thread_.joinable()) return;
    std::promise<void> closed;
    reactor_->post([&] { jobs_->shutdown([&] { graph_->close([&] { closed.set_value(); }); }); });
    closed.get_future().wait();
    if (graph_ != nullptr) request(drivers::Op::kFlush, 0, 0, nullptr);
    client_.reset();
    reactor_->stop();
    thread_.join();
    server_.reset();
    jobs_.reset();
    graph_.reset();
    reactor_.reset();
  }

  // What another process reads in the image.
  std::vector<uint8_t> image_content(const std::string& format, const std::string& name) {
    const std::string raw = path("out.raw");
    shell("qemu-img convert -f " + qemu_name(format) + " -O raw " + path(name) + " " + raw);
    std::vector<uint8_t> bytes(kSize);
    std::ifstream(raw, std::ios::binary)
        .read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(kSize));
    return bytes;
  }
  void check(const std::string& format, const std::string& name) {
    const auto* known = drivers::find_image_format(format);
    if (known->check == nullptr) return;
    const auto outcome = known->check(path(name), false);
    ASSERT_TRUE(outcome) << outcome.error().message();
    EXPECT_EQ(0u, outcome->errors) << (outcome->messages.empty() ? "" : outcome->messages[0]);
    if (format == "qcow2") shell("qemu-img check -q -f qcow2 " + path(name));
  }
  static std::string qemu_name(const std::string& format) {
    return format == "vhd" ? "vpc" : format;
  }
  static void shell(const std::string& line) {
    // NOLINTNEXTLINE(cert-env33-c)
    EXPECT_EQ(0, ::system(line.c_str())) << line;
  }

  Logger log_{"test", LogLevel::kWarning};
  std::filesystem::path dir_;
  std::unique_ptr<io::Reactor> reactor_;
  std::unique_ptr<LiveGraph> graph_;
  std::unique_ptr<JobTable> jobs_;
  control::CommandTable commands_;
  std::unique_ptr<control::QmpServer> server_;
  std::thread thread_;
  std::optional<control::QmpClient> client_;
  std::unique_ptr<VerifyingGuest> guest_;
  std::string statuses_;
};

}  // namespace vbdkit::jobs
