// CRC32C against the vectors of RFC 3720 and against itself, bit by bit.
#include <random>
#include <vector>

#include "check.h"
#include "durable/crc32c.h"

using namespace satrap;
using namespace satrap::test;

namespace {

uint32_t bit_by_bit(uint32_t crc, const unsigned char* p, size_t n) {
  crc = ~crc;
  for (size_t i = 0; i < n; ++i) {
    crc ^= p[i];
    for (int k = 0; k < 8; ++k) crc = (crc >> 1) ^ (crc & 1 ? 0x82F63B78u : 0);
  }
  return ~crc;
}

TEST(crc32c_gives_the_published_sums) {
  std::vector<unsigned char> x(32, 0);
  CHECK_EQUAL(crc32c(0, x.data(), 32), 0x8A9136AAu);
  std::fill(x.begin(), x.end(), 0xFF);
  CHECK_EQUAL(crc32c(0, x.data(), 32), 0x62A8AB43u);
  for (int i = 0; i < 32; ++i) x[i] = static_cast<unsigned char>(i);
  CHECK_EQUAL(crc32c(0, x.data(), 32), 0x46DD794Eu);
  CHECK_EQUAL(crc32c(0, "123456789", 9), 0xE3069283u);
  CHECK_EQUAL(crc32c(0, nullptr, 0), 0u);
}

// A stripe forgotten, or joined in the wrong order, shows only beyond three stripes and at their seams.
TEST(crc32c_is_the_same_with_and_without_the_instruction_at_any_length_and_address) {
  std::mt19937 random(1);
  std::vector<unsigned char> x(20000);
  for (auto& b : x) b = static_cast<unsigned char>(random());
  for (size_t n : {0, 1, 7, 8, 9, 63, 1023, 1024, 3071, 3072, 3073, 3080, 6143, 6144, 6145, 9999, 19000})
    for (size_t at : {0, 1, 3, 8}) {
      const uint32_t want = bit_by_bit(5, x.data() + at, n);
      CHECK_EQUAL(crc32c(5, x.data() + at, n), want);
      CHECK_EQUAL(crc32c_portable(5, x.data() + at, n), want);
    }
}

TEST(crc32c_of_parts_is_that_of_the_whole) {
  std::mt19937 random(2);
  std::vector<unsigned char> x(10000);
  for (auto& b : x) b = static_cast<unsigned char>(random());
  for (size_t cut : {0, 1, 5000, 9999, 10000}) {
    const uint32_t first = crc32c(0, x.data(), cut);
    CHECK_EQUAL(crc32c(first, x.data() + cut, x.size() - cut), crc32c(0, x.data(), x.size()));
  }
}

}  // namespace
