// SPDX-License-Identifier: LGPL-2.1-or-later
#include "drivers/jobs/coalesce_journal.h"

#include <unistd.h>

#include "drivers/image_forest.h"
#include "drivers/journal_text.h"

namespace vbdkit::drivers {
namespace {

constexpr const char* kFirstLine = "vbdkit-coalesce 1";
constexpr const char* kStages[] = {"copy", "relink", "remove"};

bool parse_line(std::string_view line, CoalesceJournal& journal) {
  JournalLine words(line);
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
  VBDKIT_ASSIGN(const auto text, load_journal(path));
  if (!text) return std::optional<CoalesceJournal>();
  auto journal = parse(*text);
  if (!journal) return std::move(journal).error().context(path);
  return std::optional<CoalesceJournal>(std::move(journal).value());
}

Result<void> CoalesceJournal::save(const std::string& path) const {
  return save_journal(path, to_text());
}

Result<void> CoalesceJournal::begin_anew(const std::string& image) {
  const std::string path = path_for(image);
  VBDKIT_ASSIGN(const auto journal, load(path));
  if (!journal) return {};
  if (journal->stage != Stage::kCopy) return merge_unfinished(image, "its parent");
  if (::unlink(path.c_str()) != 0) return Error::from_errno(errno, "remove " + path);
  return sync_directory(directory_of(path));
}

Error merge_unfinished(const std::string& image, const std::string& parent) {
  return Error(ErrorKind::kBusy,
               image + " is being merged into " + parent +
                   "; that has to be ended first (vbdkit coalesce, or gc)",
               EBUSY);
}

}  // namespace vbdkit::drivers
