// Filling makes the rows that pulls make.
#include <map>
#include <new>
#include <random>

#include "rows.h"

using namespace satrap;
using namespace satrap::test;

namespace {

std::vector<uint64_t> random_ids(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint64_t> ids(n);
  for (uint64_t& id : ids) id = random() % (4 * n);  // some of them twice
  return ids;
}

std::map<uint64_t, std::vector<uint8_t>> contents(Table& t) {
  std::map<uint64_t, std::vector<uint8_t>> rows;
  const size_t bytes = stored_bytes(t.spec().format, t.spec().dim), words = exported_words(t.spec());
  for (uint32_t p = 0; p < t.partitions(); ++p)
    t.visit_ordered(p, [&](uint64_t id, const Row& row) {
      std::vector<float> state(words);
      std::vector<uint8_t>& out = rows[id];
      out.resize(bytes + 4 * words);
      export_row(t.spec(), row, out.data(), state.data());
      if (words != 0) std::memcpy(out.data() + bytes, state.data(), 4 * words);
    });
  return rows;
}

TEST(filling_makes_the_rows_that_pulls_make_and_counts_them) {
  for (ValueFormat format : {ValueFormat::kFp32, ValueFormat::kInt8})
    for (int threads : {1, 3}) {
      const TableSpec spec = spec_of(16, format, OptimizerKind::kRowWiseAdagrad);
      Store filled({spec}, 3, threads), pulled({spec}, 3, 1);
      Buffers some(spec, 0, random_ids(20000, 1));
      pulled.pull({some.pull()}, true);
      const std::vector<uint64_t>& ids = some.ids;
      uint64_t made = filled.fill(0, ids.data(), 5000);
      made += filled.fill(0, ids.data(), ids.size());
      CHECK_EQUAL(made, filled.table(0).size().rows);
      CHECK(contents(filled.table(0)) == contents(pulled.table(0)));
      check_index(filled.table(0));
      CHECK_EQUAL(filled.fill(0, ids.data(), ids.size()), 0u);
      CHECK_EQUAL(filled.fill(0, nullptr, 0), 0u);
    }
}

TEST(filling_leaves_trained_rows_alone) {
  const TableSpec spec = spec_of(4);
  Store store({spec}, 2, 2);
  Buffers some(spec, 0, {1, 2, 3}, 0.5f);
  store.pull({some.pull()}, true);
  store.push({some.push_pulled()}, 1.0f);
  const auto before = contents(store.table(0));
  CHECK_EQUAL(store.fill(0, some.ids.data(), 3), 0u);
  CHECK(contents(store.table(0)) == before);
}

TEST(a_bounded_table_is_filled_to_its_capacity_and_no_further) {
  TableSpec spec = spec_of(2);
  spec.bound.eviction = Eviction::kRecency;
  spec.bound.rows = 1000;
  Store store({spec}, 2, 2);
  std::vector<uint64_t> ids(5000);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = i;
  CHECK_EQUAL(store.fill(0, ids.data(), ids.size()), 5000u);
  Table& table = store.table(0);
  for (uint32_t p = 0; p < table.partitions(); ++p) {
    CHECK(table.rows(p) <= table.share(p));
    CHECK(table.rows(p) >= table.share(p) - table.share(p) / kSlackParts - 1);
  }
  CHECK_EQUAL(table.bound_counts().evicted, 5000u - table.size().rows);
  check_index(table);
}

TEST(out_of_memory_the_rows_made_so_far_stay) {
  const TableSpec spec = spec_of(64);
  Store store({spec}, 2, 2);
  std::vector<uint64_t> ids(200000);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = i;
  store.set_limit(size_t{8} << 20);
  bool refused = false;
  try {
    store.fill(0, ids.data(), ids.size());
  } catch (const std::bad_alloc&) {
    refused = true;
  }
  CHECK(refused);
  CHECK(store.held() <= size_t{8} << 20);
  CHECK(store.table(0).size().rows > 1000);
  check_index(store.table(0));
  store.set_limit(~size_t{0});
  store.fill(0, ids.data(), ids.size());
  CHECK_EQUAL(store.table(0).size().rows, ids.size());
}

}  // namespace
