// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A whole simulated Xen host in a private temporary directory: broker, Debian's xenstored, a
// toolstack, guests, and the programs under test. Everything is event-driven; what the World
// started ends with it. One thread. WorldTest is the gtest fixture: it prints the logs of a failed
// test.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "tests/sim/guest.h"
#include "tests/sim/process.h"
#include "tests/sim/toolstack.h"

namespace vbdkit::sim {

// What one process holds and has done; counters as in layout.h.
struct ProcessUse {
  uint32_t ports = 0;
  uint32_t grants = 0;
  uint64_t map_calls = 0, maps = 0, map_failures = 0, unmap_calls = 0, unmaps = 0;
  uint64_t copy_calls = 0, copies = 0, copy_bytes = 0, copy_failures = 0;
  uint64_t notifies = 0, deliveries = 0, pendings = 0, unmasks = 0;
  // The system calls this would have been on real Xen: mapping and unmapping take two each.
  uint64_t xen_syscalls() const {
    return 2 * map_calls + 2 * unmap_calls + copy_calls + notifies + pendings + unmasks;
  }
};

class World {
 public:
  struct Options {
    std::vector<std::string> xenstored_args = {};  // e.g. {"-E", "2000"} for another node quota
  };
  static Result<std::unique_ptr<World>> start(const Options& options);
  static Result<std::unique_ptr<World>> start() { return start(Options{}); }
  // The World we were started in, by environment(): what it consists of is not ours to end.
  static Result<std::unique_ptr<World>> join();
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  // Private to this World; removed with it.
  const std::string& dir() const { return dir_; }
  Dom0Store& store() { return *store_; }
  Toolstack& toolstack() { return *toolstack_; }

  Result<Guest*> create_guest(const Guest::Options& options = {});
  // xl destroy: every disk of the guest forcibly detached, then the domain and its nodes go.
  Result<void> destroy_guest(Guest& guest, Deadline deadline);
  // The domain just ends: xenstored drops it and says @releaseDomain. The Guest's memory stays
  // readable here until the World ends.
  Result<void> kill_guest(Guest& guest);
  // SCHEDOP_shutdown: SHUTDOWN_poweroff, SHUTDOWN_suspend, … The domain stays.
  Result<void> shut_down(Guest& guest, uint32_t reason);

  // What a program needs in its environment to find this World.
  Process::Environment environment() const;
  // Runs a program in this World; the Process stays ours. The log is dir()/NAME.log.
  Result<Process*> launch(const std::string& name, const std::vector<std::string>& argv,
                          const Process::Environment& more = {});
  // Debian's QEMU as the qdisk backend of a guest; attach disks of type kQdisk before or after.
  Result<Process*> launch_qdisk(Guest& guest);

  // Grants of a domain that somebody has mapped or is copying; of all domains, dead ones too.
  Result<uint32_t> grants_mapped(DomId domid);
  Result<uint32_t> grants_mapped();
  Result<uint32_t> ports_open(DomId domid);
  // Waits until nobody holds a grant of any guest but xenstored its store pages.
  Result<void> wait_no_grants(Deadline deadline);
  // Domains that are dying but held by somebody.
  Result<std::vector<DomId>> zombies();
  // xenstored, too, lets go of a dead domain's pages only when it has heard of its death.
  Result<void> wait_no_zombies(Deadline deadline);
  // The process at the other end of a guest's port: the backend of a queue.
  Result<pid_t> process_at(EvtPort port);
  // Nothing, where the process has no connection to Xen.
  std::optional<ProcessUse> use_of(pid_t pid);

  // All logs, for a failed test.
  std::string logs() const;

 private:
  World() = default;
  Result<void> connect();

  std::string dir_;
  bool joined_ = false;
  std::string socket_path_;
  std::unique_ptr<Process> broker_;
  std::unique_ptr<Process> xenstored_;
  std::shared_ptr<Connection> connection_;
  std::unique_ptr<Dom0Store> store_;
  std::unique_ptr<Toolstack> toolstack_;
  std::vector<std::unique_ptr<Guest>> guests_;
  std::vector<std::unique_ptr<Process>> processes_;
};

// Where the build put the broker and, in xenlibs/, the replacement libraries; $SIMXEN_DIR
// overrides.
std::string build_dir();

}  // namespace vbdkit::sim
