// Enums whose values have names in the Python interface. No torch header.

#pragma once

// enum class Name { first, second };  constexpr char Name_words[] = "first, second";
#define BIONAS_ENUM(Name, ...)     \
  enum class Name { __VA_ARGS__ }; \
  constexpr char Name##_words[] = #__VA_ARGS__
