// The names of enum values in the Python interface, as listed by BIONAS_ENUM (cpu/enum.h).

#pragma once

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <string>
#include <vector>

namespace bionas::arguments {

// Splits "first, second" into words.
inline std::vector<std::string> split(const std::string& words) {
  std::vector<std::string> names;
  for (std::size_t begin = 0, end; begin < words.size(); begin = end + 2) {
    end = std::min(words.find(", ", begin), words.size());
    names.push_back(words.substr(begin, end - begin));
  }
  return names;
}

// The enum value of a name.
template <class Enum>
Enum read(const char* argument, const std::string& name, const char* words) {
  const std::vector<std::string> names = split(words);
  const auto found = std::find(names.begin(), names.end(), name);
  STD_TORCH_CHECK(found != names.end(), argument, ": got ", name);
  return Enum(found - names.begin());
}

}  // namespace bionas::arguments
