// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/qcow2/create.h"

#include <unistd.h>

#include <algorithm>
#include <bit>

#include "base/fd.h"
#include "drivers/options.h"
#include "drivers/qcow2/reference_map.h"

namespace vbdkit::drivers::qcow2 {
namespace {

Error invalid(std::string what) { return Error(ErrorKind::kInvalid, std::move(what)); }

// The names that other programs may want to show for feature bits.
struct FeatureName {
  uint8_t type;
  uint8_t bit;
  const char* name;
};
constexpr FeatureName kFeatureNames[] = {
    {0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
    {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
    {2, 0, "bitmaps"},          {2, 1, "raw external data"},
};

Extension feature_names() {
  Extension extension{kExtensionFeatureNames, {}};
  for (const FeatureName& feature : kFeatureNames) {
    const size_t at = extension.data.size();
    extension.data.resize(at + 48);
    extension.data[at] = feature.type;
    extension.data[at + 1] = feature.bit;
    memcpy(&extension.data[at + 2], feature.name, strlen(feature.name));
  }
  return extension;
}

Result<void> check_options(const CreateOptions& o) {
  if (o.size.v % kSectorSize != 0)
    return invalid("size " + std::to_string(o.size.v) + " is not a multiple of 512");
  if (o.size.v > INT64_MAX) return invalid("size " + std::to_string(o.size.v) + " is too large");
  if (!std::has_single_bit(o.cluster_size) || o.cluster_size < (1u << kMinClusterBits) ||
      o.cluster_size > (1u << kMaxClusterBits))
    return invalid("cluster_size must be a power of two from 512 to 2M");
  if (!std::has_single_bit(o.refcount_bits) || o.refcount_bits > 64)
    return invalid("refcount_bits must be a power of two from 1 to 64");
  if (o.version == 2) {
    if (o.refcount_bits != 16) return invalid("refcount_bits other than 16 need compat=v3");
    if (o.lazy_refcounts) return invalid("lazy_refcounts needs compat=v3");
    if (o.extended_l2) return invalid("extended_l2 needs compat=v3");
    if (o.compression != Compression::kDeflate) return invalid("compression_type needs compat=v3");
  }
  if (o.extended_l2 && o.cluster_size < (1u << kMinExtendedClusterBits))
    return invalid("extended_l2 needs clusters of at least 16K");
  if (o.backing_file.size() > kMaxBackingName)
    return invalid("the backing file's name is longer than " + std::to_string(kMaxBackingName) +
                   " bytes");
  if (!o.backing_file.empty() && o.backing_format.empty())
    return invalid("a backing file needs backing_fmt: formats are not guessed");
  if (!o.backing_file.empty() && o.preallocation != Preallocation::kOff)
    return invalid("preallocation would hide the backing file");
  return {};
}

Header make_header(const CreateOptions& o) {
  Header h;
  h.version = o.version;
  h.size = o.size.v;
  h.geometry.cluster_bits = static_cast<uint32_t>(std::countr_zero(o.cluster_size));
  h.geometry.refcount_order = static_cast<uint32_t>(std::countr_zero(o.refcount_bits));
  h.geometry.extended = o.extended_l2;
  h.header_length = o.version == 2 ? kV2HeaderLength : kV3HeaderLength + 8;
  if (o.extended_l2) h.incompatible |= kExtendedL2Bit;
  if (o.lazy_refcounts) h.compatible |= kLazyRefcountsBit;
  h.compression = o.compression;
  if (o.compression != Compression::kDeflate) h.incompatible |= kCompressionTypeBit;
  h.backing_file = o.backing_file;
  if (!o.backing_file.empty())
    h.extensions.push_back(
        {kExtensionBackingFormat, {o.backing_format.begin(), o.backing_format.end()}});
  // A cluster of 512 bytes has no room for names.
  if (o.version == 3 && o.cluster_size >= 4096) h.extensions.push_back(feature_names());
  return h;
}

Result<void> reserve(const MetadataFile& file, uint64_t size) {
  if (file.block_device()) return {};
  VBDKIT_ASSIGN(const Fd fd, Fd::open(file.path(), O_RDWR));
  const int error = posix_fallocate(fd.get(), 0, static_cast<off_t>(size));
  if (error != 0) return Error::from_errno(error, "reserve space for " + file.path());
  return {};
}

// Gives every cluster of the disk its place, from file cluster `next` on.
Result<uint64_t> preallocate(MetadataFile& file, const Header& header, ReferenceMap& map,
                             uint64_t next, Preallocation how) {
  const Geometry& g = header.geometry;
  std::vector<uint8_t> table(g.cluster_size());
  std::vector<uint64_t> l1(header.l1_entries);
  uint64_t left = g.clusters_for(header.size);
  const std::vector<uint8_t> zeroes(how == Preallocation::kFull ? g.cluster_size() : 0);
  for (uint64_t i = 0; left > 0; ++i) {
    const uint64_t table_at = next++ << g.cluster_bits;
    l1[i] = table_at | kCopiedFlag;
    const uint64_t count = std::min<uint64_t>(left, g.l2_entries());
    std::fill(table.begin(), table.end(), uint8_t{0});
    for (uint64_t k = 0; k < count; ++k) {
      ClusterState state;
      state.host = next++ << g.cluster_bits;
      state.copied = true;
      state.allocated = g.all_units();
      g.encode_at(&table[k * g.entry_size()], state);
      if (how == Preallocation::kFull) VBDKIT_TRY(file.write(state.host, zeroes));
    }
    VBDKIT_TRY(file.write(table_at, table));
    VBDKIT_TRY(map.add(table_at >> g.cluster_bits, count + 1));
    left -= count;
  }
  VBDKIT_TRY(file.write_table(header.l1_offset, l1));
  if (file.size() < next << g.cluster_bits) VBDKIT_TRY(file.set_size(next << g.cluster_bits));
  if (how == Preallocation::kFalloc) VBDKIT_TRY(reserve(file, next << g.cluster_bits));
  return next;
}

Result<void> write_image(MetadataFile& file, const CreateOptions& options) {
  VBDKIT_TRY(check_options(options));
  Header header = make_header(options);
  const Geometry& g = header.geometry;
  const uint64_t l1_entries = g.l1_entries_for(header.size);
  if (l1_entries * 8 > kMaxL1Bytes)
    return invalid("clusters of " + std::to_string(g.cluster_size()) + " bytes allow a disk of " +
                   std::to_string(kMaxL1Bytes / 8 * g.l2_span()) + " bytes at most");
  header.l1_entries = static_cast<uint32_t>(l1_entries);
  header.refcount_table_clusters = 1;
  header.refcount_table_offset = g.cluster_size();
  header.l1_offset = l1_entries == 0 ? 0 : g.cluster_size() * 2;
  const uint64_t end = 2 + g.clusters_for(l1_entries * 8);

  ReferenceMap map;
  VBDKIT_TRY(map.add(0, end));
  VBDKIT_TRY(file.set_size(0));
  VBDKIT_TRY(file.set_size(end << g.cluster_bits));
  if (file.block_device()) {
    const std::vector<uint8_t> zeroes(end << g.cluster_bits);
    VBDKIT_TRY(file.write(0, zeroes));
  }
  if (options.preallocation != Preallocation::kOff)
    VBDKIT_TRY(preallocate(file, header, map, end, options.preallocation));
  // A file without a valid header until all else is in place.
  VBDKIT_TRY(write_refcounts(file, header, map, {}));
  VBDKIT_ASSIGN(const std::vector<uint8_t> first, encode_header(header));
  VBDKIT_TRY(file.write(0, first));
  return file.sync();
}

Result<bool> parse_switch(const std::string& key, const std::string& value) {
  if (value == "on") return true;
  if (value == "off") return false;
  return invalid(key + "=" + value + ": expected on or off");
}

Result<void> parse_option(CreateOptions& o, const std::string& key, const std::string& value) {
  if (key == "cluster_size") {
    auto size = parse_size(value);
    if (!size) return std::move(size).error().context(key);
    o.cluster_size = static_cast<uint32_t>(std::min<uint64_t>(*size, 1u << 31));
  } else if (key == "compat") {
    if (value != "0.10" && value != "v2" && value != "1.1" && value != "v3")
      return invalid("compat=" + value + ": expected 0.10 (v2) or 1.1 (v3)");
    o.version = value == "0.10" || value == "v2" ? 2 : 3;
  } else if (key == "refcount_bits") {
    auto bits = parse_size(value);
    if (!bits) return std::move(bits).error().context(key);
    o.refcount_bits = static_cast<uint32_t>(std::min<uint64_t>(*bits, 1024));
  } else if (key == "lazy_refcounts") {
    VBDKIT_ASSIGN(o.lazy_refcounts, parse_switch(key, value));
  } else if (key == "extended_l2") {
    VBDKIT_ASSIGN(o.extended_l2, parse_switch(key, value));
  } else if (key == "compression_type") {
    if (value != "zlib" && value != "zstd")
      return invalid("compression_type=" + value + ": expected zlib or zstd");
    o.compression = value == "zstd" ? Compression::kZstd : Compression::kDeflate;
  } else if (key == "preallocation") {
    if (value == "off")
      o.preallocation = Preallocation::kOff;
    else if (value == "metadata")
      o.preallocation = Preallocation::kMetadata;
    else if (value == "falloc")
      o.preallocation = Preallocation::kFalloc;
    else if (value == "full")
      o.preallocation = Preallocation::kFull;
    else
      return invalid("preallocation=" + value + ": expected off, metadata, falloc or full");
  } else if (key == "backing_file") {
    o.backing_file = value;
  } else if (key == "backing_fmt") {
    o.backing_format = value;
  } else {
    return invalid(
        key +
        ": no option of qcow2; known are backing_file, backing_fmt, cluster_size, compat, "
        "compression_type, extended_l2, lazy_refcounts, preallocation, refcount_bits");
  }
  return {};
}

}  // namespace

Result<CreateOptions> parse_create_options(Bytes size,
                                           const std::map<std::string, std::string>& options) {
  CreateOptions result;
  result.size = size;
  for (const auto& [key, value] : options) {
    auto parsed = parse_option(result, key, value);
    if (!parsed) return std::move(parsed).error().context("qcow2");
  }
  auto checked = check_options(result);
  if (!checked) return std::move(checked).error().context("qcow2");
  return result;
}

Result<void> create_image(const std::string& path, const CreateOptions& options) {
  // Before anything is overwritten.
  auto checked = check_options(options);
  if (!checked) return std::move(checked).error().context("qcow2: create " + path);
  auto file = MetadataFile::open(path, ImageFile::Mode::kCreate);
  if (!file) return std::move(file).error().context("qcow2: create");
  auto written = write_image(*file, options);
  if (written) return {};
  if (!file->block_device()) ::unlink(path.c_str());
  return std::move(written).error().context("qcow2: create " + path);
}

}  // namespace vbdkit::drivers::qcow2
