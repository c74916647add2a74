// SPDX-License-Identifier: LGPL-2.1-or-later
//
// InstanceProcess: one vbdkit-backend as the daemon sees it: started by us, or found running after
// our own restart. It outlives the daemon on purpose: destroying this object leaves the process
// alone.
//
// Thread: the reactor's. Callbacks run from the loop; `ended` may destroy the object.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>

#include "backend/control/qmp_link.h"
#include "backend/launch.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/result.h"
#include "io/reactor.h"
#include "storage/registry.h"

namespace vbdkit::hotplug {

class InstanceProcess {
 public:
  struct Callbacks {
    // Attached VBDs that have gone by themselves: detached by the toolstack.
    std::function<void(const std::string& backend)> vbd_gone;
    // Whether the daemon is to end it with its last disk; told when that changes.
    std::function<void(bool managed)> lifetime;
    // Called once: the process is no more and its runtime directory is removed. `reason` reads as
    // the end of a sentence about why there is no instance.
    std::function<void(const std::string& reason)> ended;
  };
  using Answer = control::QmpLink::Answer;

  static Result<std::unique_ptr<InstanceProcess>> launch(io::Reactor& reactor, const Logger& log,
                                                         const LaunchOptions& launch,
                                                         Callbacks callbacks);

  // One that runs already, as its record has it. It is asked as well, but not waited for: an
  // instance that hangs must not stop the daemon. What has changed since the record was written
  // comes through the callbacks.
  static Result<std::unique_ptr<InstanceProcess>> adopt(io::Reactor& reactor, const Logger& log,
                                                        const storage::InstanceRecord& record,
                                                        Callbacks callbacks);

  void attach(const std::string& backend, Answer answer);
  void detach(const std::string& backend, Answer answer);
  // Asks it to finish; insists where it does not.
  void quit();

  bool quitting() const { return quit_timer_ != nullptr || shutting_down_; }
  const std::string& uuid() const { return uuid_; }
  const std::string& spec() const { return spec_; }
  bool read_only() const { return read_only_; }
  pid_t pid() const { return pid_; }
  std::string nbd_socket() const { return dir_ + "/nbd.sock"; }
  std::string qmp_socket() const { return dir_ + "/qmp.sock"; }

 private:
  InstanceProcess(io::Reactor& reactor, const Logger& log, Callbacks callbacks)
      : reactor_(reactor), log_(log), callbacks_(std::move(callbacks)) {}
  Result<void> connect(Fd socket);
  Result<void> watch_process();
  void compare(const storage::InstanceRecord& record, const control::Json& now);
  void on_exit();
  void on_link_closed();
  void finish();
  void insist();

  io::Reactor& reactor_;
  const Logger& log_;
  Callbacks callbacks_;
  std::string uuid_, dir_, spec_;
  bool read_only_ = false;
  pid_t pid_ = -1;
  Fd pidfd_;
  std::unique_ptr<io::FdWatch> exit_watch_;
  std::unique_ptr<control::QmpLink> link_;
  std::unique_ptr<io::Timer> quit_timer_;
  bool shutting_down_ = false;  // it said so, whoever asked it to
  bool exited_ = false;
  bool link_closed_ = false;
  std::string failure_;  // what the instance itself said
  std::string status_;   // how the process ended
};

}  // namespace vbdkit::hotplug
