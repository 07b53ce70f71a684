// Small checks for the native tests: one that fails says where and goes on, and `run_all` counts the tests.
#pragma once
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <string_view>
#include <vector>

namespace satrap::test {

struct Case {
  const char* name;
  void (*body)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

inline bool enter(const char* name, void (*body)()) {
  cases().push_back({name, body});
  return true;
}

// Failed checks of the test that runs. Only the first few are printed: a loop can fail a million times.
inline size_t& failures() {
  static size_t n = 0;
  return n;
}
constexpr size_t kPrinted = 5;

inline bool failed(const char* file, int line) {
  if (failures()++ >= kPrinted) return false;
  std::cerr << "  " << file << ":" << line << ": ";
  return true;
}

template <typename A, typename B>
void check_equal(const A& a, const B& b, const char* what, const char* file, int line) {
  if (a == b) return;
  if (failed(file, line)) std::cerr << what << ": " << +a << " is not " << +b << "\n";
}

// Floats as bits: -0 is not 0, and a NaN equals itself.
inline void check_bits(const float* a, const float* b, size_t n, const char* what, const char* file,
                       int line) {
  for (size_t i = 0; i < n; ++i) {
    if (std::bit_cast<uint32_t>(a[i]) == std::bit_cast<uint32_t>(b[i])) continue;
    if (failed(file, line))
      std::cerr << what << " at " << i << " of " << n << ": " << a[i] << " is not " << b[i] << "\n";
    return;
  }
}

// Runs the tests whose name holds `filter`; returns the number of those that failed.
inline int run_all(std::string_view filter) {
  int passed = 0, bad = 0;
  for (const Case& c : cases()) {
    if (std::string_view(c.name).find(filter) == std::string_view::npos) continue;
    failures() = 0;
    c.body();
    if (failures() == 0) {
      ++passed;
      continue;
    }
    ++bad;
    std::cerr << "FAILED " << c.name << ": " << failures() << " checks\n";
  }
  std::cout << passed << " passed, " << bad << " failed" << std::endl;
  return bad;
}

}  // namespace satrap::test

#define TEST(name)                                                                         \
  static void name();                                                                      \
  static const bool name##_entered [[maybe_unused]] = ::satrap::test::enter(#name, &name); \
  static void name()
#define CHECK(condition)                                            \
  do {                                                              \
    if (!(condition) && ::satrap::test::failed(__FILE__, __LINE__)) \
      std::cerr << #condition << " does not hold\n";                \
  } while (false)
#define CHECK_EQUAL(a, b) ::satrap::test::check_equal(a, b, #a, __FILE__, __LINE__)
#define CHECK_BITS(a, b, n) ::satrap::test::check_bits(a, b, n, #a, __FILE__, __LINE__)
