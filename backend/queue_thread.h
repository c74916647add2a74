// SPDX-License-Identifier: LGPL-2.1-or-later
//
// QueueThread: one more thread for rings, with a reactor, event channels and grants of its own. The
// image stays on the home reactor; requests go there through a RemoteSink.
//
// Thread: made and destroyed on the home reactor's; its parts belong to its own. Destroy it when no
// VBD has a queue there any more and the home loop has ended.
#pragma once

#include <memory>
#include <thread>

#include "backend/blkif/vbd.h"
#include "backend/remote_sink.h"
#include "backend/request_sink.h"
#include "backend/xen/event_channels.h"
#include "backend/xen/grant_table.h"
#include "base/log.h"
#include "base/result.h"
#include "io/reactor.h"

namespace vbdkit {

class QueueThread {
 public:
  static Result<std::unique_ptr<QueueThread>> start(io::Reactor& home, RequestSink& target,
                                                    io::EngineKind engine, const Logger& log);
  ~QueueThread();
  QueueThread(const QueueThread&) = delete;
  QueueThread& operator=(const QueueThread&) = delete;

  // The image's properties have changed.
  void set_info(const drivers::NodeInfo& info) { sink_->set_info(info); }
  blkif::QueueHost host() { return {*reactor_, *events_, *grants_, *sink_}; }

 private:
  QueueThread() = default;
  // On the thread itself, where a reactor wants to be made.
  Result<void> open(io::Reactor& home, RequestSink& target, io::EngineKind engine,
                    const Logger& log);

  std::unique_ptr<io::Reactor> reactor_;
  std::unique_ptr<xen::EventChannels> events_;
  std::unique_ptr<xen::GrantTable> grants_;
  std::unique_ptr<RemoteSink> sink_;
  std::thread thread_;
};

}  // namespace vbdkit
