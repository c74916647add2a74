// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Node: one driver opened on one thing. Requests go down a graph of nodes (filters, then the chain
// of an image), completions come back up; nothing else flows up.
//
// Thread: a node lives on one reactor; everything here is called on that reactor's thread.
// Ownership: a Request belongs to the node from submit() until it calls request.done; the
// memory its iov points to stays valid that long. `done` may run inside submit().
// Order: whoever submits to the top node (the scheduler) sees to it that two requests in flight at
// one time never overlap unless both read. A node may execute requests in any order.
// Durability: a kFlush makes everything durable that was *completed* before the flush was
// submitted. A kWrite, kDiscard or kWriteZeroes with kFua is durable when it completes.
// Cost: submit() of a mapped read or write allocates nothing and makes no system call.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/units.h"
#include "io/reactor.h"

namespace vbdkit::drivers {

// kCopy carries no data: a job's filter on top of the graph (jobs/mirror_filter.h) brings the range
// over to the job's target. To the scheduler it is a write, so that it never races a guest's; every
// other node answers EOPNOTSUPP.
enum class Op : uint8_t { kRead, kWrite, kFlush, kDiscard, kWriteZeroes, kCopy };

// Request flags.
inline constexpr uint8_t kFua = 1;       // durable on completion
inline constexpr uint8_t kMayUnmap = 2;  // kWriteZeroes: the range may be deallocated
// kRead: much, and nobody waits for just this; a hint that another processor may do the copying.
inline constexpr uint8_t kBulk = 4;
// kWriteZeroes, of an image: in its file, where that has room for the range; the image's metadata
// say as before that it does not hold it.
inline constexpr uint8_t kInPlace = 8;

struct Request {
  Op op = Op::kRead;
  uint8_t flags = 0;
  uint32_t iov_count = 0;
  const iovec* iov = nullptr;  // kRead, kWrite: sums to `length`; never changed by a node
  uint64_t offset = 0;         // bytes; a multiple of info().request_alignment
  uint64_t length = 0;         // bytes; likewise; [offset, offset+length) lies inside info().size
  // error: 0, or a positive errno. Called exactly once.
  void (*done)(Request& request, int error) = nullptr;

  // While the request is in flight these belong to the node that has it.
  io::FileOp file_op;
  void* owner = nullptr;
  Request* next = nullptr;
};

// What is known about [offset, offset+length) of a node, for NBD's base:allocation, for map, and
// for sparse copies. Adjacent extents may carry equal flags.
struct Extent {
  uint64_t length = 0;     // bytes, > 0
  bool allocated = false;  // storage is assigned in this node or a parent
  bool zero = false;       // reads as zeroes
  bool own = false;        // of a chain: the leaf itself holds it, as data or as zeroes
  bool near = false;       // of a chain: one of the first StatusRequest::near_images holds it
};

struct StatusRequest {
  uint64_t offset = 0;  // bytes
  uint64_t length = 0;  // bytes; inside info().size
  size_t max_extents = 1;
  size_t near_images = 0;       // of a chain, from the leaf on: what Extent::near tells of
  std::vector<Extent> extents;  // filled by the node; covers at least one byte, from offset on
  std::function<void(int error)> done;
};

struct NodeInfo {
  Bytes size;
  uint32_t request_alignment = 1;    // bytes; power of two; 512 for most
  uint32_t logical_block = 512;      // bytes; what the guest is told as sector-size
  uint32_t physical_block = 512;     // bytes; writes of less are read-modify-write below
  uint32_t discard_granularity = 0;  // bytes; 0 where discard is not supported
  uint64_t max_transfer = 0;         // bytes per request; 0: no limit
  bool read_only = false;
  bool can_discard = false;
  bool can_write_zeroes = false;  // natively, without writing each byte
  bool volatile_cache = false;    // completed writes may be lost before a flush
  bool rotational = false;
};

// Who else may have the storage of a node open.
enum class Sharing : uint8_t {
  kAsOpened,
  kReaders,    // of a node that writes, and writes no more: others may read
  kCoalescer,  // of a parent: whoever merges another layer of our chain into it may write
};

class DirtyBitmap;   // dirty_bitmap.h
struct StoredImage;  // stored_image.h
class Node;
using NodePtr = std::unique_ptr<Node>;

class Node {
 public:
  virtual ~Node() = default;  // no request may be in flight

  virtual std::string_view driver() const = 0;  // registry name: "raw"
  // Canonical node spec, from which an equal node can be opened: "raw:/srv/a.img".
  virtual std::string spec() const = 0;
  virtual const NodeInfo& info() const = 0;

  virtual void submit(Request& request) = 0;
  virtual void block_status(StatusRequest& request) = 0;
  // Somebody waits until nothing is in flight: what is held back for a limit's sake goes on now,
  // and is charged all the same.
  virtual void hurry() {
    if (Node* const next = next_node()) next->hurry();
  }

  // The storage beneath may have grown or shrunk: looks again and updates info().size.
  // Called with no request in flight beyond the new end; may block for the look.
  virtual Result<void> refresh_size() = 0;
  // Changes the size of the storage itself.
  virtual Result<void> resize(Bytes size) = 0;
  // Opens the same thing anew (another descriptor, other flags) without losing requests in flight.
  virtual Result<void> reopen(bool read_only) = 0;
  // The file beneath has this name now; it is the same file.
  virtual void renamed(const std::string&) {}
  // Lets others use the storage too, or no longer so, without closing it. Nothing where there are
  // no locks. What fails changes nothing.
  virtual Result<void> share(Sharing) { return {}; }
  // It was opened with OpenOptions::readers, and those have closed it: it is for this node alone.
  virtual Result<void> readers_gone() { return {}; }

  // The next node towards the storage, or nullptr for a leaf.
  virtual Node* next_node() { return nullptr; }
  // Of a filter: puts another node in the next one's place, and gives that one out. With no request
  // in flight; a filter that was left without one can only be given one, or destroyed.
  virtual NodePtr exchange_next(NodePtr next) { return next; }
  // A name for the content, which others that open the same storage find too and which it never has
  // again once it was changed. Empty where there is no such name.
  virtual std::string identity() const { return {}; }
  // Appends the images that this node itself has open, leaf first. Filters have none.
  [[gnu::cold]] virtual void list_images(std::vector<StoredImage>&) const {}
  // Puts filters over the parts of the storage that never change while this node is open, the
  // parents of a chain. False where there are none. Before the first request.
  virtual bool filter_parents(const std::function<NodePtr(NodePtr)>&) { return false; }
  // What this node itself knows of changes, or nullptr.
  virtual DirtyBitmap* dirty_bitmap() { return nullptr; }

 protected:
  Node() = default;
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;
};

// A filter changes what it must and forwards the rest; derive and override.
class Filter : public Node {
 public:
  explicit Filter(NodePtr next) : next_(std::move(next)) {}

  const NodeInfo& info() const override { return next_->info(); }
  void submit(Request& request) override { next_->submit(request); }
  void block_status(StatusRequest& request) override { next_->block_status(request); }
  Result<void> refresh_size() override { return next_->refresh_size(); }
  Result<void> resize(Bytes size) override { return next_->resize(size); }
  Result<void> reopen(bool read_only) override { return next_->reopen(read_only); }
  Node* next_node() override { return next_.get(); }
  NodePtr exchange_next(NodePtr next) override { return std::exchange(next_, std::move(next)); }
  std::string identity() const override { return next_->identity(); }
  bool filter_parents(const std::function<NodePtr(NodePtr)>& filter) override {
    return next_->filter_parents(filter);
  }

 protected:
  Node& next() { return *next_; }
  const Node& next() const { return *next_; }

 private:
  NodePtr next_;
};

}  // namespace vbdkit::drivers
