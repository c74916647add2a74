// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Layer: one image of a chain, as its format sees it: which of the disk's bytes it holds itself,
// and where in its file. The chain (chain.h) puts layers over each other, leaf first, and answers
// reads from one merged map, so that depth costs nothing once a window of the map is known.
//
// Thread: the reactor of the chain's node. Ownership: the chain owns its layers, a layer owns its
// file node (a raw file, an NBD export: any driver that stores plain bytes).
//
// Immutability: every layer but the leaf is opened read-only and does not change while it is a
// parent, so what map() said of it stays true. The leaf changes only through its own write(),
// discard() and write_zeroes(), and reports each change to the chain through MapListener.
//
// Crash rules every writable layer keeps (tests replay every prefix and random reorderings
// within flushes: drivers/crash_replay.h):
//  - the metadata that points at data is written to the file only after that data is durable; until
//    then the new mapping lives in memory (and in the merged map), so writes are acknowledged
//    early;
//  - flush(): data durable, then allocation metadata, then what points at it, then durable again;
//  - a power cut therefore leaks space at worst, and never loses what a completed flush covered,
//    nor what an older flush covered at the same place (old or new content, nothing else).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/log.h"
#include "base/result.h"
#include "drivers/node.h"

namespace vbdkit::drivers {

// A run of the disk's bytes, in ascending order without gaps in an answer of Layer::map().
struct Segment {
  enum class Kind : uint8_t {
    kData,        // at `file_offset` of the layer's file, as it stands
    kZero,        // reads as zeroes, whatever parents hold
    kAbsent,      // not in this layer: ask the parent (zeroes where there is none)
    kCompressed,  // only the layer can read it: Layer::read_special()
  };
  uint64_t length = 0;  // bytes, > 0
  uint64_t file_offset = 0;
  Kind kind = Kind::kAbsent;
  friend bool operator==(const Segment&, const Segment&) = default;
};

struct MapRequest {
  uint64_t offset = 0;  // bytes; inside the layer's virtual size
  uint64_t length = 0;
  std::vector<Segment> segments;  // appended by the layer; together exactly `length`
  std::function<void(int error)> done;
};

// Told by the leaf before the request that changed the mapping completes, so that a later read sees
// it. Called on the reactor's thread.
class MapListener {
 public:
  virtual ~MapListener() = default;
  virtual void remapped(uint64_t offset, const Segment& segment) = 0;
};

// Reads what lies beneath the leaf (its parents merged), for copy-on-write.
class ParentReader {
 public:
  virtual ~ParentReader() = default;
  // As Node::submit() of a kRead; beyond the parents' size the buffers are zeroed.
  virtual void read_below(Request& request) = 0;
  // False where there is no parent: nothing needs to be read.
  virtual bool has_parent() const = 0;
  // Bytes; beyond, there are only zeroes.
  virtual uint64_t size_below() const = 0;
};

struct LayerInfo {
  Bytes size;                // virtual
  uint64_t map_window = 0;   // bytes; the natural unit of one metadata read (a power of two)
  uint32_t alignment = 512;  // bytes; requests are multiples of it
  uint32_t cluster = 0;      // bytes; allocation unit (VHD block, qcow2 cluster)
  std::string format;        // "vhd", "qcow2", "raw"
  std::string uuid;          // VHD: its own, compared with what a child says of its parent
  // Of discard(): bytes; 0: it answers EOPNOTSUPP always.
  uint32_t discard_granularity = 0;
  bool can_write_zeroes = false;  // natively, without writing each byte
  // Room for a whole unit is taken when a part of it is written; the rest is not the layer's, but
  // others may read it as if it were, once the image has no parent. kInPlace reaches it.
  bool gaps = false;
};

// Where the parent is, as the image itself records it; resolved against the image's own directory.
struct ParentReference {
  std::string path;                // first candidate that exists, or the first of all
  std::vector<std::string> tried;  // every candidate, for the error message
  std::string format;              // "" where the image does not name it
  std::string uuid;                // VHD; must be the found parent's LayerInfo::uuid
  int64_t modified = 0;  // seconds since the Epoch; VHD: the parent's mtime when the child was made
};

class Layer {
 public:
  virtual ~Layer() = default;

  virtual const LayerInfo& info() const = 0;
  virtual Node& file() = 0;
  virtual const ParentReference* parent() const = 0;  // nullptr: a base image

  // Says where [offset, offset+length) lies. May read metadata; `done` may run inside map().
  // Segments (file offsets too) are multiples of 512 bytes. What the leaf changes after `done` ran
  // it reports through MapListener; what it changed before is in the answer.
  virtual void map(MapRequest& request) = 0;
  // Reads a range that map() called kCompressed.
  virtual void read_special(Request& request) = 0;

  // Leaf only, all below. kFua is never set: the chain turns it into a flush() that follows. No
  // metadata I/O may be in flight when no request is (a node may then be destroyed): what an
  // internal flush costs, the write that causes it waits for.
  // The destructor writes what was acknowledged and not flushed yet: an orderly end loses nothing.
  // Requests never overlap one another in flight (the scheduler's rule), but may touch
  // the same cluster; the layer orders those itself. Writes to ranges that are kData already also
  // come here only if the chain has no mapping at hand; the chain sends the others straight to
  // file().
  virtual void write(Request& request) = 0;
  virtual void discard(Request& request) = 0;
  virtual void write_zeroes(Request& request) = 0;
  virtual void flush(Request& request) = 0;
  virtual Result<void> resize(Bytes size) = 0;
  // Writes, with blocking I/O, all that is in memory, as the destructor does; another layer that is
  // opened on the file then sees it all. The layer can go on, also where that fails. With no
  // request in flight.
  virtual Result<void> settle() { return {}; }
  // The header has been made to name another parent, or none, and reads the same: reads it again.
  virtual Result<void> reload_parent() {
    return Error(ErrorKind::kUnsupported, "images of this format have no parents");
  }

  // LayerContext::readers does not hold any more: what was kept for them can be used again.
  virtual void readers_gone() {}

  // Before the first write of a leaf.
  virtual void set_chain(MapListener& listener, ParentReader& below) = 0;

 protected:
  Layer() = default;
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;
};

struct LayerContext {
  io::Reactor& reactor;
  const Logger& log;
  bool read_only = true;
  bool readers = false;  // OpenOptions::readers
};

// What a layer is opened on. Opening may block and reads the metadata it needs through a descriptor
// of its own (chain/image_file.h); all later I/O goes through `file`.
struct LayerSource {
  std::string path;
  NodePtr file;  // plain bytes, opened with the same access as the layer
};

// One image format, for chains. A format is one line in the table of formats.cc.
struct LayerFormat {
  const char* name;
  Result<std::unique_ptr<Layer>> (*open)(LayerSource source, const LayerContext& context);
};

std::span<const LayerFormat> layer_formats();
const LayerFormat* find_layer_format(std::string_view name);  // or nullptr

}  // namespace vbdkit::drivers
