// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/qcow2/layout.h"

#include <algorithm>
#include <array>

namespace vbdkit::drivers::qcow2 {
namespace {

constexpr size_t kExtensionHeader = 8;
constexpr size_t kFeatureNameEntry = 48;
constexpr uint64_t kKnownIncompatible =
    kDirtyBit | kCorruptBit | kDataFileBit | kCompressionTypeBit | kExtendedL2Bit;

Error invalid(std::string what) { return Error(ErrorKind::kInvalid, std::move(what)); }
Error corrupt(std::string what) { return Error(ErrorKind::kCorrupt, std::move(what)); }
Error unsupported(std::string what) { return Error(ErrorKind::kUnsupported, std::move(what)); }

std::string num(uint64_t v) { return std::to_string(v); }

Result<void> read_version_fields(Header& header, std::span<const uint8_t> start) {
  if (header.version == 2) {
    header.header_length = kV2HeaderLength;
    header.geometry.refcount_order = 4;
    return {};
  }
  if (start.size() < kV3HeaderLength) return corrupt("the file ends inside the header");
  header.incompatible = load_be<uint64_t>(&start[72]);
  header.compatible = load_be<uint64_t>(&start[80]);
  header.autoclear = load_be<uint64_t>(&start[88]);
  header.geometry.refcount_order = load_be<uint32_t>(&start[96]);
  header.header_length = load_be<uint32_t>(&start[100]);
  if (header.header_length < kV3HeaderLength)
    return corrupt("header length " + num(header.header_length) + " is less than " +
                   num(kV3HeaderLength));
  if (header.header_length % 8 != 0)
    return corrupt("header length " + num(header.header_length) + " is not a multiple of 8");
  if (header.header_length > header.geometry.cluster_size() || header.header_length > start.size())
    return corrupt("header length " + num(header.header_length) + " is more than a cluster");
  if (header.geometry.refcount_order > 6)
    return unsupported("refcounts of 2^" + num(header.geometry.refcount_order) +
                       " bits; at most 64 bits are possible");
  return {};
}

Result<void> read_extensions(Header& header, std::span<const uint8_t> start, uint64_t end) {
  uint64_t at = align_up(header.header_length, 8);
  while (at + kExtensionHeader <= end) {
    const uint32_t type = load_be<uint32_t>(&start[at]);
    const uint64_t length = load_be<uint32_t>(&start[at + 4]);
    if (type == 0) return {};
    at += kExtensionHeader;
    if (length > end - at)
      return corrupt("header extension of " + num(length) + " bytes goes beyond the header");
    const uint8_t* const data = start.data() + at;
    Extension extension{type, {data, data + length}};
    if (type == kExtensionBackingFormat) {
      if (length > 255) return corrupt("the backing format's name has " + num(length) + " bytes");
      header.backing_format.emplace(extension.data.begin(), extension.data.end());
    } else if (type == kExtensionBitmaps) {
      if (length != 24) return corrupt("bitmaps extension of " + num(length) + " bytes");
      header.bitmaps = {load_be<uint32_t>(&extension.data[0]),
                        load_be<uint64_t>(&extension.data[8]),
                        load_be<uint64_t>(&extension.data[16])};
    }
    header.extensions.push_back(std::move(extension));
    at = align_up(at + length, 8);
  }
  return {};
}

std::string feature_name(const Header& header, uint8_t type, uint8_t bit) {
  for (const Extension& extension : header.extensions) {
    if (extension.type != kExtensionFeatureNames) continue;
    for (size_t at = 0; at + kFeatureNameEntry <= extension.data.size(); at += kFeatureNameEntry) {
      if (extension.data[at] != type || extension.data[at + 1] != bit) continue;
      std::string name;
      // What an image says goes to a log and a terminal: only printable characters.
      for (size_t i = 2; i < kFeatureNameEntry && extension.data[at + i] != 0; ++i) {
        const char c = static_cast<char>(extension.data[at + i]);
        name += c >= ' ' && c <= '~' ? c : '?';
      }
      return "\"" + name + "\"";
    }
  }
  return "bit " + num(bit);
}

Result<void> check_features(Header& header, std::span<const uint8_t> start) {
  std::string unknown;
  for (uint8_t bit = 0; bit < 64; ++bit) {
    if ((header.incompatible & ~kKnownIncompatible) >> bit & 1)
      unknown += (unknown.empty() ? "" : ", ") + feature_name(header, 0, bit);
  }
  if (!unknown.empty()) return unsupported("incompatible features that are not known: " + unknown);
  if (header.incompatible & kDataFileBit)
    return unsupported(
        "its data is in an external data file; such images are refused, as they can name any file "
        "of the host");
  const uint32_t crypt = load_be<uint32_t>(&start[32]);
  if (crypt != 0)
    return unsupported(std::string("the image is encrypted (") +
                       (crypt == 1   ? "AES"
                        : crypt == 2 ? "LUKS"
                                     : "unknown method") +
                       "); encryption inside qcow2 is not supported");
  header.geometry.extended = (header.incompatible & kExtendedL2Bit) != 0;
  if (header.geometry.extended && header.geometry.cluster_bits < kMinExtendedClusterBits)
    return corrupt("extended L2 entries with clusters of less than 16 KiB");
  const uint8_t type = header.header_length > 104 ? start[104] : 0;
  const bool typed = (header.incompatible & kCompressionTypeBit) != 0;
  if (typed != (type != 0)) return corrupt("compression type contradicts the feature bit");
  if (type > 1) return unsupported("compression type " + num(type) + " is not known");
  header.compression = static_cast<Compression>(type);
  return {};
}

// A table's place: [offset, offset + length), length > 0.
struct Area {
  const char* name;
  uint64_t offset;
  uint64_t length;
};

Result<void> check_area(const Header& header, const Area& area, uint64_t file_size) {
  if (header.geometry.in_cluster(area.offset) != 0)
    return corrupt(std::string(area.name) + " at " + num(area.offset) +
                   " does not start at a cluster's beginning");
  if (!range_inside(area.offset, area.length, file_size))
    return corrupt(std::string(area.name) + " (" + num(area.length) + " bytes at " +
                   num(area.offset) + ") goes beyond the end of the file (" + num(file_size) + ")");
  return {};
}

Result<void> check_tables(const Header& header, uint64_t file_size) {
  const Geometry& g = header.geometry;
  if (header.refcount_table_clusters == 0) return corrupt("the image has no refcount table");
  if (header.refcount_table_bytes() > kMaxRefcountTableBytes)
    return corrupt("a refcount table of " + num(header.refcount_table_clusters) +
                   " clusters is too large");
  const uint64_t l1_bytes = uint64_t{header.l1_entries} * 8;
  if (l1_bytes > kMaxL1Bytes)
    return corrupt("an L1 table of " + num(header.l1_entries) + " entries is too large");
  if (header.size > INT64_MAX) return corrupt("the virtual size is more than 2^63");
  if (g.l1_entries_for(header.size) > header.l1_entries)
    return corrupt("its L1 table has " + num(header.l1_entries) + " entries; a disk of " +
                   num(header.size) + " bytes needs " + num(g.l1_entries_for(header.size)));
  if (header.snapshots > kMaxSnapshots)
    return corrupt(num(header.snapshots) + " internal snapshots are too many");

  std::vector<Area> areas = {{"header", 0, g.cluster_size()}};
  Area refcounts{"refcount table", header.refcount_table_offset, 8};
  // A file may end inside the table: the rest of it is zeroes.
  VBDKIT_TRY(check_area(header, refcounts, file_size));
  refcounts.length = header.refcount_table_bytes();
  areas.push_back(refcounts);
  if (header.l1_entries > 0) {
    const Area l1{"L1 table", header.l1_offset, l1_bytes};
    VBDKIT_TRY(check_area(header, l1, file_size));
    areas.push_back(l1);
  }
  if (header.snapshots > 0) {
    // The least that its entries can take.
    const Area snapshots{"snapshot table", header.snapshots_offset,
                         uint64_t{header.snapshots} * 40};
    VBDKIT_TRY(check_area(header, snapshots, file_size));
    areas.push_back(snapshots);
  }
  std::sort(areas.begin(), areas.end(),
            [](const Area& a, const Area& b) { return a.offset < b.offset; });
  for (size_t i = 1; i < areas.size(); ++i) {
    if (areas[i - 1].length > areas[i].offset - areas[i - 1].offset)
      return corrupt(std::string(areas[i - 1].name) + " and " + areas[i].name + " overlap");
  }
  return {};
}

void append_be32(std::vector<uint8_t>& out, uint32_t v) {
  std::array<uint8_t, 4> bytes;
  store_be(bytes.data(), v);
  out.insert(out.end(), bytes.begin(), bytes.end());
}

}  // namespace

bool is_qcow2(std::span<const uint8_t> start) {
  return start.size() >= 4 && load_be<uint32_t>(start.data()) == kMagic;
}

Result<uint32_t> header_bytes(std::span<const uint8_t> start) {
  if (!is_qcow2(start)) return invalid("not a qcow2 image (no QFI\\xfb at its start)");
  if (start.size() < kV2HeaderLength) return corrupt("the file ends inside the header");
  const uint32_t version = load_be<uint32_t>(&start[4]);
  if (version != 2 && version != 3)
    return unsupported("qcow2 version " + num(version) + "; known are 2 and 3");
  const uint32_t bits = load_be<uint32_t>(&start[20]);
  if (bits < kMinClusterBits || bits > kMaxClusterBits)
    return unsupported("clusters of 2^" + num(bits) + " bytes; possible are 512 to 2 MiB");
  return uint32_t{1} << bits;
}

Result<Header> parse_header(std::span<const uint8_t> start, uint64_t file_size) {
  VBDKIT_ASSIGN(const uint32_t cluster, header_bytes(start));
  if (start.size() > cluster) start = start.first(cluster);
  Header header;
  header.version = load_be<uint32_t>(&start[4]);
  header.geometry.cluster_bits = load_be<uint32_t>(&start[20]);
  header.size = load_be<uint64_t>(&start[24]);
  header.l1_entries = load_be<uint32_t>(&start[36]);
  header.l1_offset = load_be<uint64_t>(&start[40]);
  header.refcount_table_offset = load_be<uint64_t>(&start[48]);
  header.refcount_table_clusters = load_be<uint32_t>(&start[56]);
  header.snapshots = load_be<uint32_t>(&start[60]);
  header.snapshots_offset = load_be<uint64_t>(&start[64]);
  VBDKIT_TRY(read_version_fields(header, start));

  const uint64_t backing_offset = load_be<uint64_t>(&start[8]);
  uint64_t extensions_end = start.size();
  if (backing_offset != 0) {
    const uint32_t length = load_be<uint32_t>(&start[16]);
    if (length > kMaxBackingName)
      return corrupt("the backing file's name has " + num(length) + " bytes; at most " +
                     num(kMaxBackingName) + " are possible");
    if (backing_offset < header.header_length ||
        !range_inside(backing_offset, length, start.size()))
      return corrupt("the backing file's name is outside the header's cluster");
    header.backing_file.assign(reinterpret_cast<const char*>(&start[0]) + backing_offset, length);
    if (header.backing_file.find('\0') != std::string::npos)
      return corrupt("the backing file's name contains a zero byte");
    extensions_end = backing_offset;
  }
  VBDKIT_TRY(read_extensions(header, start, extensions_end));
  VBDKIT_TRY(check_features(header, start));
  VBDKIT_TRY(check_tables(header, file_size));
  return header;
}

Result<std::vector<uint8_t>> encode_header(const Header& header) {
  const Geometry& g = header.geometry;
  const uint32_t length = header.version == 2 ? kV2HeaderLength : header.header_length;
  std::vector<uint8_t> out(length);
  store_be<uint32_t>(&out[0], kMagic);
  store_be<uint32_t>(&out[4], header.version);
  store_be<uint32_t>(&out[20], g.cluster_bits);
  store_be<uint64_t>(&out[kSizeField], header.size);
  store_be<uint32_t>(&out[kL1EntriesField], header.l1_entries);
  store_be<uint64_t>(&out[kL1OffsetField], header.l1_offset);
  store_be<uint64_t>(&out[kRefcountTableField], header.refcount_table_offset);
  store_be<uint32_t>(&out[kRefcountTableClustersField], header.refcount_table_clusters);
  store_be<uint32_t>(&out[60], header.snapshots);
  store_be<uint64_t>(&out[64], header.snapshots_offset);
  if (header.version == 3) {
    store_be<uint64_t>(&out[kIncompatibleField], header.incompatible);
    store_be<uint64_t>(&out[80], header.compatible);
    store_be<uint64_t>(&out[kAutoclearField], header.autoclear);
    store_be<uint32_t>(&out[96], g.refcount_order);
    store_be<uint32_t>(&out[100], length);
    if (length > 104) out[104] = static_cast<uint8_t>(header.compression);
  }
  for (const Extension& extension : header.extensions) {
    append_be32(out, extension.type);
    append_be32(out, static_cast<uint32_t>(extension.data.size()));
    out.insert(out.end(), extension.data.begin(), extension.data.end());
    out.resize(align_up(out.size(), 8));
  }
  out.resize(out.size() + kExtensionHeader);
  if (!header.backing_file.empty()) {
    store_be<uint64_t>(&out[8], out.size());
    store_be<uint32_t>(&out[16], static_cast<uint32_t>(header.backing_file.size()));
    out.insert(out.end(), header.backing_file.begin(), header.backing_file.end());
  }
  if (out.size() > g.cluster_size())
    return invalid("the header with the backing file's name (" + num(out.size()) +
                   " bytes) does not fit into a cluster of " + num(g.cluster_size()));
  out.resize(g.cluster_size());
  return out;
}

Result<Snapshot> parse_snapshot(std::span<const uint8_t> at, const Geometry& geometry,
                                uint64_t file_size) {
  constexpr size_t kFixed = 40;
  if (at.size() < kFixed) return corrupt("the snapshot table goes beyond the end of the file");
  Snapshot s;
  s.l1_offset = load_be<uint64_t>(&at[0]);
  s.l1_entries = load_be<uint32_t>(&at[8]);
  const size_t id_length = load_be<uint16_t>(&at[12]);
  const size_t name_length = load_be<uint16_t>(&at[14]);
  s.seconds = load_be<uint32_t>(&at[16]);
  s.vm_state = load_be<uint32_t>(&at[32]);
  const uint64_t extra = load_be<uint32_t>(&at[36]);
  if (extra > 1024) return corrupt("a snapshot with " + num(extra) + " bytes of extra data");
  const uint64_t length = kFixed + extra + id_length + name_length;
  s.entry_length = align_up(length, 8);
  if (length > at.size()) return corrupt("the snapshot table goes beyond the end of the file");
  if (extra >= 8) s.vm_state = load_be<uint64_t>(&at[40]);
  if (extra >= 16) s.disk_size = load_be<uint64_t>(&at[48]);
  const char* text = reinterpret_cast<const char*>(at.data()) + kFixed + extra;
  s.id.assign(text, id_length);
  s.name.assign(text + id_length, name_length);
  const uint64_t l1_bytes = uint64_t{s.l1_entries} * 8;
  if (l1_bytes > kMaxL1Bytes || geometry.in_cluster(s.l1_offset) != 0 ||
      !range_inside(s.l1_offset, l1_bytes, file_size))
    return corrupt("the L1 table of a snapshot is outside the file or too large");
  return s;
}

}  // namespace vbdkit::drivers::qcow2
