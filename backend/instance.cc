// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/instance.h"

#include <chrono>
#include <utility>

#include "backend/claimed_open.h"
#include "base/code_pages.h"
#include "config.h"

namespace vbdkit {

namespace {

constexpr std::chrono::seconds kNbdDrain{5};

}  // namespace

Result<std::unique_ptr<Instance>> Instance::create(io::Reactor& reactor, const Logger& log,
                                                   InstanceOptions options, Fd control) {
  std::unique_ptr<Instance> instance(new Instance(reactor, log, std::move(options)));
  VBDKIT_TRY(instance->open(std::move(control)));
  return instance;
}

Instance::Instance(io::Reactor& reactor, const Logger& log, InstanceOptions options)
    : reactor_(reactor), log_(log), options_(std::move(options)), managed_(options_.managed) {}

Instance::~Instance() = default;

Result<void> Instance::open(Fd control) {
  VBDKIT_ASSIGN(const drivers::GraphSpec spec, drivers::parse_graph(options_.spec));
  VBDKIT_ASSIGN(
      auto top,
      open_claimed(spec,
                   {.reactor = reactor_,
                    .log = log_,
                    .options = {.read_only = options_.read_only, .shared = options_.shared}},
                   options_.claims));
  graph_ = std::make_unique<LiveGraph>(reactor_, std::move(top));
  graph_->on_changed([this] { graph_changed(); });
  LiveCommands::Admit admit;
  LiveCommands::Settled settled;
  if (options_.claims != nullptr) {
    admit = [this](const std::string& path, LiveGraph::Done done) {
      options_.claims->acquire({{path, ImageClaims::mode_of(false, options_.shared)}},
                               std::move(done));
    };
    settled = [this](std::function<void()> then) {
      options_.claims->when_settled(std::move(then));
    };
  }
  live_.emplace(reactor_, log_, *graph_,
                drivers::OpenOptions{.read_only = options_.read_only, .shared = options_.shared},
                admit, std::move(settled));
  group_.emplace(reactor_, log_, *graph_,
                 drivers::OpenOptions{.read_only = options_.read_only, .shared = options_.shared},
                 std::move(admit));

  VBDKIT_ASSIGN(RuntimeDir runtime, RuntimeDir::claim(options_.runtime_dir));
  runtime_.emplace(std::move(runtime));
  if (options_.nbd) {
    nbd_status_.emplace(graph_->scheduler());
    nbd::ServerOptions nbd;
    nbd.path = runtime_->file("nbd.sock");
    nbd.export_name = options_.uuid;
    nbd.read_only = options_.read_only;
    nbd.clients_changed = [this] { nbd_clients_changed(); };
    VBDKIT_ASSIGN(nbd_, nbd::Server::create(reactor_, graph_->scheduler(), *nbd_status_,
                                            std::move(nbd), log_));
  }
  add_commands();
  live_->add_to(commands_);
  group_->add_to(commands_);
  add_claiming();
  VBDKIT_ASSIGN(
      qmp_, control::QmpServer::create(reactor_, log_, commands_,
                                       {.path = runtime_->file("qmp.sock"), .version = VERSION}));
  if (control.valid()) VBDKIT_TRY(qmp_->adopt(std::move(control)));
  // Who cannot be found may not serve: others would take the image's parents for unused.
  return write_record();
}

Result<void> Instance::open_xen() {
  if (!store_) {
    VBDKIT_ASSIGN(store_, xen::XenStore::open(reactor_, log_));
  }
  if (!events_) {
    VBDKIT_ASSIGN(events_, xen::EventChannels::open(reactor_, log_));
  }
  if (!grants_) {
    VBDKIT_ASSIGN(grants_, xen::GrantTable::open(log_));
  }
  while (threads_.size() + 1 < options_.threads) {
    VBDKIT_ASSIGN(auto thread,
                  QueueThread::start(reactor_, graph_->scheduler(), options_.engine, log_));
    threads_.push_back(std::move(thread));
  }
  return {};
}

Result<void> Instance::attach(const std::string& backend) {
  if (quitting_) return Error(ErrorKind::kBusy, "the instance is shutting down");
  if (vbds_.contains(backend)) return {};  // asked twice by a daemon that was restarted
  VBDKIT_TRY(open_xen());
  blkif::VbdContext context{
      .store = *store_,
      .hosts = {{reactor_, *events_, *grants_, graph_->scheduler()}},
      .log = log_,
      .limits = {},
      .policy = options_.grants,
      .read_only = graph_->top().info().read_only,
      .xentop_dir = options_.xentop_dir,
  };
  for (const auto& thread : threads_) context.hosts.push_back(thread->host());
  blkif::VbdCallbacks callbacks{
      .on_state = [this,
                   backend](XenbusState state) { vbd_event("X_VBDKIT_VBD_STATE", backend, state); },
      .on_connected = [this](bool) { settle(); },
      // The Vbd may not be destroyed inside of its own callback.
      .on_gone = [this, backend] { reactor_.post([this, backend] { vbd_gone(backend); }); },
  };
  VBDKIT_ASSIGN(auto vbd, blkif::Vbd::create(std::move(context), backend, std::move(callbacks)));
  VBDKIT_TRY(vbd->start());
  vbds_[backend].vbd = std::move(vbd);
  log_.info("%s attached", backend.c_str());
  update_record();
  return {};
}

// What a connection needed of the program is not needed again for long. Not at once: our own
// changes in xenstore come back as events, and the guest looks for partitions.
void Instance::settle() {
  if (!settled_) settled_ = reactor_.timer(release_code_pages);
  settled_->arm(io::Timer::Clock::now() + std::chrono::seconds(1));
}

void Instance::vbd_gone(const std::string& backend) {
  if (!vbds_.contains(backend)) return;
  log_.info("%s detached", backend.c_str());
  drop_vbd(backend);
  vbd_event("X_VBDKIT_VBD_GONE", backend, std::nullopt);
}

void Instance::let_go(blkif::Vbd& vbd) {
  vbd.shutdown([this, backend = vbd.backend_path()] {
    reactor_.post([this, backend] { drop_vbd(backend); });
  });
}

// The VBD has let go of everything; only the object is left.
void Instance::drop_vbd(const std::string& backend) {
  const auto slot = vbds_.extract(backend);
  if (slot.empty()) return;
  past_ += slot.mapped().vbd->stats();
  for (control::Reply& reply : slot.mapped().detaching) reply.ok();
  update_record();
  if (quitting_) return finish_quit();
  quit_if_unused();
}

void Instance::vbd_event(std::string_view name, const std::string& backend,
                         std::optional<XenbusState> state) {
  control::JsonWriter w;
  w.begin_object().field("backend", backend);
  if (state) w.field("state", static_cast<uint64_t>(*state));
  w.end_object();
  if (qmp_) qmp_->event(name, w.take());
}

blkif::Stats Instance::vbd_totals() const {
  blkif::Stats sum = past_;
  for (const auto& [backend, slot] : vbds_) sum += slot.vbd->stats();
  return sum;
}

void Instance::quit() {
  if (std::exchange(quitting_, true)) return;
  log_.info("shutting down");
  update_record();
  // From now on nobody can join: who has a disk for this image waits for our end.
  if (qmp_) qmp_->event("SHUTDOWN", R"({"guest":false,"reason":"host-qmp-quit"})");
  settings_->close();
  group_->close();
  quit_waits_ = 2;
  jobs_->shutdown([this] { graph_->close([this] { finish_quit(); }); });
  if (nbd_) {
    ++quit_waits_;
    nbd_->shutdown([this] { finish_quit(); }, kNbdDrain);
  }
  for (auto& [backend, slot] : vbds_) {
    ++quit_waits_;
    if (slot.detaching.empty()) let_go(*slot.vbd);
  }
  finish_quit();
}

void Instance::finish_quit() {
  if (--quit_waits_ > 0) return;
  // From the loop: the last of them may be calling from inside of itself.
  reactor_.post([this] { flush_and_stop(); });
}

void Instance::flush_and_stop() {
  nbd_.reset();
  if (graph_->top().info().read_only) return reactor_.stop();
  final_flush_.instance = this;
  final_flush_.op = drivers::Op::kFlush;
  final_flush_.done = [](drivers::Request& request, int error) {
    Instance& self = *static_cast<FinalFlush&>(request).instance;
    if (error != 0)
      self.log_.error("%s", Error::from_errno(error, "the last flush").message().c_str());
    self.reactor_.stop();
  };
  graph_->scheduler().submit(final_flush_);
}

void Instance::graph_changed() {
  settle_claims();
  update_record();
  control::JsonWriter w;
  w.begin_object();
  write_chain(w);
  w.end_object();
  if (qmp_) qmp_->event("X_VBDKIT_CHAIN_CHANGED", w.take());
}

}  // namespace vbdkit
