// SPDX-License-Identifier: LGPL-2.1-or-later
#include "backend/queue_thread.h"

#include <future>
#include <utility>

namespace vbdkit {

Result<std::unique_ptr<QueueThread>> QueueThread::start(io::Reactor& home, RequestSink& target,
                                                        io::EngineKind engine, const Logger& log) {
  std::unique_ptr<QueueThread> self(new QueueThread);
  std::promise<Result<void>> opened;
  auto outcome = opened.get_future();
  self->thread_ = std::thread([&log, &home, &target, engine, &opened, raw = self.get()] {
    auto open = raw->open(home, target, engine, log);
    const bool ok = open.ok();
    opened.set_value(std::move(open));  // `opened` and the caller's references end with this
    if (!ok) return;
    if (auto ran = raw->reactor_->run(); !ran) log.error("%s", ran.error().message().c_str());
    raw->events_.reset();  // its watch is of this thread
  });
  VBDKIT_TRY(outcome.get());
  return self;
}

Result<void> QueueThread::open(io::Reactor& home, RequestSink& target, io::EngineKind engine,
                               const Logger& log) {
  VBDKIT_ASSIGN(reactor_, io::Reactor::create({.engine = engine}, log));
  VBDKIT_ASSIGN(events_, xen::EventChannels::open(*reactor_, log));
  VBDKIT_ASSIGN(grants_, xen::GrantTable::open(log));
  sink_ = std::make_unique<RemoteSink>(*reactor_, home, target, target.info());
  return {};
}

QueueThread::~QueueThread() {
  if (reactor_) reactor_->stop();
  if (thread_.joinable()) thread_.join();
}

}  // namespace vbdkit
