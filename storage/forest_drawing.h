// SPDX-License-Identifier: LGPL-2.1-or-later
//
// A forest of images as text, as a graph for Graphviz, as a picture, and as JSON. Pure: the same
// forest gives the same drawing. Any thread.
#pragma once

#include <string>

#include "drivers/image_forest.h"
#include "storage/terminal.h"

namespace vbdkit::storage {

// Names are shown relative to `directory` where they are in it.
std::string draw_text(const drivers::ImageForest& forest, const std::string& directory);
std::string draw_dot(const drivers::ImageForest& forest, const std::string& directory);
std::string draw_svg(const drivers::ImageForest& forest, const std::string& directory);
Json draw_json(const drivers::ImageForest& forest);

}  // namespace vbdkit::storage
