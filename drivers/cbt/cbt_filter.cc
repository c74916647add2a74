// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/cbt/cbt_filter.h"

#include <fcntl.h>
#include <unistd.h>

#include <bit>

#include "drivers/drivers.h"
#include "drivers/options.h"

namespace vbdkit::drivers {
namespace cbt {

CbtFilter::CbtFilter(NodePtr next, NodeSpec spec, std::unique_ptr<BitmapFile> file)
    : Filter(std::move(next)), spec_(std::move(spec)), file_(std::move(file)) {
  file_->on_recorded(this, [](void* owner, Request& request, int error) {
    // What a flush brings is a checkpoint, without which the bitmap is right as well.
    if (error != 0 && request.op != Op::kFlush)
      request.done(request, error);
    else
      static_cast<CbtFilter*>(owner)->next().submit(request);
  });
}

void CbtFilter::submit(Request& request) {
  switch (request.op) {
    case Op::kRead:
    case Op::kCopy:
      break;
    case Op::kFlush:
      if (!info().read_only && file_->checkpoint(request)) return;
      break;
    case Op::kWrite:
    case Op::kDiscard:
    case Op::kWriteZeroes:
      // What the next node refuses changes nothing.
      if (info().read_only || !range_inside(request.offset, request.length, info().size.v) ||
          file_->covers(request.offset, request.length))
        break;
      file_->record(request);
      return;
  }
  next().submit(request);
}

Result<void> CbtFilter::refresh_size() {
  const Bytes before = info().size;
  VBDKIT_TRY(next().refresh_size());
  return info().size == before ? Result<void>() : file_->resize(info().size);
}

Result<void> CbtFilter::resize(Bytes size) {
  const Bytes before = info().size;
  VBDKIT_TRY(next().resize(size));
  return info().size == before ? Result<void>() : file_->resize(info().size);
}

Result<void> CbtFilter::reopen(bool read_only) {
  if (!read_only && file_->read_only())
    return Error(ErrorKind::kUnsupported,
                 "cbt: it was opened read-only; close the disk and open it anew");
  return next().reopen(read_only);
}

}  // namespace cbt

namespace {

constexpr const char* kKeys[] = {"file", "granularity", "name"};

Result<std::string> boot_id() {
  constexpr const char* kPath = "/proc/sys/kernel/random/boot_id";
  VBDKIT_ASSIGN(const Fd file, Fd::open(kPath, O_RDONLY));
  char id[36];  // the text of a UUID
  if (::read(file.get(), id, sizeof id) != ssize_t{sizeof id})
    return Error(ErrorKind::kIo, std::string("cbt: read ") + kPath + " failed");
  return std::string(id, sizeof id);
}

Result<NodePtr> open_cbt(const NodeSpec& spec, NodePtr next, const OpenContext& context) {
  const OptionReader reader(spec);
  cbt::FileOptions options;
  for (const char* key : {"file", "name"})
    if (!reader.has(key) || spec.options.at(key).empty())
      return Error(ErrorKind::kInvalid, std::string("cbt: key '") + key +
                                            "' is missing (as in cbt:name=backup,file=/srv/a.cbt)");
  options.path = spec.options.at("file");
  options.name = spec.options.at("name");
  if (options.name.size() > cbt::kMaxName)
    return Error(ErrorKind::kInvalid, "cbt: name: at most 255 bytes");
  VBDKIT_ASSIGN(options.granularity, reader.size("granularity", 0));
  if (options.granularity != 0 &&
      (!std::has_single_bit(options.granularity) || options.granularity < cbt::kMinGranularity ||
       options.granularity > cbt::kMaxGranularity))
    return Error(ErrorKind::kInvalid, "cbt: granularity=" + spec.options.at("granularity") +
                                          ": expected a power of two from 4K to 1G");
  options.read_only = context.options.read_only || next->info().read_only;
  VBDKIT_ASSIGN(options.boot_id, boot_id());
  VBDKIT_ASSIGN(auto file, cbt::BitmapFile::open(std::move(options), next->info().size,
                                                 context.reactor, context.log));
  return NodePtr(std::make_unique<cbt::CbtFilter>(std::move(next), spec, std::move(file)));
}

}  // namespace

DriverEntry cbt_driver() {
  return {"cbt", "keeps track of changed blocks", true, false, kKeys, open_cbt};
}

}  // namespace vbdkit::drivers
