// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/jobs/coalesce_journal.h"

#include <unistd.h>

#include <charconv>
#include <cstdio>

#include "drivers/image_forest.h"

namespace vbdkit::drivers {
namespace {

constexpr const char* kFirstLine = "vbdkit-coalesce 1";
constexpr uint64_t kMostBytes = uint64_t{64} << 20;
constexpr const char* kStages[] = {"copy", "relink", "remove"};

template <typename Bytes>
std::string to_hex(const Bytes& bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const auto byte : bytes) {
    const auto value = static_cast<unsigned char>(byte);
    text += kDigits[value >> 4];
    text += kDigits[value & 15];
  }
  return text;
}

std::optional<std::vector<std::byte>> from_hex(std::string_view text) {
  std::vector<std::byte> bytes;
  if (text.size() % 2 != 0) return std::nullopt;
  for (size_t i = 0; i < text.size(); i += 2) {
    uint8_t value = 0;
    const auto [end, error] = std::from_chars(&text[i], &text[i] + 2, value, 16);
    if (error != std::errc() || end != &text[i] + 2) return std::nullopt;
    bytes.push_back(static_cast<std::byte>(value));
  }
  return bytes;
}

// What is in front of the first `end`, which goes with it; all there is without one.
std::string_view take_until(std::string_view& text, char end) {
  const std::string_view taken = text.substr(0, text.find(end));
  text.remove_prefix(std::min(text.size(), taken.size() + 1));
  return taken;
}

// One line's words after the first, each of which must be there and be right. No stream: those
// would bring all locales into the instances.
class Words {
 public:
  explicit Words(std::string_view line) : rest_(line), keyword_(take_until(rest_, ' ')) {}
  std::string_view keyword() const { return keyword_; }

  uint64_t number() {
    const std::string_view word = take_until(rest_, ' ');
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    good_ = good_ && !word.empty() && error == std::errc() && end == word.data() + word.size();
    return value;
  }
  std::vector<std::byte> bytes() {
    auto value = from_hex(take_until(rest_, ' '));
    good_ = good_ && value.has_value();
    return std::move(value).value_or(std::vector<std::byte>());
  }
  std::string text() {
    const auto value = bytes();
    return {reinterpret_cast<const char*>(value.data()), value.size()};
  }
  bool good() const { return good_ && rest_.empty(); }

 private:
  std::string_view rest_;
  std::string_view keyword_;
  bool good_ = true;
};

bool parse_line(std::string_view line, CoalesceJournal& journal) {
  Words words(line);
  if (words.keyword() == "image") {
    journal.image = words.number();
  } else if (words.keyword() == "parent") {
    journal.parent = words.number();
  } else if (words.keyword() == "modified") {
    journal.modified = words.number();
  } else if (words.keyword() == "stage") {
    const uint64_t stage = words.number();
    if (stage >= std::size(kStages)) return false;
    journal.stage = static_cast<CoalesceJournal::Stage>(stage);
  } else if (words.keyword() == "copied") {
    journal.copied = words.number();
  } else if (words.keyword() == "child") {
    CoalesceJournal::Child child;
    child.format = words.text();
    child.path = words.text();
    journal.children.push_back(std::move(child));
  } else if (words.keyword() == "patch" && !journal.children.empty()) {
    FilePatch patch;
    patch.offset = words.number();
    patch.bytes = words.bytes();
    journal.children.back().patches.push_back(std::move(patch));
  } else {
    return false;
  }
  return words.good();
}

}  // namespace

std::string CoalesceJournal::to_text() const {
  std::string text = std::string(kFirstLine) + "\n";
  const auto add = [&](const char* key, uint64_t value) {
    text += std::string(key) + " " + std::to_string(value) + "\n";
  };
  add("image", image);
  add("parent", parent);
  add("modified", modified);
  add("stage", static_cast<uint64_t>(stage));
  add("copied", copied);
  for (const Child& child : children) {
    text += "child " + to_hex(child.format) + " " + to_hex(child.path) + "\n";
    for (const FilePatch& patch : child.patches)
      text += "patch " + std::to_string(patch.offset) + " " + to_hex(patch.bytes) + "\n";
  }
  return text;
}

Result<CoalesceJournal> CoalesceJournal::parse(const std::string& text) {
  CoalesceJournal journal;
  std::string_view rest = text;
  std::string_view line = take_until(rest, '\n');
  bool good = line == kFirstLine;
  while (good && !rest.empty()) {
    line = take_until(rest, '\n');
    good = parse_line(line, journal);
  }
  if (!good)
    return Error(ErrorKind::kCorrupt,
                 "not the journal of a coalesce: '" + std::string(line.substr(0, 80)) + "'");
  return journal;
}

Result<std::optional<CoalesceJournal>> CoalesceJournal::load(const std::string& path) {
  const auto file = ImageFile::open(path, ImageFile::Mode::kRead);
  if (!file && file.error().sys_errno() == ENOENT) return std::optional<CoalesceJournal>();
  if (!file) return file.error();
  VBDKIT_ASSIGN(const Bytes size, file->size());
  if (size.v > kMostBytes) return Error(ErrorKind::kCorrupt, path + ": too long for a journal");
  std::string text(size.v, '\0');
  VBDKIT_TRY(file->read(0, std::as_writable_bytes(std::span(text))));
  auto journal = parse(text);
  if (!journal) return std::move(journal).error().context(path);
  return std::optional<CoalesceJournal>(std::move(journal).value());
}

Result<void> CoalesceJournal::save(const std::string& path) const {
  const std::string fresh = path + ".new";
  ::unlink(fresh.c_str());
  {
    VBDKIT_ASSIGN(ImageFile file, ImageFile::open(fresh, ImageFile::Mode::kCreate));
    const std::string text = to_text();
    VBDKIT_TRY(file.write(0, std::as_bytes(std::span(text))));
    VBDKIT_TRY(file.flush());
  }
  if (::rename(fresh.c_str(), path.c_str()) != 0)
    return Error::from_errno(errno, "rename " + fresh + " to " + path);
  return sync_directory(directory_of(path));
}

Result<void> CoalesceJournal::begin_anew(const std::string& image) {
  const std::string path = path_for(image);
  VBDKIT_ASSIGN(const auto journal, load(path));
  if (!journal) return {};
  if (journal->stage != Stage::kCopy)
    return Error(ErrorKind::kBusy,
                 image +
                     " is being merged into its parent; that has to be ended first (vbdkit "
                     "coalesce, or gc)",
                 EBUSY);
  if (::unlink(path.c_str()) != 0) return Error::from_errno(errno, "remove " + path);
  return sync_directory(directory_of(path));
}

}  // namespace vbdkit::drivers
