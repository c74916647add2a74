// SPDX-License-Identifier: LGPL-2.1-or-later
//
// GatedReactor: a reactor whose file operations pass a gate. Once in each turn that has any, the
// gate is asked, right before they are handed on; while it is closed they wait, in their order,
// and so does whoever has issued them. What the kernel has already is not called back. Without a
// gate, and for everything but file operations, it is the reactor beneath.
//
// For an instance whose right to touch its images ends at a point in time: however long the process
// was stopped, it looks at the clock before it goes on. So few operations are with the engine at
// one time that they are with the kernel, not in a queue of the engine's own.
//
// Thread: the reactor's, but for post() and stop(). Ownership: it and the gate belong to whoever
// made them; the reactor beneath outlives it; no operation may be held or in flight at its end.
// Cost: nothing without a gate; with one a copy of each operation, and no allocation once its pool
// has grown to the load.
#pragma once

#include <memory>
#include <vector>

#include "io/file_engine.h"
#include "io/reactor.h"

namespace vbdkit::io {

class FileGate {
 public:
  enum class State {
    kOpen,
    kClosed,  // they wait
    kFailed,  // for good: they end with EIO
  };
  virtual ~FileGate() = default;
  virtual State state() = 0;
  // Operations wait: was open, as far as they know.
  virtual void holding() = 0;
};

class GatedReactor final : public Reactor {
 public:
  explicit GatedReactor(Reactor& inner);
  ~GatedReactor() override;

  // nullptr: none. It outlives this, or is taken away first.
  void set_gate(FileGate* gate);
  // The gate's state has changed.
  void look_again();

  size_t held() const { return held_.size(); }
  size_t in_flight() const { return in_flight_; }  // with the kernel; only counted with a gate

  Result<void> run() override { return inner_.run(); }
  void submit(FileOp& op) override;
  void submit(SocketOp& op) override { inner_.submit(op); }
  void defer(Deferred& d) override { inner_.defer(d); }
  std::unique_ptr<FdWatch> watch(int fd, std::function<void()> readable) override {
    return inner_.watch(fd, std::move(readable));
  }
  std::unique_ptr<Timer> timer(std::function<void()> expired) override {
    return inner_.timer(std::move(expired));
  }
  void post(std::function<void()> task) override { inner_.post(std::move(task)); }
  void stop() override { inner_.stop(); }
  const char* engine_name() const override { return inner_.engine_name(); }
  const ReactorCounters& counters() const override { return inner_.counters(); }

 private:
  struct Passed : FileOp {  // what the engine gets in an operation's place
    GatedReactor* owner = nullptr;
    FileOp* origin = nullptr;
    Passed* next_free = nullptr;
  };
  struct Pump : Deferred {
    GatedReactor* owner = nullptr;
  };

  void pump();
  void pass(FileOp& op);
  void ended(Passed& passed, int64_t result);

  Reactor& inner_;
  FileGate* gate_ = nullptr;
  const size_t most_in_flight_;
  FileOpQueue held_;
  size_t in_flight_ = 0;
  Pump pump_;
  std::vector<std::unique_ptr<Passed>> pool_;
  Passed* free_ = nullptr;
};

}  // namespace vbdkit::io
