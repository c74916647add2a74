// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/qcow2/rebase.h"

#include <algorithm>

#include "drivers/qcow2/metadata_file.h"

namespace vbdkit::drivers::qcow2 {
namespace {

constexpr size_t kBackingOffsetField = 8;
constexpr size_t kBackingLengthField = 16;
constexpr size_t kExtensionHead = 8;  // type and length

std::string directory_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

Error unsupported(std::string why) { return Error(ErrorKind::kUnsupported, std::move(why)); }

// Where the extensions end, and where the one that names the backing format stands among them.
struct Places {
  size_t format_at = 0;
  size_t format_room = 0;  // bytes
  size_t end = 0;
};

Places find_places(const Header& header) {
  Places places;
  size_t at = header.version == 2 ? kV2HeaderLength : header.header_length;
  for (const Extension& extension : header.extensions) {
    const size_t room = align_up(extension.data.size(), 8);
    if (extension.type == kExtensionBackingFormat) {
      places.format_at = at;
      places.format_room = room;
    }
    at += kExtensionHead + room;
  }
  places.end = at + kExtensionHead;
  return places;
}

}  // namespace

Result<std::optional<ParentReference>> backing_reference(const std::string& path,
                                                         const Header& header) {
  std::string name = header.backing_file;
  if (name.empty()) return std::optional<ParentReference>();
  if (name.starts_with("file:")) name.erase(0, 5);
  const size_t colon = name.find(':');
  if (colon != std::string::npos && name.find('/') > colon)
    return unsupported(path + ": its backing file '" + name + "' is not a plain path");
  ParentReference reference;
  reference.path = name.starts_with("/") ? name : directory_of(path) + name;
  reference.tried = {reference.path};
  reference.format = header.backing_format.value_or("");
  return std::optional<ParentReference>(std::move(reference));
}

Result<std::vector<FilePatch>> plan_backing_file(const std::string& path, const std::string& name,
                                                 const std::string& format) {
  VBDKIT_ASSIGN(const MetadataFile file, MetadataFile::open(path, ImageFile::Mode::kRead));
  VBDKIT_ASSIGN(const Header header, file.read_header());
  if (header.backing_file.empty()) return unsupported("it has no backing file to replace");
  if (name.size() > kMaxBackingName)
    return unsupported("the name " + name + " is longer than " + std::to_string(kMaxBackingName) +
                       " bytes");
  const Places places = find_places(header);
  if (format.size() > places.format_room)
    return unsupported("its header has no room for the backing format");
  if (places.format_at + kExtensionHead + places.format_room > kSectorSize)
    return unsupported("its backing format does not stand in the header's first sector");

  std::vector<std::byte> sector(kSectorSize);
  const std::span<uint8_t> bytes(reinterpret_cast<uint8_t*>(sector.data()), sector.size());
  VBDKIT_TRY(file.read(0, bytes));
  const auto old_at = static_cast<size_t>(load_be<uint64_t>(&bytes[kBackingOffsetField]));
  const size_t old_end = old_at + header.backing_file.size();
  const auto cluster = static_cast<size_t>(header.geometry.cluster_size());
  // Beside the old name, which counts until the sector is written. In the first sector nothing is
  // beside: it is written whole.
  size_t at = std::max(places.end, old_end);
  if (at + name.size() > cluster && places.end + name.size() <= old_at) at = places.end;
  const bool in_sector = cluster == kSectorSize;
  if (in_sector) at = places.end;
  if (at + name.size() > cluster) return unsupported("its header has no room for the name " + name);

  store_be<uint64_t>(&bytes[kBackingOffsetField], at);
  store_be<uint32_t>(&bytes[kBackingLengthField], static_cast<uint32_t>(name.size()));
  store_be<uint32_t>(&bytes[places.format_at + 4], static_cast<uint32_t>(format.size()));
  const auto extension = bytes.subspan(places.format_at + kExtensionHead, places.format_room);
  std::fill(extension.begin(), extension.end(), uint8_t{0});
  std::copy(format.begin(), format.end(), extension.begin());

  FilePatch text{at, {}};
  for (const char c : name) text.bytes.push_back(static_cast<std::byte>(c));
  // The part of the name that shares the sector with the header must be in both writes.
  for (size_t i = 0; i < text.bytes.size() && at + i < kSectorSize; ++i)
    sector[at + i] = text.bytes[i];
  std::vector<FilePatch> patches;
  if (!in_sector) patches.push_back(std::move(text));
  patches.push_back({0, std::move(sector)});
  return patches;
}

Result<std::vector<FilePatch>> plan_no_backing_file(const std::string& path) {
  VBDKIT_ASSIGN(const MetadataFile file, MetadataFile::open(path, ImageFile::Mode::kRead));
  VBDKIT_ASSIGN(const Header header, file.read_header());
  if (header.backing_file.empty()) return unsupported("it has no backing file to be left");
  std::vector<std::byte> sector(kSectorSize);
  const std::span<uint8_t> bytes(reinterpret_cast<uint8_t*>(sector.data()), sector.size());
  VBDKIT_TRY(file.read(0, bytes));
  store_be<uint64_t>(&bytes[kBackingOffsetField], 0);
  store_be<uint32_t>(&bytes[kBackingLengthField], 0);
  // What names its format closes up, where that is the same write; else it says nothing by itself.
  const Places places = find_places(header);
  if (places.format_at != 0 && places.end <= sector.size()) {
    const auto at = sector.begin() + static_cast<ptrdiff_t>(places.format_at);
    const auto gone = static_cast<ptrdiff_t>(kExtensionHead + places.format_room);
    const auto end = sector.begin() + static_cast<ptrdiff_t>(places.end);
    std::fill(std::move(at + gone, end, at), end, std::byte{0});
  }
  return std::vector<FilePatch>{{0, std::move(sector)}};
}

}  // namespace vbdkit::drivers::qcow2
