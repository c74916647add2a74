// SPDX-License-Identifier: LGPL-2.1-or-later
//
// ImageClaims: a process's right to work on images that several hosts can reach. What it uses of
// them it claims through vbdkit-registryd (registryd/daemon.h) before it opens them, and it holds
// all its file operations from the moment on at which the host's lease may end, until it is certain
// that the images still are ours: the lease page says so (lease_page.h), or, where the host's key
// had a break, registryd has looked at each claim. Where one was taken, all file operations fail
// from then on.
//
// What is on no share costs nothing but the look where it lies. Images that a host's processes
// share among each other are a matter of their locks (drivers/file_lock.h).
//
// Thread: the reactor's; what is named …_now blocks, for those whose loop does not run yet.
// Ownership: it outlives all nodes on its reactor. At its end it gives up what it has.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "backend/control/qmp_link.h"
#include "backend/lease_page.h"
#include "backend/registry_config.h"
#include "base/log.h"
#include "io/gated_reactor.h"

namespace vbdkit {

class ImageClaims final : public io::FileGate {
 public:
  // As registryd names them (registryd/claim_store.h).
  enum class Mode { kRead, kWrite, kSharedRead, kSharedWrite, kMerge };
  struct Use {
    std::string path;
    Mode mode = Mode::kRead;
    std::string through{};  // kMerge: the path of the image between, or nothing
  };
  static Mode mode_of(bool read_only, bool shared);

  struct Events {
    std::function<void()> holding;                  // file operations wait from now on
    std::function<void()> going_on;                 // no more
    std::function<void(const std::string&)> taken;  // why; they fail from now on
  };
  using Done = std::function<void(Result<void>)>;

  // Nothing where this host shares no registry. `holder`: an instance's UUID, or another name that
  // no other process has.
  [[gnu::cold]] static Result<std::unique_ptr<ImageClaims>> create(io::GatedReactor& reactor,
                                                                   const Logger& log,
                                                                   const std::string& runtime_dir,
                                                                   std::string holder);
  ~ImageClaims() override;

  void on(Events events) { events_ = std::move(events); }

  // kBusy names the host and the instance that has it.
  [[gnu::cold]] Result<void> acquire_now(const std::vector<Use>& uses);
  // Also where more is held of one than is wanted now.
  [[gnu::cold]] Result<void> change_now(const std::vector<Use>& uses);
  [[gnu::cold]] void acquire(const std::vector<Use>& uses, Done done);
  // What is used now: claims what it lacks, and gives up all else.
  [[gnu::cold]] void settle(const std::vector<Use>& uses);
  // When other hosts know, as far as they can be told.
  [[gnu::cold]] void when_settled(std::function<void()> then);
  bool covers(const std::vector<Use>& uses) const;

  // For what does not go through the reactor.
  Result<void> may_write() const;
  bool holds() const { return holding_; }
  bool taken() const { return taken_; }

  State state() override;
  void holding() override;

 private:
  struct Held {
    Mode mode = Mode::kRead;
    std::string path;
    uint64_t revision = 0;
    std::string through{};  // an image's name
  };
  struct Step {
    const char* command;
    std::string arguments;
    std::function<void(Result<control::Json>)> then;
  };
  using Wanted = std::map<std::string, Held>;  // by the image's name

  ImageClaims(io::GatedReactor& reactor, const Logger& log, RegistryConfig config,
              std::string runtime_dir, std::string holder);
  Result<Wanted> shared_among(const std::vector<Use>& uses) const;
  bool covers(const std::string& image, Mode mode) const;
  Wanted lacking(const Wanted& wanted) const;
  Result<void> claim_now(const Wanted& wanted);
  std::string claim_arguments(const Wanted& wanted) const;
  Result<void> claimed(const Wanted& wanted, const control::Json& answer);
  Result<void> open_view();
  BootClock::time_point hold_at() const;
  void ask(Step step);
  void next_step();
  void step_done(Result<control::Json> answer);
  void retry_settling();
  void release(const std::vector<std::string>& images);
  void look();
  void resume();
  void resumed(Result<control::Json> answer);
  void begin_holding();
  void lose(const std::string& why);
  void flush_files();

  io::GatedReactor& reactor_;
  const Logger& log_;
  const RegistryConfig config_;
  const std::string socket_;
  const std::string runtime_dir_;
  const std::string holder_;
  Events events_;
  std::optional<LeaseView> view_;
  Wanted held_;
  uint64_t epoch_ = 0;  // in which held_ is known to be ours
  bool holding_ = false;
  bool resuming_ = false;
  bool taken_ = false;
  std::optional<Wanted> settling_;  // what could not be asked for yet
  std::unique_ptr<io::Timer> timer_;
  std::unique_ptr<io::Timer> settle_timer_;
  std::deque<Step> steps_;  // the first is under way
  std::vector<std::function<void()>> when_settled_;
  std::unique_ptr<control::QmpLink> link_;
  std::thread flusher_;
  const std::shared_ptr<ImageClaims*> self_;  // what is posted finds this gone
};

}  // namespace vbdkit
