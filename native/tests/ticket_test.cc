// Tickets: unique ids and the way back, pooling and its gradient, on every level and any number of threads.
#include "table/ticket.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <span>
#include <unordered_map>

#include "check.h"

using namespace satrap;
using namespace satrap::test;

namespace {

// One feature with arrays of its own.
struct Bag {
  std::vector<uint64_t> ids;
  std::vector<int64_t> offsets;
  std::vector<float> weights;
  TicketFeature feature;
};

struct Shape {
  uint32_t table, dim;
  uint8_t pooling;
  uint32_t length;  // 0: pooled
  bool jagged, weighted;
};

// A batch of random bags: empty ones, repeated ids in one bag, ids that several features share.
std::vector<Bag> random_batch(const std::vector<Shape>& shapes, size_t samples, uint64_t seed,
                              size_t* width) {
  std::mt19937_64 random(seed);
  std::vector<Bag> bags(shapes.size());
  *width = 0;
  for (size_t f = 0; f < shapes.size(); ++f) {
    const Shape& s = shapes[f];
    Bag& bag = bags[f];
    bag.offsets = {0};
    for (size_t b = 0; b < samples; ++b) {
      const uint64_t n = s.jagged ? random() % 5 : 1;
      for (uint64_t k = 0; k < n; ++k) bag.ids.push_back(random() % 3 == 0 ? random() % 4 : random() % 1000);
      bag.offsets.push_back(static_cast<int64_t>(bag.ids.size()));
    }
    for (size_t k = 0; k < bag.ids.size(); ++k)
      bag.weights.push_back(static_cast<float>(random() % 9) * 0.25f - 0.75f);
    bag.feature = {s.table,
                   bag.ids.data(),
                   bag.ids.size(),
                   s.jagged ? bag.offsets.data() : nullptr,
                   s.weighted ? bag.weights.data() : nullptr,
                   s.pooling,
                   s.dim,
                   *width,
                   s.length};
    if (s.length == 0) *width += s.dim;
  }
  return bags;
}

std::vector<TicketFeature> features_of(const std::vector<Bag>& bags) {
  std::vector<TicketFeature> out;
  for (const Bag& b : bags) out.push_back(b.feature);
  return out;
}

std::vector<float> random_floats(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(n);
  for (float& x : out) x = normal(random);
  return out;
}

const std::vector<Shape> kShapes = {
    {0, 16, 0, 0, false, false}, {0, 16, 1, 0, true, false}, {1, 5, 2, 0, true, true},
    {1, 5, 1, 0, true, true},    {2, 64, 0, 0, true, true},  {2, 64, 0, 3, true, false},
    {1, 5, 0, 2, true, false},   {0, 16, 2, 0, false, true}, {0, 16, 0, 4, false, false},
};
const uint32_t kTables = 4;  // the last one is not used by any feature

// All that pool and unpool write, for one batch.
struct Result {
  std::vector<std::vector<uint64_t>> unique;
  std::vector<float> pooled;
  std::vector<std::vector<float>> sequences, gradients;
  std::vector<std::vector<uint8_t>> masks;
  bool operator==(const Result&) const = default;
};

Result run(const std::vector<Bag>& bags, const std::vector<Shape>& shapes, size_t samples, size_t width,
           int threads) {
  ThreadPool pool(threads);
  const Ticket ticket(features_of(bags), kTables, samples, pool);
  Result r;
  uint32_t dims[kTables] = {};
  for (const Shape& s : shapes) dims[s.table] = s.dim;
  std::vector<std::vector<float>> rows;
  std::vector<const float*> row_pointers;
  for (uint32_t t = 0; t < kTables; ++t) {
    r.unique.push_back(ticket.unique(t));
    rows.push_back(random_floats(ticket.unique(t).size() * dims[t], 100 + t));
    r.gradients.emplace_back(ticket.unique(t).size() * dims[t], NAN);
  }
  for (const auto& x : rows) row_pointers.push_back(x.data());
  r.pooled.assign(samples * width, NAN);
  std::vector<std::vector<float>> sequence_gradients;
  std::vector<float*> sequences, gradients;
  std::vector<uint8_t*> masks;
  std::vector<const float*> from;
  for (const Shape& s : shapes) {
    if (s.length == 0) continue;
    r.sequences.emplace_back(samples * s.length * s.dim, NAN);
    r.masks.emplace_back(samples * s.length, uint8_t{9});
    sequence_gradients.push_back(random_floats(samples * s.length * s.dim, r.sequences.size()));
  }
  for (auto& x : r.sequences) sequences.push_back(x.data());
  for (auto& x : r.masks) masks.push_back(x.data());
  for (auto& x : r.gradients) gradients.push_back(x.data());
  for (auto& x : sequence_gradients) from.push_back(x.data());
  ticket.pool(row_pointers, r.pooled.data(), width, sequences, masks, pool);
  const std::vector<float> gradient = random_floats(samples * width, 55);
  ticket.unpool(gradient.data(), width, from, gradients, pool);
  return r;
}

TEST(unique_ids_come_in_order_of_first_occurrence_over_all_features_of_a_table) {
  for (size_t samples : {size_t{0}, size_t{1}, size_t{700}}) {
    size_t width = 0;
    const std::vector<Bag> bags = random_batch(kShapes, samples, samples, &width);
    ThreadPool pool(2);
    const Ticket ticket(features_of(bags), kTables, samples, pool);
    std::vector<std::vector<uint64_t>> want(kTables);
    for (size_t f = 0; f < bags.size(); ++f)
      for (uint64_t id : bags[f].ids) {
        auto& u = want[kShapes[f].table];
        if (std::find(u.begin(), u.end(), id) == u.end()) u.push_back(id);
      }
    for (uint32_t t = 0; t < kTables; ++t) CHECK(ticket.unique(t) == want[t]);
  }
}

TEST(pooling_and_its_gradient_have_the_same_bits_for_any_number_of_threads) {
  for (size_t samples : {size_t{0}, size_t{1}, size_t{13}, size_t{255}, size_t{257}, size_t{1500}}) {
    size_t width = 0;
    const std::vector<Bag> bags = random_batch(kShapes, samples, samples, &width);
    const Result one = run(bags, kShapes, samples, width, 1);
    for (float x : one.pooled) CHECK(!std::isnan(x));  // every element was written
    for (const auto& g : one.gradients)
      for (float x : g) CHECK(!std::isnan(x));
    for (int threads : {2, 3, 5}) CHECK(run(bags, kShapes, samples, width, threads) == one);
  }
}

// A table much larger than the others is cut by columns; the cut must not reach beyond its columns.
TEST(a_gradient_cut_by_columns_equals_the_whole_one) {
  for (uint32_t dim : {1u, 7u, 8u, 9u, 16u, 17u, 24u, 31u, 33u, 100u, 128u, 1000u}) {
    const std::vector<Shape> shapes = {
        {1, dim, 1, 0, true, true}, {1, dim, 0, 0, false, false}, {1, dim, 0, 3, true, false}};
    size_t width = 0;
    const std::vector<Bag> bags = random_batch(shapes, 64, dim, &width);
    const Result one = run(bags, shapes, 64, width, 1);
    for (int threads : {2, 3, 7}) CHECK(run(bags, shapes, 64, width, threads) == one);
  }
}

// ---- the kernels themselves

std::span<const Kernels* const> levels() {
  const Kernels* const* found;
  const size_t n = kernel_levels(&found);
  return {found, n};
}

double weight(const FeatureView& f, int64_t k) { return f.weights == nullptr ? 1.0 : f.weights[k]; }

double scale(const FeatureView& f, int64_t first, int64_t last) {
  double total = 0.0;
  for (int64_t k = first; k < last; ++k) total += f.pooling == 1 ? weight(f, k) : weight(f, k) * weight(f, k);
  if (f.pooling == 0) return 1.0;
  if (total == 0.0) return 0.0;
  return f.pooling == 1 ? 1.0 / total : 1.0 / std::sqrt(total);
}

TEST(pooling_has_the_same_bits_on_every_level_and_the_value_of_its_formula) {
  constexpr size_t kSamples = 37, kUnique = 50;
  std::mt19937_64 random(9);
  for (uint32_t dim : {1u, 3u, 8u, 16u, 20u, 32u, 48u, 64u, 100u, 257u})
    for (uint8_t pooling : {0, 1, 2})
      for (int kind = 0; kind < 4; ++kind) {
        std::vector<int32_t> positions;
        std::vector<int64_t> offsets = {0};
        for (size_t b = 0; b < kSamples; ++b) {
          const uint64_t n = (kind & 1) != 0 ? random() % 4 : 1;
          for (uint64_t k = 0; k < n; ++k) positions.push_back(static_cast<int32_t>(random() % kUnique));
          offsets.push_back(static_cast<int64_t>(positions.size()));
        }
        std::vector<float> weights;
        for (size_t k = 0; k < positions.size(); ++k)
          weights.push_back(0.5f + static_cast<float>(random() % 5));
        const size_t column = 3, width = column + dim + 2;
        const FeatureView f{positions.data(),
                            (kind & 1) != 0 ? offsets.data() : nullptr,
                            (kind & 2) != 0 ? weights.data() : nullptr,
                            pooling,
                            dim,
                            column};
        const std::vector<float> rows = random_floats(kUnique * dim, dim),
                                 grad = random_floats(kSamples * width, 4);
        std::vector<double> want(kSamples * width, 7.0), want_rows(kUnique * dim, 0.25);
        for (size_t b = 0; b < kSamples; ++b) {
          const double s = scale(f, offsets[b], offsets[b + 1]);
          for (uint32_t j = 0; j < dim; ++j) {
            double sum = 0.0;
            for (int64_t k = offsets[b]; k < offsets[b + 1]; ++k) {
              const size_t at = static_cast<size_t>(positions[static_cast<size_t>(k)]) * dim + j;
              sum += weight(f, k) * rows[at];
              want_rows[at] += weight(f, k) * s * grad[b * width + column + j];
            }
            want[b * width + column + j] = sum * s;
          }
        }
        std::vector<float> first, first_rows;
        for (const Kernels* k : levels()) {
          // Columns that are not this feature's stay as they are.
          std::vector<float> out(kSamples * width, 7.0f), summed(kUnique * dim, 0.25f);
          k->pool(f, rows.data(), 0, 20, out.data(), width);
          k->pool(f, rows.data(), 20, kSamples, out.data(), width);
          for (size_t i = 0; i < out.size(); ++i) CHECK(std::fabs(out[i] - want[i]) < 1e-5);
          k->unpool(f, grad.data(), kSamples, width, summed.data(), 0, dim);
          for (size_t i = 0; i < summed.size(); ++i) CHECK(std::fabs(summed[i] - want_rows[i]) < 3e-5);
          if (first.empty()) first = out, first_rows = summed;
          CHECK_BITS(out.data(), first.data(), out.size());
          CHECK_BITS(summed.data(), first_rows.data(), summed.size());
        }
      }
}

TEST(repeated_ids_are_noticed_and_distinct_ones_are_not) {
  std::mt19937_64 random(2);
  for (size_t n : {size_t{0}, size_t{1}, size_t{2}, size_t{9}, size_t{1000}, size_t{70000}}) {
    std::vector<uint64_t> ids(n);
    for (size_t i = 0; i < n; ++i) ids[i] = i % 2 != 0 ? i << 40 : i;  // ids that differ in high bits only
    CHECK(!has_duplicates(ids.data(), n));
    if (n < 2) continue;
    ids[n - 1] = ids[random() % (n - 1)];
    CHECK(has_duplicates(ids.data(), n));
  }
}

}  // namespace
