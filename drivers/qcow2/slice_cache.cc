// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/qcow2/slice_cache.h"

#include <cassert>

namespace vbdkit::drivers::qcow2 {

SliceRef::SliceRef(SliceCache& cache, Slice& slice) : cache_(&cache), slice_(&slice) {
  if (slice.references++ == 0 && slice.unused != cache.unused_.end()) {
    cache.unused_.erase(slice.unused);
    slice.unused = cache.unused_.end();
  }
}

SliceRef& SliceRef::operator=(const SliceRef& o) {
  if (o.slice_ == nullptr)
    *this = SliceRef();
  else
    *this = SliceRef(*o.cache_, *o.slice_);
  return *this;
}

SliceRef::~SliceRef() {
  if (slice_ != nullptr && --slice_->references == 0) cache_->released(*slice_);
}

SliceCache::~SliceCache() { assert(unused_.size() == slices_.size()); }

Slice& SliceCache::insert(const Image& image, uint64_t offset) {
  auto slice = std::make_unique<Slice>();
  slice->image = &image;
  slice->offset = offset;
  slice->data = Buffer(image.g.slice_size());
  slice->unused = unused_.end();
  bytes_ += image.g.slice_size();
  return *slices_.insert_or_assign(Key{&image, offset}, std::move(slice)).first->second;
}

void SliceCache::erase(Slice& slice) {
  bytes_ -= slice.data.size();
  if (slice.unused != unused_.end()) unused_.erase(slice.unused);
  slices_.erase(Key{slice.image, slice.offset});
}

void SliceCache::released(Slice& slice) {
  if (slice.error != 0) {
    erase(slice);
    return;
  }
  slice.unused = unused_.insert(unused_.end(), &slice);
  while (bytes_ > limit_ && !unused_.empty()) erase(*unused_.front());
}

SliceRef SliceCache::find(const Image& image, uint64_t offset) {
  const auto found = slices_.find(Key{&image, offset});
  if (found == slices_.end() || !found->second->ready) return {};
  return {*this, *found->second};
}

namespace {

struct SliceReady {
  Slice& slice;
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> h) { slice.waiting.push_back(h); }
  void await_resume() const noexcept {}
};

}  // namespace

Task<SliceCache::Loaded> SliceCache::load(Image& image, uint64_t offset) {
  const auto found = slices_.find(Key{&image, offset});
  if (found != slices_.end()) {
    SliceRef ref(*this, *found->second);
    if (!ref->ready && ref->error == 0) co_await SliceReady{*ref};
    const int error = ref->error;
    co_return Loaded{error, std::move(ref)};
  }
  SliceRef ref(*this, insert(image, offset));
  int error = 0;
  if (offset + ref->data.size() <= image.file->info().size.v) {
    error = co_await image.read(offset, ref->data.span());
  } else {
    // The file ends inside the table, and zeroes follow. Of a table so small the read may block.
    const auto read = image.blocking.read(offset, ref->data.span());
    error = read ? 0 : read.error().sys_errno();
  }
  ref->error = error;
  ref->ready = error == 0;
  for (const std::coroutine_handle<> h : ref->waiting) image.ready.push(h);
  ref->waiting.clear();
  co_return Loaded{error, std::move(ref)};
}

void SliceCache::drop(const Image& image) {
  for (auto it = unused_.begin(); it != unused_.end();) {
    Slice& slice = **it++;
    if (slice.image == &image) erase(slice);
  }
}

void SliceCache::drop(const Image& image, uint64_t offset, uint64_t length) {
  for (uint64_t at = offset; at < offset + length; at += image.g.slice_size()) {
    const auto found = slices_.find(Key{&image, at});
    if (found != slices_.end() && found->second->references == 0) erase(*found->second);
  }
}

}  // namespace vbdkit::drivers::qcow2
