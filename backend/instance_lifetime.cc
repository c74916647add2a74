// SPDX-License-Identifier: LGPL-2.1-or-later
//
// When an instance ends. One that the daemon has started ends with its last disk, by the daemon's
// word; one that a storage manager has started, or has activated since, stays without disks too,
// until it is deactivated: then it ends as soon as nobody uses it.
#include "backend/instance.h"

namespace vbdkit {

using control::Reply;

void Instance::activate(Reply reply) {
  if (quitting_) return reply.error("GenericError", "The instance is shutting down");
  managed_ = false;
  ends_when_unused_ = false;
  tell_lifetime();
  reply.ok();
}

void Instance::deactivate(Reply reply) {
  managed_ = true;
  ends_when_unused_ = true;
  tell_lifetime();
  control::JsonWriter w;
  w.begin_object().field("vbds", uint64_t{vbds_.size()}).field("nbd-clients", nbd_clients());
  w.field("jobs", uint64_t{jobs_->running() != nullptr ? 1u : 0u}).end_object();
  reply.value(w.take());
  quit_if_unused();
}

void Instance::tell_lifetime() {
  update_record();
  control::JsonWriter w;
  w.begin_object().field("managed", managed_).end_object();
  qmp_->event("X_VBDKIT_LIFETIME", w.take());
}

void Instance::nbd_clients_changed() {
  // Not inside of the server: the last client's going may be the end of it.
  reactor_.post([this] {
    if (quitting_) return;
    update_record();
    quit_if_unused();
  });
}

void Instance::job_event(std::string_view name, std::string_view data) {
  if (qmp_) qmp_->event(name, data);
  if (name != "JOB_STATUS_CHANGE") return;
  // The job tells of itself before the table knows.
  reactor_.post([this] {
    if (quitting_) return;
    settle_claims();
    update_record();
    quit_if_unused();
  });
}

void Instance::quit_if_unused() {
  if (ends_when_unused_ && vbds_.empty() && nbd_clients() == 0 && jobs_->running() == nullptr)
    quit();
}

}  // namespace vbdkit
