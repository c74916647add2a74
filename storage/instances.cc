// SPDX-License-Identifier: LGPL-2.1-or-later
#include "storage/instances.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <vector>

#include "storage/instance_argument.h"
#include "storage/table.h"

namespace vbdkit::storage {

namespace {

constexpr size_t kShortUuid = 8;

// As much of a UUID as tells it from its neighbours in the sorted list.
std::string short_uuid(std::span<const InstanceRecord> records, size_t at) {
  const std::string& uuid = records[at].uuid;
  size_t length = std::min(kShortUuid, uuid.size());
  const auto same = [&](size_t other) {
    return records[other].uuid.compare(0, length, uuid, 0, length) == 0;
  };
  while (length < uuid.size() &&
         ((at > 0 && same(at - 1)) || (at + 1 < records.size() && same(at + 1))))
    ++length;
  return uuid.substr(0, length);
}

// The images of all chains, each once.
struct RunningForest {
  struct Node {
    const RegisteredImage* image = nullptr;
    std::vector<size_t> children;
    std::vector<const InstanceRecord*> instances;  // whose leaf it is
  };
  std::vector<Node> nodes;
  std::vector<size_t> roots;

  explicit RunningForest(std::span<const InstanceRecord> records) {
    using Key = std::tuple<uint64_t, uint64_t, std::string>;
    std::map<std::pair<size_t, Key>, size_t> known;  // by parent; roots have kNone
    for (const InstanceRecord& record : records) {
      if (!record.alive) continue;
      size_t parent = kNone;
      for (auto it = record.chain.rbegin(); it != record.chain.rend(); ++it) {
        const Key key(it->device, it->inode, it->device == 0 ? it->path : std::string());
        const auto [found, fresh] = known.try_emplace({parent, key}, nodes.size());
        if (fresh) {
          nodes.push_back({.image = &*it, .children = {}, .instances = {}});
          (parent == kNone ? roots : nodes[parent].children).push_back(found->second);
        }
        parent = found->second;
      }
      if (parent == kNone) {
        roots.push_back(nodes.size());
        nodes.push_back({.image = &in_memory_, .children = {}, .instances = {&record}});
      } else {
        nodes[parent].instances.push_back(&record);
      }
    }
    sort(roots);
    for (Node& node : nodes) sort(node.children);
  }

 private:
  void sort(std::vector<size_t>& siblings) const {
    std::sort(siblings.begin(), siblings.end(),
              [this](size_t a, size_t b) { return nodes[a].image->path < nodes[b].image->path; });
  }

  static constexpr size_t kNone = SIZE_MAX;
  RegisteredImage in_memory_;
};

void draw(const RunningForest& forest, size_t index, const std::string& prefix,
          const std::string& branch, std::string& out) {
  const RunningForest::Node& node = forest.nodes[index];
  const bool in_memory = node.image->path.empty();
  out += prefix + branch;
  out += in_memory ? printable(node.instances.front()->spec) : printable(node.image->path);
  if (!in_memory) out += "  " + node.image->format;
  if (node.image->size != 0) out += ", " + human_size(node.image->size);
  for (const InstanceRecord* instance : node.instances) {
    out += "  [" + instance->uuid.substr(0, kShortUuid) + " " + instance->state;
    if (const std::string users = users_of(*instance); !users.empty()) out += " " + users;
    out += "]";
  }
  out += '\n';
  const std::string below = prefix + (branch.empty() ? "" : branch == "└── " ? "    " : "│   ");
  for (const size_t child : node.children)
    draw(forest, child, below, child == node.children.back() ? "└── " : "├── ", out);
}

Json node_json(const RunningForest& forest, size_t index) {
  const RunningForest::Node& node = forest.nodes[index];
  Json json = Json::object();
  if (!node.image->path.empty()) {
    json["path"] = node.image->path;
    json["format"] = node.image->format;
    json["size"] = node.image->size;
  }
  Json instances = Json::array();
  for (const InstanceRecord* instance : node.instances) instances.push_back(instance->uuid);
  if (!instances.empty()) json["instances"] = std::move(instances);
  Json children = Json::array();
  for (const size_t child : node.children) children.push_back(node_json(forest, child));
  if (!children.empty()) json["children"] = std::move(children);
  return json;
}

}  // namespace

Json to_json(const InstanceRecord& record) {
  Json json = Json::parse(record.json.dump(), nullptr, false);
  if (!json.is_object()) json = Json::object();
  json["uuid"] = record.uuid;
  json["alive"] = record.alive;
  return json;
}

std::string draw_list(std::span<const InstanceRecord> records,
                      const std::vector<std::string>* hosts) {
  std::vector<Table::Column> columns = {
      {"UUID"}, {"STATE"}, {"SIZE", Table::Align::kRight}, {"DISK OF"}, {"IMAGE"}};
  if (hosts != nullptr) columns.insert(columns.begin() + 1, {"HOST"});
  Table table(columns);
  for (size_t i = 0; i < records.size(); ++i) {
    const InstanceRecord& record = records[i];
    std::vector<std::string> cells = {short_uuid(records, i), record.alive ? record.state : "dead",
                                      record.alive ? human_size(record.size) : "", users_of(record),
                                      record.spec};
    if (hosts != nullptr) cells.insert(cells.begin() + 1, (*hosts)[i]);
    table.add(std::move(cells));
  }
  return table.text();
}

std::string draw_running_tree(std::span<const InstanceRecord> records) {
  const RunningForest forest(records);
  std::string out;
  for (const size_t root : forest.roots) draw(forest, root, "", "", out);
  return out;
}

Json running_tree_json(std::span<const InstanceRecord> records) {
  const RunningForest forest(records);
  Json json = Json::array();
  for (const size_t root : forest.roots) json.push_back(node_json(forest, root));
  return json;
}

}  // namespace vbdkit::storage
