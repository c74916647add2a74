// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/qcow2/compressed_reader.h"

#include <algorithm>

#include "drivers/qcow2/decompress.h"

namespace vbdkit::drivers::qcow2 {
namespace {

struct ClusterReady {
  CompressedReader::Cluster& cluster;
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> h) { cluster.waiting.push_back(h); }
  void await_resume() const noexcept {}
};

}  // namespace

Task<int> CompressedReader::fill(ClusterState state, Cluster& cluster) {
  const uint64_t start = align_down(state.host, kSectorSize);
  const uint64_t end = state.host + state.compressed_length;  // a multiple of 512
  const Buffer packed(end - start);
  const uint64_t in_file = std::min(end, image_.size_for(end));
  if (start >= image_.blocking.size())
    co_return image_.mark_corrupt("compressed data at " + std::to_string(state.host) +
                                  " is beyond the end of the file");
  if (in_file > start) {
    const int error = co_await image_.read(start, packed.span().first(in_file - start));
    if (error != 0) co_return error;
  }
  // A file may end inside a sector, which its node does not show. Seldom, and only there.
  const uint64_t rest = std::max(in_file, start);
  if (rest < end) {
    const auto tail = image_.blocking.read(rest, packed.span().subspan(rest - start));
    if (!tail) co_return tail.error().sys_errno();
  }
  const std::span<const uint8_t> data = packed.span().subspan(state.host - start);
  if (!decompress(image_.header.compression, data, cluster.data.span())) {
    image_.log.error("qcow2: %s: compressed data at %llu is damaged", image_.path().c_str(),
                     static_cast<unsigned long long>(state.host));
    co_return EIO;
  }
  co_return 0;
}

Task<CompressedReader::Content> CompressedReader::read(ClusterState state) {
  const auto found =
      std::find_if(recent_.begin(), recent_.end(),
                   [&](const std::shared_ptr<Cluster>& c) { return c->host == state.host; });
  if (found != recent_.end()) {
    recent_.splice(recent_.begin(), recent_, found);
    const std::shared_ptr<Cluster> cluster = recent_.front();
    if (!cluster->ready) co_await ClusterReady{*cluster};
    co_return Content{cluster->error, cluster};
  }
  auto cluster = std::make_shared<Cluster>();
  cluster->host = state.host;
  cluster->data = Buffer(image_.g.cluster_size());
  recent_.push_front(cluster);
  const size_t most = std::max<size_t>(1, kMaxBytes / image_.g.cluster_size());
  while (recent_.size() > most) recent_.pop_back();
  cluster->error = co_await fill(state, *cluster);
  cluster->ready = true;
  for (const std::coroutine_handle<> h : cluster->waiting) image_.ready.push(h);
  cluster->waiting.clear();
  if (cluster->error != 0) forget(state.host);
  co_return Content{cluster->error, cluster};
}

void CompressedReader::forget(uint64_t host) {
  recent_.remove_if([&](const std::shared_ptr<Cluster>& c) { return c->host == host; });
}

}  // namespace vbdkit::drivers::qcow2
