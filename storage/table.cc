// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/table.h"

#include <algorithm>
#include <string_view>

#include "storage/terminal.h"

namespace vbdkit::storage {

void Table::add(std::vector<std::string> cells) {
  for (std::string& cell : cells) cell = printable(cell);
  rows_.push_back(std::move(cells));
}

std::string Table::text() const {
  std::vector<size_t> widths;
  for (size_t i = 0; i < columns_.size(); ++i) {
    size_t width = std::string_view(columns_[i].title).size();
    for (const auto& row : rows_) width = std::max(width, row[i].size());
    widths.push_back(width);
  }
  std::string out;
  const auto put = [&](size_t i, const std::string& cell) {
    const std::string padding(widths[i] - cell.size(), ' ');
    if (i > 0) out += "  ";
    if (columns_[i].align == Align::kRight) out += padding;
    out += cell;
    // No blanks at the end of a line.
    if (columns_[i].align == Align::kLeft && i + 1 < columns_.size()) out += padding;
  };
  for (size_t i = 0; i < columns_.size(); ++i) put(i, columns_[i].title);
  out += '\n';
  for (const auto& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i) put(i, row[i]);
    out += '\n';
  }
  return out;
}

}  // namespace vbdkit::storage
