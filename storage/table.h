// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Text in columns, as wide as what stands in them. Pure; any thread.
#pragma once

#include <string>
#include <vector>

namespace vbdkit::storage {

class Table {
 public:
  enum class Align { kLeft, kRight };
  struct Column {
    const char* title;
    Align align = Align::kLeft;
  };

  explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

  // As many cells as columns. Control characters are made harmless.
  void add(std::vector<std::string> cells);
  // With its titles; each line ends with "\n".
  std::string text() const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace vbdkit::storage
