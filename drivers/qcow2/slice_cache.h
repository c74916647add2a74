// SPDX-License-Identifier: LGPL-2.1-or-later
//
// SliceCache: pieces of metadata tables (L2 tables, refcount blocks) of one or more image files,
// by least recent use bounded in bytes; several layers of a chain may share one. Misses of
// different slices are read in parallel, those of one slice share the read. Who holds a SliceRef
// keeps the slice; changed slices must be held until they are written, so they are never evicted.
// Thread: the reactor of the layers.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <unordered_map>

#include "drivers/qcow2/image.h"

namespace vbdkit::drivers::qcow2 {

class SliceCache;

struct Slice {
  const Image* image = nullptr;
  uint64_t offset = 0;  // in the image's file
  Buffer data;
  bool ready = false;
  int error = 0;         // of the read
  bool dirty = false;    // for its holder: changed and not written
  uint64_t version = 0;  // for its holder: counts changes
  uint32_t references = 0;
  std::list<Slice*>::iterator unused;  // its place among those that nobody holds
  std::vector<std::coroutine_handle<>> waiting;
};

class SliceRef {
 public:
  SliceRef() = default;
  SliceRef(SliceCache& cache, Slice& slice);
  SliceRef(const SliceRef& o) : SliceRef() { *this = o; }
  SliceRef(SliceRef&& o) noexcept : cache_(o.cache_), slice_(std::exchange(o.slice_, nullptr)) {}
  SliceRef& operator=(const SliceRef& o);
  SliceRef& operator=(SliceRef&& o) noexcept {
    std::swap(cache_, o.cache_);
    std::swap(slice_, o.slice_);
    return *this;
  }
  ~SliceRef();

  explicit operator bool() const { return slice_ != nullptr; }
  Slice* operator->() const { return slice_; }
  Slice& operator*() const { return *slice_; }
  uint8_t* bytes() const { return slice_->data.data(); }

 private:
  SliceCache* cache_ = nullptr;
  Slice* slice_ = nullptr;
};

class SliceCache {
 public:
  explicit SliceCache(uint64_t limit) : limit_(limit) {}
  ~SliceCache();
  SliceCache(const SliceCache&) = delete;
  SliceCache& operator=(const SliceCache&) = delete;

  struct Loaded {
    int error = 0;  // errno
    SliceRef slice;
  };
  // An empty SliceRef where it is not here.
  SliceRef find(const Image& image, uint64_t offset);
  Task<Loaded> load(Image& image, uint64_t offset);
  // Forgets what an image (that nobody holds slices of) has here.
  void drop(const Image& image);
  // Forgets slices of [offset, offset + length), which belongs to something else now.
  void drop(const Image& image, uint64_t offset, uint64_t length);

  uint64_t bytes() const { return bytes_; }

 private:
  friend class SliceRef;
  struct Key {
    const Image* image;
    uint64_t offset;
    bool operator==(const Key&) const = default;
  };
  struct Hash {
    size_t operator()(const Key& key) const {
      return std::hash<uint64_t>()(key.offset * 0x9e3779b97f4a7c15 ^
                                   reinterpret_cast<uint64_t>(key.image));
    }
  };

  Slice& insert(const Image& image, uint64_t offset);
  void released(Slice& slice);
  void erase(Slice& slice);

  const uint64_t limit_;
  uint64_t bytes_ = 0;
  std::unordered_map<Key, std::unique_ptr<Slice>, Hash> slices_;
  std::list<Slice*> unused_;  // least recent first
};

}  // namespace vbdkit::drivers::qcow2
