// SPDX-License-Identifier: LGPL-2.1-or-later
//
// What an instance says of itself: its registry record, and the keys it is found by.
#include <unistd.h>

#include <array>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "backend/instance.h"
#include "base/process.h"
#include "drivers/stored_image.h"

namespace vbdkit {

using control::JsonWriter;

namespace {

std::vector<drivers::StoredImage> images_of(drivers::Node* node) {
  std::vector<drivers::StoredImage> images;
  for (; node != nullptr; node = node->next_node()) node->list_images(images);
  return images;
}

void write_image(JsonWriter& w, const drivers::StoredImage& image) {
  w.begin_object().field("format", image.format).field("path", image.path);
  if (image.device != 0) {
    w.field("block-device", image.block_device).field("device", image.device);
    w.field("inode", image.inode).field("generation", uint64_t{image.generation});
  }
  w.field("ro", image.read_only).field("virtual-size", image.size).end_object();
}

void write_images(JsonWriter& w, const std::vector<drivers::StoredImage>& images) {
  w.key("chain").begin_array();
  for (const drivers::StoredImage& image : images) write_image(w, image);
  w.end_array();
}

}  // namespace

const char* Instance::state_name() const {
  if (options_.claims != nullptr && options_.claims->taken()) return "taken";
  if (quitting_) return "ending";
  if (options_.claims != nullptr && options_.claims->holds()) return "holding";
  return settings_->paused() ? "paused" : "running";
}

void Instance::write_identity(JsonWriter& w) const {
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  w.field("uuid", options_.uuid).field("host", host.data());
  w.field("pid", static_cast<uint64_t>(::getpid()));
  w.field("start-time", process_start_time(::getpid()).value_or(0));
  w.field("spec", options_.spec).field("read-only", graph_->top().info().read_only);
  w.field("virtual-size", graph_->top().info().size.v);
  w.field("shared", options_.shared).field("managed", managed_).field("state", state_name());
  w.field("qmp", runtime_->file("qmp.sock"));
  if (nbd_) w.field("nbd", nbd_->path());
}

void Instance::write_chain(JsonWriter& w) const { write_images(w, images_of(&graph_->top())); }

void Instance::write_consumers(JsonWriter& w) const {
  w.key("consumers").begin_array();
  for (const auto& [backend, slot] : vbds_) {
    w.begin_object().field("type", "vbd").field("backend", backend);
    w.field("domid", uint64_t{slot.vbd->domid()}).field("devid", slot.vbd->device_id());
    w.end_object();
  }
  if (const uint64_t clients = nbd_clients(); clients != 0)
    w.begin_object().field("type", "nbd").field("clients", clients).end_object();
  if (const jobs::BlockJob* const job = jobs_->running(); job != nullptr)
    w.begin_object().field("type", "job").field("id", job->settings().id).end_object();
  w.end_array();
}

Result<void> Instance::write_record() {
  std::set<std::string> keys;
  const auto images = images_of(&graph_->top());
  for (const drivers::StoredImage& image : images) {
    keys.insert(image.device == 0    ? uri_key(image.path)
                : image.block_device ? block_device_key(image.device)
                                     : file_key(image.device, image.inode));
  }
  for (const auto& [backend, slot] : vbds_)
    keys.insert(vbd_key(slot.vbd->domid(), slot.vbd->device_id()));

  JsonWriter w;
  w.begin_object();
  write_identity(w);
  write_images(w, images);
  write_consumers(w);
  w.end_object();
  const std::string record = w.take() + "\n";
  VBDKIT_TRY(runtime_->write_record(record, keys));
  const size_t hash = std::hash<std::string>()(record);
  if (options_.hooks && told_record_ != hash)
    options_.hooks->tell(told_record_ ? HookLink::Event::kChange : HookLink::Event::kRegister);
  told_record_ = hash;
  return {};
}

void Instance::update_record() {
  if (auto written = write_record(); !written)
    log_.warning("%s", written.error().message().c_str());
}

}  // namespace vbdkit
