// Importing many rows at once leaves what importing them one by one does.
#include <algorithm>
#include <map>
#include <random>

#include "rows.h"

using namespace satrap;
using namespace satrap::test;

namespace {

using Bytes = std::vector<uint8_t>;

// Values and state of every row.
std::map<uint64_t, Bytes> contents(Table& t) {
  std::map<uint64_t, Bytes> rows;
  const size_t bytes = stored_bytes(t.spec().format, t.spec().dim), words = exported_words(t.spec());
  for (uint32_t p = 0; p < t.partitions(); ++p)
    t.visit_ordered(p, [&](uint64_t id, const Row& row) {
      std::vector<float> state(words);
      Bytes& out = rows[id];
      out.resize(bytes + 4 * words);
      export_row(t.spec(), row, out.data(), state.data());
      if (words != 0) std::memcpy(out.data() + bytes, state.data(), 4 * words);
    });
  return rows;
}

// Rows of these ids with random bytes, and the model in which they replace others.
struct Block {
  Block(const TableSpec& spec, std::vector<uint64_t> wanted, std::mt19937_64& random,
        std::map<uint64_t, Bytes>* model)
      : ids(std::move(wanted)), bytes(stored_bytes(spec.format, spec.dim)), words(exported_words(spec)) {
    values.resize(ids.size() * bytes);
    state.resize(ids.size() * words);
    for (uint8_t& v : values) v = static_cast<uint8_t>(random());
    // The last one is a version, of which a row keeps 8 bits.
    for (float& s : state) s = std::bit_cast<float>(static_cast<uint32_t>(random() % 256));
    for (size_t i = 0; i < ids.size(); ++i) {
      Bytes& row = (*model)[ids[i]];
      row.assign(values.begin() + static_cast<long>(i * bytes),
                 values.begin() + static_cast<long>((i + 1) * bytes));
      row.resize(bytes + 4 * words);
      if (words != 0) std::memcpy(row.data() + bytes, state.data() + i * words, 4 * words);
    }
  }
  RowArrays rows() const { return {ids.data(), ids.size(), values.data(), state.data()}; }

  std::vector<uint64_t> ids;
  size_t bytes, words;
  Bytes values;
  std::vector<float> state;
};

std::vector<uint64_t> by_mix(std::vector<uint64_t> ids) {
  std::sort(ids.begin(), ids.end(), [](uint64_t a, uint64_t b) { return mix(a) < mix(b); });
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

std::vector<uint64_t> random_ids(size_t n, uint64_t below, std::mt19937_64& random) {
  std::vector<uint64_t> ids(n);
  for (uint64_t& id : ids) id = random() % below;  // some of them twice
  return ids;
}

TEST(rows_imported_in_any_order_replace_those_there_are_and_the_last_one_of_an_id_stays) {
  std::mt19937_64 random(1);
  for (ValueFormat format : {ValueFormat::kFp32, ValueFormat::kFp16, ValueFormat::kInt8})
    for (OptimizerKind kind : kKinds)
      for (uint32_t dim : {5u, 16u, 32u})
        for (int threads : {1, 3}) {
          TableSpec spec = spec_of(dim, format, kind);
          spec.rounding = format == ValueFormat::kFp32 ? Rounding::kNearest : Rounding::kStochastic;
          Store store({spec}, 3, threads);
          std::map<uint64_t, Bytes> model;
          auto erase_some = [&] {
            for (uint64_t id = 0; id < 3000; id += 7)
              CHECK_EQUAL(store.table(0).erase(id), model.erase(id) != 0);
          };
          const Block first(spec, by_mix(random_ids(2000, 3000, random)), random, &model);
          store.import_rows(0, {first.rows()});
          CHECK(contents(store.table(0)) == model);
          erase_some();
          const Block mixed(spec, random_ids(3000, 6000, random), random, &model);
          const Block few(spec, random_ids(5, 6000, random), random, &model);
          store.import_rows(0, {mixed.rows(), few.rows()});
          CHECK(contents(store.table(0)) == model);
          erase_some();
          const Block again(spec, by_mix(random_ids(4000, 9000, random)), random, &model);
          store.import_rows(0, {again.rows()});
          CHECK(contents(store.table(0)) == model);
          check_index(store.table(0));
        }
}

TEST(partitions_in_several_blocks_are_imported_as_in_one) {
  std::mt19937_64 random(2);
  const TableSpec spec = spec_of(16, ValueFormat::kFp32, OptimizerKind::kAdagrad);
  Store store({spec}, 4, 2);
  std::map<uint64_t, Bytes> model;
  std::vector<std::vector<uint64_t>> parts(16);
  for (uint64_t id : by_mix(random_ids(20000, 1 << 20, random)))
    parts[store.table(0).partition_of(id)].push_back(id);
  std::vector<Block> blocks;
  for (const auto& ids : parts) blocks.emplace_back(spec, ids, random, &model);
  std::vector<RowArrays> rows;
  for (const Block& b : blocks) rows.push_back(b.rows());
  rows.push_back({nullptr, 0, nullptr, nullptr});
  store.import_rows(0, rows);
  CHECK(contents(store.table(0)) == model);
  check_index(store.table(0));
}

TEST(rows_imported_in_their_order_fill_an_index_that_is_as_full_as_any_and_hardly_its_stash) {
  std::mt19937_64 random(3);
  const TableSpec spec = spec_of(4);
  std::map<uint64_t, Bytes> model;
  const Block block(spec, by_mix(random_ids(200000, 1ull << 60, random)), random, &model);
  Store ordered({spec}, 2, 1), reserved({spec}, 2, 1);
  reserved.table(0).reserve_rows(block.ids.size());
  ordered.import_rows(0, {block.rows()});
  for (uint32_t p = 0; p < 4; ++p) {
    const PartitionView &have = ordered.table(0).view().partitions[p],
                        &want = reserved.table(0).view().partitions[p];
    CHECK(have.stash == nullptr || have.stash->rows().size() < have.rows / 1000);
    CHECK(have.chunks <= want.chunks + want.chunks / 20);
    CHECK_EQUAL(have.rows, ordered.table(0).rows(p));
  }
  check_index(ordered.table(0));
}

TEST(an_import_that_runs_out_of_memory_leaves_whole_rows) {
  std::mt19937_64 random(4);
  const TableSpec spec = spec_of(64, ValueFormat::kFp32, OptimizerKind::kRowWiseAdagrad);
  std::map<uint64_t, Bytes> model;
  const Block block(spec, by_mix(random_ids(20000, 1ull << 60, random)), random, &model);
  for (size_t limit = 0; limit < (size_t{6} << 20); limit += size_t{1} << 18) {
    Store store({spec}, 1, 2);
    store.set_limit(limit);
    bool failed = false;
    try {
      store.import_rows(0, {block.rows()});
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    const auto have = contents(store.table(0));
    CHECK_EQUAL(failed, have.size() != model.size());
    for (const auto& [id, row] : have) CHECK(model.at(id) == row);
    check_index(store.table(0));
    store.set_limit(~size_t{0});
    store.import_rows(0, {block.rows()});
    CHECK(contents(store.table(0)) == model);
    check_index(store.table(0));
  }
}

}  // namespace
