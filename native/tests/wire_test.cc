// Rows on the wire: every instruction level against the others, at any address, and nothing outside of the
// rows touched.
#include <cmath>
#include <limits>
#include <random>
#include <span>

#include "check.h"
#include "table/table.h"
#include "wire/rows.h"

using namespace satrap;
using namespace satrap::test;

namespace {

std::span<const WireKernels* const> levels() {
  const WireKernels* const* found;
  const size_t n = wire_kernel_levels(&found);
  return {found, n};
}

constexpr WireFormat kFormats[] = {WireFormat::kFp32, WireFormat::kFp16, WireFormat::kInt8};
constexpr uint32_t kDims[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 200};

// Numbers of all sizes, and now and then one that is a tie, not finite, or not normal.
std::vector<float> numbers(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> out(n);
  for (float& x : out) switch (random() % 8) {
      case 0:
        x = std::bit_cast<float>(static_cast<uint32_t>(random()));
        break;
      case 1:
        x = static_cast<float>(static_cast<int>(random() % 511) - 255) / 2;
        break;
      default:
        x = std::ldexp(static_cast<float>(random() % 4096) - 2048, -static_cast<int>(random() % 20));
    }
  return out;
}

std::vector<char> encoded(const WireKernels& k, WireFormat format, const float* values, const uint32_t* order,
                          size_t rows, uint32_t dim, float scale) {
  std::vector<char> out(section_bytes(format, rows, dim) + 9, '\x55');
  k.encode(format, values, order, rows, dim, scale, out.data() + 1);
  // Bytes before and behind the section are somebody else's.
  CHECK_EQUAL(out[0], '\x55');
  for (size_t i = out.size() - 8; i < out.size(); ++i) CHECK_EQUAL(out[i], '\x55');
  return out;
}

TEST(rows_have_the_same_bytes_and_values_on_every_level_at_an_odd_address) {
  constexpr size_t kRows = 13;
  const std::vector<uint32_t> order = {12, 0, 3, 3, 7};
  for (const uint32_t dim : kDims)
    for (const WireFormat format : kFormats) {
      const std::vector<float> values = numbers(kRows * dim, dim);
      const float scale =
          format == WireFormat::kFp16 ? half_scale(levels()[0]->largest(values.data(), values.size()), 0) : 1;
      for (const uint32_t* picked : {static_cast<const uint32_t*>(nullptr), order.data()}) {
        const size_t rows = picked != nullptr ? order.size() : kRows;
        const std::vector<char> first =
            encoded(*levels()[0], format, values.data(), picked, rows, dim, scale);
        std::vector<float> read(kRows * dim), plain(kRows * dim);
        levels()[0]->decode(format, first.data() + 1, rows, dim, scale, picked, plain.data());
        for (const WireKernels* k : levels()) {
          CHECK(encoded(*k, format, values.data(), picked, rows, dim, scale) == first);
          std::fill(read.begin(), read.end(), 0.0f);
          k->decode(format, first.data() + 1, rows, dim, scale, picked, read.data());
          CHECK_BITS(read.data(), plain.data(), read.size());
        }
      }
    }
}

TEST(the_largest_magnitude_is_the_same_on_every_level_and_never_of_what_is_not_finite) {
  for (size_t n = 0; n < 200; ++n) {
    const std::vector<float> values = numbers(n, static_cast<uint32_t>(n));
    float expected = 0;
    for (float x : values)
      if (std::isfinite(x)) expected = std::max(expected, std::fabs(x));
    for (const WireKernels* k : levels()) {
      const float found = k->largest(values.data(), n);
      CHECK_BITS(&found, &expected, 1);
    }
  }
}

TEST(bytes_are_the_nearest_of_255_steps_and_ties_go_to_the_even_one) {
  // With 127 as the largest a step is 1.
  const std::vector<float> values = {127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -126.5f, 63.49999f, -127, -0.0f};
  const std::vector<int> expected = {127, 0, 2, 2, 0, -2, -126, 63, -127, 0};
  for (const WireKernels* k : levels()) {
    const std::vector<char> out = encoded(*k, WireFormat::kInt8, values.data(), nullptr, 1, 10, 1);
    for (size_t j = 0; j < 10; ++j) CHECK_EQUAL(static_cast<int>(out[5 + j]), expected[j]);
  }
}

TEST(a_byte_never_leaves_its_range_whatever_the_largest_magnitude) {
  std::mt19937 random(3);
  for (int i = 0; i < 20000; ++i) {
    const float most = std::bit_cast<float>(static_cast<uint32_t>(random()) & 0x7FFFFFFFu);
    if (!std::isfinite(most)) continue;
    const std::vector<float> values = {most, -most, most / 2};
    const std::vector<char> out =
        encoded(*levels().back(), WireFormat::kInt8, values.data(), nullptr, 1, 3, 1);
    float scale;
    std::memcpy(&scale, out.data() + 1, 4);
    if (most < 0x1p-118f) {
      CHECK(scale == 0 && out[5] == 0 && out[6] == 0);
    } else {
      CHECK_EQUAL(static_cast<int>(out[5]), 127);
      CHECK_EQUAL(static_cast<int>(out[6]), -127);
      CHECK(std::isnormal(scale) && std::fabs(127 * scale / most - 1) < 1e-6f);
    }
  }
}

TEST(a_half_is_told_when_a_finite_value_does_not_fit_and_only_then) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const WireKernels* k : levels())
    for (const uint32_t dim : kDims)
      for (const float scale : {0x1p-126f, 0x1p-14f, 1.0f, 8.0f, 0x1p111f}) {
        std::vector<float> values(dim, scale);
        std::vector<char> out(section_bytes(WireFormat::kFp16, 1, dim));
        const float below = std::nextafter(65520.0f, 0.0f) * scale;
        for (const auto& [value, fits] : {std::pair(below, true),
                                          {-below, true},
                                          {65520.0f * scale, false},
                                          {-65520.0f * scale, false},
                                          {kInfinity, true},
                                          {std::nanf(""), true}}) {
          values[dim - 1] = value;
          const float most = k->encode(WireFormat::kFp16, values.data(), nullptr, 1, dim, scale, out.data());
          CHECK_EQUAL(most < 65520.0f * scale, fits);
          CHECK_EQUAL(most, k->largest(values.data(), dim));
        }
      }
}

TEST(ids_go_to_the_owner_of_the_partition_a_table_puts_them_in) {
  Arena arena;
  std::mt19937_64 random(1);
  std::vector<uint64_t> ids(5000);
  for (uint64_t& id : ids) id = random() >> (random() % 64);
  for (const int bits : {0, 1, 6, 16}) {
    TableSpec spec;
    spec.dim = 1;
    const Table table(spec, bits, &arena);
    const size_t partitions = size_t{1} << bits, servers = std::min<size_t>(partitions, 5);
    std::vector<uint16_t> owners(partitions);
    for (uint16_t& o : owners) o = static_cast<uint16_t>(random() % servers);
    std::vector<uint32_t> order(ids.size());
    std::vector<int64_t> counts(servers);
    route(ids.data(), ids.size(), bits, owners.data(), servers, order.data(), counts.data());
    size_t at = 0;
    for (size_t s = 0; s < servers; ++s) {
      for (int64_t i = 0; i < counts[s]; ++i, ++at) {
        CHECK_EQUAL(owners[table.partition_of(ids[order[at]])], s);
        CHECK(i == 0 || order[at] > order[at - 1]);
      }
    }
    CHECK_EQUAL(at, ids.size());
  }
}

}  // namespace
