// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/cache/cache_filter.h"

#include <algorithm>

#include "drivers/drivers.h"
#include "drivers/iov.h"
#include "drivers/options.h"

namespace vbdkit::drivers {
namespace cache {
namespace {

// Longer reads are copies of whole disks, which would push out what is used.
constexpr uint64_t kMaxCached = 1 << 20;  // bytes

}  // namespace

CacheFilter::CacheFilter(NodePtr next, NodeSpec spec, std::shared_ptr<PageStore> pages,
                         ImageKey image, bool immutable)
    : Filter(std::move(next)),
      spec_(std::move(spec)),
      pages_(std::move(pages)),
      image_(image),
      immutable_(immutable) {}

void CacheFilter::submit(Request& request) {
  switch (request.op) {
    case Op::kRead:
      if (request.length == 0 || request.length > kMaxCached ||
          info().request_alignment > kPageSize ||
          !range_inside(request.offset, request.length, info().size.v))
        break;
      read(request);
      return;
    case Op::kWrite:
    case Op::kDiscard:
    case Op::kWriteZeroes:
      // No read of these pages is in flight (node.h, "Order"), so none brings them back.
      if (range_inside(request.offset, request.length, info().size.v)) forget(request);
      break;
    case Op::kFlush:
    case Op::kCopy:
      break;
  }
  next().submit(request);
}

void CacheFilter::forget(const Request& request) {
  if (request.length == 0) return;
  const uint64_t first = request.offset / kPageSize;
  const uint64_t last = (request.offset + request.length - 1) / kPageSize;
  // Of more pages than there are none is worth looking for.
  if (last - first >= pages_->slots()) {
    image_ = ImageKey::unique();
    return;
  }
  for (uint64_t page = first; page <= last; ++page) pages_->remove(image_, page);
}

// What is at hand from both ends; what is between them in one read.
void CacheFilter::read(Request& request) {
  uint64_t from = request.offset;
  uint64_t to = request.offset + request.length;
  while (from < to) {
    const uint64_t end = std::min(to, align_down(from, kPageSize) + kPageSize);
    if (!serve(request, from, end)) break;
    from = end;
  }
  if (from == to) {
    request.done(request, 0);
    return;
  }
  while (to > from) {
    const uint64_t start = std::max(from, align_down(to - 1, kPageSize));
    if (start == from || !serve(request, start, to)) break;
    to = start;
  }
  fetch(request, from, to);
}

// A part of one page.
bool CacheFilter::serve(const Request& request, uint64_t from, uint64_t to) {
  if (!pages_->find(image_, from / kPageSize, page_)) return false;
  ++counters_.hits;
  copy_to_iov(request.iov, from - request.offset,
              reinterpret_cast<const char*>(page_.data()) + from % kPageSize, to - from);
  return true;
}

void CacheFilter::fetch(Request& request, uint64_t from, uint64_t to) {
  ++counters_.misses;
  Miss& miss = misses_.take();
  miss.filter = this;
  miss.origin = &request;
  miss.wanted = from;
  miss.wanted_length = to - from;
  // Whole pages; of what may change, another part of a page might be written at this time.
  if (immutable_) {
    from = align_down(from, kPageSize);
    to = std::min(align_up(to, kPageSize), info().size.v);
  }
  miss.buffer = pool_.take(to - from);
  if (!miss.buffer) {
    misses_.give(miss);
    next().submit(request);
    return;
  }
  miss.op = Op::kRead;
  miss.flags = 0;
  miss.offset = from;
  miss.length = to - from;
  miss.memory = {miss.buffer.data(), miss.length};
  miss.iov = &miss.memory;
  miss.iov_count = 1;
  miss.done = [](Request& r, int error) {
    auto& m = static_cast<Miss&>(r);
    m.filter->fetched(m, error);
  };
  next().submit(miss);
}

void CacheFilter::fetched(Miss& miss, int error) {
  Request& origin = *miss.origin;
  if (error == 0) {
    const uint64_t first = align_up(miss.offset, kPageSize);
    const uint64_t end = align_down(miss.offset + miss.length, kPageSize);
    if (first < end)
      pages_->insert(image_, first / kPageSize,
                     {miss.buffer.data() + (first - miss.offset), end - first});
    copy_to_iov(origin.iov, miss.wanted - origin.offset,
                reinterpret_cast<const char*>(miss.buffer.data()) + (miss.wanted - miss.offset),
                miss.wanted_length);
  }
  miss.buffer.reset();
  misses_.give(miss);
  origin.done(origin, error);
}

// What a disk loses and gets back is not what it had.
Result<void> CacheFilter::refresh_size() {
  const Bytes before = info().size;
  VBDKIT_TRY(next().refresh_size());
  if (info().size != before) image_ = ImageKey::unique();
  return {};
}

Result<void> CacheFilter::resize(Bytes size) {
  VBDKIT_TRY(next().resize(size));
  image_ = ImageKey::unique();
  return {};
}

Result<void> CacheFilter::reopen(bool read_only) {
  if (immutable_ && !read_only)
    return Error(ErrorKind::kUnsupported,
                 "cache: what is cached as a base image cannot be opened for writing");
  return next().reopen(read_only);
}

}  // namespace cache

namespace {

using cache::CacheFilter;
using cache::ImageKey;
using cache::PageStore;

constexpr const char* kKeys[] = {"base", "directory", "pool", "size"};
constexpr const char* kDefaultDirectory = "/dev/shm";

// In front of a chain whose parents have the caches.
class BaseCache final : public Filter {
 public:
  BaseCache(NodePtr next, NodeSpec spec) : Filter(std::move(next)), spec_(std::move(spec)) {}
  std::string_view driver() const override { return "cache"; }
  std::string spec() const override { return spec_in_front(spec_, next()); }

 private:
  const NodeSpec spec_;
};

Result<std::shared_ptr<PageStore>> open_pages(const NodeSpec& spec, bool shared,
                                              const Logger& log) {
  const OptionReader reader(spec);
  if (!reader.has("size"))
    return Error(ErrorKind::kInvalid, "cache: key 'size' is missing (as in cache:size=1G)");
  VBDKIT_ASSIGN(const uint64_t size, reader.size("size", 0));
  if (!shared) return PageStore::create_private(size);
  const std::string pool = reader.has("pool") ? spec.options.at("pool") : "default";
  if (pool.empty() || pool.size() > 64 || pool.find('/') != std::string::npos)
    return Error(ErrorKind::kInvalid, "cache: pool='" + pool + "': expected a name");
  return PageStore::open_shared(
      reader.has("directory") ? spec.options.at("directory") : kDefaultDirectory, pool, size, log);
}

ImageKey key_of(const Node& node) {
  const std::string identity = node.identity();
  return identity.empty() ? ImageKey::unique() : ImageKey::of(identity);
}

Result<NodePtr> open_cache(const NodeSpec& spec, NodePtr next, const OpenContext& context) {
  const auto base = spec.options.find("base");
  const bool whole = base == spec.options.end();
  const bool shared = !whole && base->second == "shared";
  if (!whole && !shared && base->second != "private")
    return Error(ErrorKind::kInvalid,
                 "cache: base=" + base->second + ": expected shared or private");
  for (const char* key : {"directory", "pool"})
    if (!shared && spec.options.contains(key))
      return Error(ErrorKind::kInvalid,
                   std::string("cache: key '") + key + "' has no meaning without base=shared");
  VBDKIT_ASSIGN(auto pages, open_pages(spec, shared, context.log));
  if (whole)
    return NodePtr(std::make_unique<CacheFilter>(std::move(next), spec, std::move(pages),
                                                 ImageKey::unique(), false));
  const auto wrap = [&](NodePtr file) -> NodePtr {
    const ImageKey key = key_of(*file);
    return std::make_unique<CacheFilter>(std::move(file), NodeSpec{"cache", "", {}}, pages, key,
                                         true);
  };
  if (next->filter_parents(wrap))
    return NodePtr(std::make_unique<BaseCache>(std::move(next), spec));
  if (!next->info().read_only)
    return Error(ErrorKind::kInvalid, "cache: base=" + base->second + ": " + next->spec() +
                                          " has no parents and is not read-only");
  const ImageKey key = key_of(*next);
  return NodePtr(std::make_unique<CacheFilter>(std::move(next), spec, pages, key, true));
}

}  // namespace

DriverEntry cache_driver() {
  return {"cache", "keeps what was read in memory", true, false, kKeys, open_cache};
}

}  // namespace vbdkit::drivers
