// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/forest_drawing.h"

#include <algorithm>
#include <filesystem>
#include <functional>

namespace vbdkit::storage {
namespace {

using drivers::ForestImage;
using drivers::ImageForest;

std::string name_of(const ForestImage& image, const std::string& directory) {
  namespace fs = std::filesystem;
  const std::string path = fs::path(image.path).lexically_normal().string();
  const std::string inside =
      fs::path(path).lexically_relative(fs::path(directory).lexically_normal()).string();
  return printable(inside.empty() || inside.starts_with("..") ? path : inside);
}

std::string details_of(const ForestImage& image) {
  if (image.missing) return image.facts.format;
  std::string text = image.facts.format;
  if (image.facts.size.v != 0)
    text += ", " + human_size(image.facts.size.v) + ", " + human_size(image.facts.allocated.v) +
            " allocated";
  return text;
}

// Calls `visit` for each image with its depth, parents first.
using Visit = std::function<void(size_t image, size_t depth)>;
void walk(const ImageForest& forest, const Visit& visit) {
  struct Step {
    size_t image;
    size_t depth;
  };
  std::vector<Step> todo;
  for (auto it = forest.roots().rbegin(); it != forest.roots().rend(); ++it)
    todo.push_back({*it, 0});
  while (!todo.empty()) {
    const Step step = todo.back();
    todo.pop_back();
    visit(step.image, step.depth);
    const auto& children = forest.images()[step.image].children;
    for (auto it = children.rbegin(); it != children.rend(); ++it)
      todo.push_back({*it, step.depth + 1});
  }
}

// Characters, as far as a terminal with UTF-8 shows one for each code point.
size_t columns_of(std::string_view text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) >> 6) != 2; }));
}

std::string escape_xml(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else
      out += c;
  }
  return out;
}

std::string escape_dot(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

// The middle of a long name says least.
std::string shorten(const std::string& text, size_t most) {
  if (columns_of(text) <= most || text.size() <= most) return text;
  const auto continues = [&](size_t at) {
    return at < text.size() && (static_cast<unsigned char>(text[at]) >> 6) == 2;
  };
  size_t head = most / 2;
  size_t tail = text.size() - (most / 2 - 1);
  while (continues(head)) --head;
  while (continues(tail)) ++tail;
  return text.substr(0, head) + "…" + text.substr(tail);
}

constexpr int kBoxWidth = 250;
constexpr int kBoxHeight = 40;
constexpr int kColumn = 300;
constexpr int kRow = 54;
constexpr int kMargin = 12;
constexpr size_t kBoxCharacters = 34;

struct Place {
  int x = 0;
  int y = 0;
};

// Leaves get a row each, parents stand in the middle of their children.
std::vector<Place> arrange(const ImageForest& forest, Place& extent) {
  std::vector<Place> places(forest.images().size());
  std::vector<size_t> order;
  int row = 0;
  walk(forest, [&](size_t image, size_t depth) {
    order.push_back(image);
    places[image].x = kMargin + static_cast<int>(depth) * kColumn;
    if (forest.images()[image].children.empty()) places[image].y = kMargin + row++ * kRow;
    extent.x = std::max(extent.x, places[image].x + kBoxWidth + kMargin);
  });
  for (auto it = order.rbegin(); it != order.rend(); ++it) {
    const auto& children = forest.images()[*it].children;
    if (!children.empty())
      places[*it].y = (places[children.front()].y + places[children.back()].y) / 2;
  }
  extent.y = 2 * kMargin + std::max(0, row - 1) * kRow + kBoxHeight;
  return places;
}

std::string number(int n) { return std::to_string(n); }

}  // namespace

std::string draw_text(const ImageForest& forest, const std::string& directory) {
  struct Line {
    std::string name;
    const ForestImage* image;
  };
  std::vector<Line> lines;
  std::vector<bool> last;  // by depth: whether no sibling follows
  walk(forest, [&](size_t index, size_t depth) {
    const ForestImage& image = forest.images()[index];
    last.resize(depth);
    std::string head;
    for (size_t i = 1; i < depth; ++i) head += last[i] ? "    " : "│   ";
    if (depth > 0) {
      const bool is_last = forest.images()[image.parent].children.back() == index;
      head += is_last ? "└── " : "├── ";
      last.push_back(is_last);
    } else {
      last.push_back(true);
    }
    lines.push_back({head + name_of(image, directory), &image});
  });
  size_t width = 0;
  for (const Line& line : lines) width = std::max(width, columns_of(line.name));
  std::string text;
  for (const Line& line : lines) {
    text += line.name + std::string(width - columns_of(line.name) + 2, ' ');
    text += details_of(*line.image);
    if (!line.image->problem.empty()) text += "  !! " + printable(line.image->problem);
    text += '\n';
  }
  return text;
}

std::string draw_dot(const ImageForest& forest, const std::string& directory) {
  std::string text =
      "digraph images {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];\n";
  std::string edges;
  walk(forest, [&](size_t index, size_t) {
    const ForestImage& image = forest.images()[index];
    text += "  i" + std::to_string(index) + " [label=\"" + escape_dot(name_of(image, directory)) +
            "\\n" + escape_dot(details_of(image));
    if (!image.problem.empty()) text += "\\n" + escape_dot(printable(image.problem));
    text += image.problem.empty() ? "\"];\n" : "\", color=red];\n";
    if (image.parent != ForestImage::kNone)
      edges += "  i" + std::to_string(image.parent) + " -> i" + std::to_string(index) + ";\n";
  });
  return text + edges + "}\n";
}

std::string draw_svg(const ImageForest& forest, const std::string& directory) {
  Place extent;
  const std::vector<Place> places = arrange(forest, extent);
  std::string svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" + number(extent.x) +
                    "\" height=\"" + number(extent.y) +
                    "\" font-family=\"sans-serif\" font-size=\"12\">\n"
                    "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n";
  walk(forest, [&](size_t index, size_t) {
    const ForestImage& image = forest.images()[index];
    if (image.parent == ForestImage::kNone) return;
    const Place from{places[image.parent].x + kBoxWidth, places[image.parent].y + kBoxHeight / 2};
    const Place to{places[index].x, places[index].y + kBoxHeight / 2};
    const int middle = (from.x + to.x) / 2;
    svg += "<path d=\"M" + number(from.x) + " " + number(from.y) + " C" + number(middle) + " " +
           number(from.y) + " " + number(middle) + " " + number(to.y) + " " + number(to.x) + " " +
           number(to.y) + "\" fill=\"none\" stroke=\"#888\"/>\n";
  });
  walk(forest, [&](size_t index, size_t) {
    const ForestImage& image = forest.images()[index];
    const Place& place = places[index];
    const std::string name = name_of(image, directory);
    const bool sound = image.problem.empty();
    svg += "<g><title>" + escape_xml(name + (sound ? "" : ": " + printable(image.problem))) +
           "</title>";
    svg += "<rect x=\"" + number(place.x) + "\" y=\"" + number(place.y) + "\" width=\"" +
           number(kBoxWidth) + "\" height=\"" + number(kBoxHeight) + "\" rx=\"4\" fill=\"" +
           (sound ? "#eef4fb" : "#fdecea") + "\" stroke=\"" + (sound ? "#4a78a8" : "#b3261e") +
           "\"/>";
    svg += "<text x=\"" + number(place.x + 8) + "\" y=\"" + number(place.y + 16) +
           "\" font-weight=\"bold\">" + escape_xml(shorten(name, kBoxCharacters)) + "</text>";
    svg += "<text x=\"" + number(place.x + 8) + "\" y=\"" + number(place.y + 32) + "\">" +
           escape_xml(sound ? details_of(image) : shorten(printable(image.problem), 38)) +
           "</text></g>\n";
  });
  return svg + "</svg>\n";
}

Json draw_json(const ImageForest& forest) {
  // Children first, so that each tree is complete when its parent takes it.
  std::vector<size_t> order;
  walk(forest, [&](size_t index, size_t) { order.push_back(index); });
  std::vector<Json> trees(forest.images().size());
  for (auto it = order.rbegin(); it != order.rend(); ++it) {
    const ForestImage& image = forest.images()[*it];
    Json tree = {{"path", image.path}, {"format", image.facts.format}};
    if (!image.missing && image.facts.size.v != 0) tree = to_json(image.facts, image.path);
    if (!image.problem.empty()) tree["problem"] = image.problem;
    tree["children"] = Json::array();
    for (const size_t child : image.children) tree["children"].push_back(std::move(trees[child]));
    trees[*it] = std::move(tree);
  }
  Json roots = Json::array();
  for (const size_t root : forest.roots()) roots.push_back(std::move(trees[root]));
  return roots;
}

}  // namespace vbdkit::storage
