// Row formats and 8-bit moments: every instruction level against the others, vectors against tails, and what
// a format must keep.
#include <cmath>
#include <random>
#include <span>

#include "rows.h"
#include "table/convert.h"
#include "table/view.h"

using namespace satrap;
using namespace satrap::test;

namespace {

std::span<const Kernels* const> levels() {
  const Kernels* const* found;
  const size_t n = kernel_levels(&found);
  return {found, n};
}

const ValueFormat kFormats[] = {ValueFormat::kFp32, ValueFormat::kFp16, ValueFormat::kBf16,
                                ValueFormat::kInt8};

void push_with(const Kernels& k, const Table& t, const std::vector<uint64_t>& ids, const float* gradients) {
  int64_t staleness[257] = {};
  PushArgs a{};
  a.ids = ids.data();
  a.gradients = gradients;
  a.lr_factor = 1.0f;
  a.adam_bias = t.adam_bias();
  a.staleness = staleness;
  k.push(t.view(), 0, ids.size(), a);
  CHECK_EQUAL(a.applied, ids.size());
}

std::vector<char> contents(const Table& t, uint64_t id) {
  const Row row = t.find(id);
  std::vector<char> out(row.values, row.values + stored_bytes(t.spec().format, t.spec().dim));
  out.insert(out.end(), reinterpret_cast<const char*>(row.state),
             reinterpret_cast<const char*>(row.state) + t.layout().state_bytes());
  return out;
}

// Bug: a vector part that draws, rounds or narrows otherwise than its tail, or than another build's.
TEST(every_format_rounds_to_the_same_bits_on_every_level) {
  const std::vector<uint64_t> ids = {0, 7, ~uint64_t{0}, 1ull << 63, 12345};
  for (uint32_t dim : {1u, 2u, 3u, 7u, 15u, 16u, 17u, 31u, 33u, 63u, 64u, 65u, 128u, 130u, 1001u})
    for (ValueFormat format : kFormats)
      for (Rounding rounding : {Rounding::kNearest, Rounding::kStochastic})
        for (OptimizerKind kind : kKinds)
          for (StateFormat state : {StateFormat::kFp32, StateFormat::kInt8}) {
            const bool adam = kind == OptimizerKind::kAdam || kind == OptimizerKind::kAdamW;
            if (state == StateFormat::kInt8 && !adam) continue;
            TableSpec s = spec_of(dim, format, kind);
            s.rounding = rounding;
            s.optimizer.state = state;
            std::vector<std::vector<char>> first;
            for (const Kernels* k : levels()) {
              Arena arena;
              Table t(s, 2, &arena);
              for (uint64_t id : ids) t.find_or_create(id);
              std::mt19937 random(dim);
              std::normal_distribution<float> normal(0.0f, 0.3f);
              std::vector<float> g(ids.size() * dim);
              for (int step = 0; step < 4; ++step) {
                for (float& x : g) x = normal(random);
                push_with(*k, t, ids, g.data());
              }
              std::vector<std::vector<char>> rows;
              for (uint64_t id : ids) rows.push_back(contents(t, id));
              if (first.empty()) first = rows;
              CHECK(rows == first);
            }
          }
}

// All bit patterns but those fp32 itself keeps: infinities, NaNs, numbers below the normal ones.
TEST(any_bits_are_encoded_to_the_same_bits_on_every_level) {
  std::mt19937 random(5);
  for (uint32_t dim : {1u, 8u, 16u, 37u, 64u})
    for (int round = 0; round < 300; ++round) {
      std::vector<float> row(dim);
      const int kind = round % 3;
      for (float& x : row) {
        x = std::bit_cast<float>(static_cast<uint32_t>(random()));
        if (kind == 0 && !std::isfinite(x)) x = 1.0f;
        if (kind == 1) x = std::ldexp(static_cast<float>(random() % 1024), -130);
      }
      for (ValueFormat format : kFormats) {
        std::vector<char> first, bytes(stored_bytes(format, dim));
        std::vector<float> out(dim), back;
        for (const Kernels* k : levels()) {
          k->encode(format, row.data(), bytes.data(), dim);
          k->decode(format, bytes.data(), out.data(), dim);
          if (first.empty()) first = bytes, back = out;
          CHECK(bytes == first);
          CHECK_BITS(out.data(), back.data(), dim);
        }
        // What is not finite does not become a number.
        bool bad = false, seen = false;
        for (float x : row) bad |= !std::isfinite(x);
        for (float x : out) seen |= !std::isfinite(x);
        if (bad) CHECK(seen);
      }
    }
}

// Bug: rows drift, or lose their scale, by being read and written again.
TEST(what_a_format_has_is_left_as_it_is_by_a_gradient_of_zeros) {
  std::mt19937 random(9);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  for (const Kernels* k : levels())
    for (ValueFormat format : kFormats)
      for (Rounding rounding : {Rounding::kNearest, Rounding::kStochastic})
        for (uint32_t dim : {1u, 5u, 16u, 64u, 100u}) {
          TableSpec s = spec_of(dim, format);
          s.rounding = rounding;
          s.optimizer.weight_decay = 0.0f;
          Arena arena;
          Table t(s, 0, &arena);
          const Row row = t.find_or_create(3);
          std::vector<float> start(dim), zeros(dim);
          for (float& x : start) x = normal(random) * std::ldexp(1.0f, static_cast<int>(random() % 20) - 10);
          k->encode(format, start.data(), row.values, dim);
          push_with(*k, t, {3}, zeros.data());  // a first step may settle the scale of an int8 row
          const std::vector<char> before = contents(t, 3);
          for (int step = 0; step < 300; ++step) push_with(*k, t, {3}, zeros.data());
          CHECK(contents(t, 3) == before);
        }
}

TEST(the_scale_of_an_int8_row_reaches_its_largest_value_and_is_not_much_larger) {
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    const float largest = std::ldexp(1.0f + static_cast<float>(random() % 4096) / 4096.0f,
                                     static_cast<int>(random() % 200) - 100);
    float scale;
    char row[8];
    kernels().encode(ValueFormat::kInt8, &largest, row, 1);
    std::memcpy(&scale, row, 4);
    CHECK(127.0f * scale >= largest * (1 - 0x1p-23f));
    CHECK(127.0f * scale <= largest * 1.1251f);
    CHECK_EQUAL(std::bit_cast<uint32_t>(scale) & 0xFFFFFu, 0u);
  }
}

// Bug: state or version lost, or read from the wrong word, where one side has a word more.
TEST(a_row_converted_there_and_back_is_the_one_it_was_where_nothing_is_lost) {
  for (uint32_t dim : {1u, 7u, 64u, 65u, 130u}) {
    TableSpec full = spec_of(dim, ValueFormat::kFp32, OptimizerKind::kAdam);
    TableSpec small = full;
    small.format = ValueFormat::kInt8;
    small.rounding = Rounding::kStochastic;
    small.optimizer.state = StateFormat::kInt8;
    Arena arena;
    Table t(small, 0, &arena);
    t.find_or_create(3);
    std::mt19937 random(dim);
    std::normal_distribution<float> normal(0.0f, 1.0f);
    std::vector<float> g(dim);
    for (int step = 0; step < 20; ++step) {
      for (float& x : g) x = normal(random);
      push_with(kernels(), t, {3}, g.data());
    }
    const std::vector<char> have = contents(t, 3);
    std::vector<uint8_t> values(stored_bytes(small.format, dim)), wide(4 * dim), again(values.size());
    std::memcpy(values.data(), have.data(), values.size());
    std::vector<float> state(exported_words(small)), wide_state(exported_words(full)),
        state_again(state.size());
    std::memcpy(state.data(), have.data() + values.size(), t.layout().state_bytes());
    state.back() = std::bit_cast<float>(uint32_t{20});
    convert_row(small, full, values.data(), state.data(), wide.data(), wide_state.data());
    CHECK_EQUAL(wide_state.back(), 20.0f);  // Adam's own count
    convert_row(full, small, wide.data(), wide_state.data(), again.data(), state_again.data());
    std::vector<float> a(dim), b(dim);
    kernels().decode(small.format, reinterpret_cast<char*>(values.data()), a.data(), dim);
    kernels().decode(small.format, reinterpret_cast<char*>(again.data()), b.data(), dim);
    float scale;
    std::memcpy(&scale, again.data(), 4);
    for (uint32_t j = 0; j < dim; ++j) CHECK(std::fabs(a[j] - b[j]) <= scale * 0.5f);
    std::vector<float> m(2 * dim + 1), n(2 * dim + 1);
    TableSpec wide_spec = full;
    std::vector<uint8_t> unused(4 * dim);
    convert_row(small, wide_spec, again.data(), state_again.data(), unused.data(), n.data());
    CHECK_BITS(n.data(), wide_state.data(), 2 * dim + 1);
    CHECK_EQUAL(std::bit_cast<uint32_t>(state_again.back()), 0u);
  }
}

}  // namespace
