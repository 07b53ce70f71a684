// Hints save a search and change nothing: right ones are used, and no wrong one leads a gradient to another
// row.
#include <algorithm>
#include <map>
#include <random>

#include "rows.h"

using namespace satrap;
using namespace satrap::test;

namespace {

TableSpec counting_spec() {
  TableSpec s = spec_of(2);
  s.initializer = {InitializerKind::kConstant, 0.0f, 0.0f};
  s.optimizer.lr = 1.0f;
  s.optimizer.weight_decay = 0.0f;
  return s;
}

std::vector<uint64_t> some_ids(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint64_t> ids(n);
  for (uint64_t& id : ids) id = random();
  return ids;
}

// A store of two like tables, and pushes whose gradient of an id is its place in `ids`, so that a row says
// which gradients reached it.
struct Hinted {
  Hinted() : store({counting_spec(), counting_spec()}, 3, 2), ids(some_ids(5000, 1)), pulled(spec, 0, ids) {
    for (uint32_t t = 0; t < 2; ++t) {
      Buffers all(spec, t, ids);
      store.pull({all.pull()}, true);
    }
    store.pull({pulled.pull()}, true);
  }

  // Pushes to the table under `pulled`'s hints as they are now; every gradient must reach its own row.
  size_t push(uint32_t table, const std::vector<uint64_t>& of) {
    Buffers b(spec, table, of);
    b.hints = pulled.hints;
    for (size_t i = 0; i < of.size(); ++i) {
      b.gradients[2 * i] = b.gradients[2 * i + 1] = static_cast<float>(i % 1000 + 1);
      if (store.table(table).find(of[i])) want[{table, of[i]}] -= static_cast<float>(i % 1000 + 1);
    }
    PushItem item = b.push();
    item.hints = b.hints.data();
    const PushResult r = store.push({item}, 1.0f);
    for (const auto& [row, value] : want) {
      const Row found = store.table(row.first).find(row.second);
      CHECK(bool{found} && values_of(found)[0] == value && values_of(found)[1] == value);
    }
    return r.hinted;
  }

  TableSpec spec = counting_spec();
  Store store;
  std::vector<uint64_t> ids;
  Buffers pulled;
  std::map<std::pair<uint32_t, uint64_t>, float> want;
};

TEST(hints_as_pulled_save_the_search_for_every_row) {
  Hinted h;
  CHECK_EQUAL(h.push(0, h.ids), h.ids.size());
  CHECK_EQUAL(h.push(0, h.ids), h.ids.size());
}

TEST(hints_stay_good_while_rows_are_made_and_the_index_grows) {
  Hinted h;
  Buffers more(h.spec, 0, some_ids(200000, 2));
  h.store.pull({more.pull()}, true);
  CHECK_EQUAL(h.push(0, h.ids), h.ids.size());
}

// A client may name the hints of another pull: rows carry no ids that would tell.
TEST(hints_of_other_ids_are_left_aside) {
  Hinted h;
  std::vector<uint64_t> ids = h.ids;
  std::swap(ids[17], ids[4711]);
  CHECK_EQUAL(h.push(0, ids), 0u);
  ids = h.ids;
  ids[17] ^= uint64_t{1} << 63;
  CHECK_EQUAL(h.push(0, ids), 0u);
  std::reverse(ids.begin(), ids.end());
  CHECK_EQUAL(h.push(0, ids), 0u);
}

TEST(hints_of_another_table_are_left_aside) {
  Hinted h;
  CHECK_EQUAL(h.push(1, h.ids), 0u);
}

TEST(hints_that_were_changed_or_made_up_are_left_aside) {
  Hinted h;
  const std::vector<uint32_t> good = h.pulled.hints;
  h.pulled.hints[100] ^= 1;
  CHECK_EQUAL(h.push(0, h.ids), 0u);
  h.pulled.hints = good;
  h.pulled.hints[h.ids.size()] ^= 1;
  CHECK_EQUAL(h.push(0, h.ids), 0u);
  std::fill(h.pulled.hints.begin(), h.pulled.hints.end(), 0u);
  CHECK_EQUAL(h.push(0, h.ids), 0u);
  std::fill(h.pulled.hints.begin(), h.pulled.hints.end(), ~0u);
  CHECK_EQUAL(h.push(0, h.ids), 0u);
  h.pulled.hints = good;
  CHECK_EQUAL(h.push(0, h.ids), h.ids.size());
}

// The row number of an erased row goes to the next new row of its partition: the old hint would lead there.
TEST(hints_of_a_partition_whose_rows_were_since_erased_are_left_aside_and_no_others) {
  Hinted h;
  Table& t = h.store.table(0);
  CHECK(t.erase(h.ids[42]));
  Buffers fresh(h.spec, 0, some_ids(80, 3));
  h.store.pull({fresh.pull()}, true);
  const auto elsewhere = std::count_if(h.ids.begin(), h.ids.end(), [&](uint64_t id) {
    return t.partition_of(id) != t.partition_of(h.ids[42]);
  });
  CHECK(elsewhere > 4000);
  CHECK_EQUAL(h.push(0, h.ids), static_cast<size_t>(elsewhere));
  // A generation beside the seal that is not the one sealed is no way round it.
  h.pulled.hints[h.ids.size() + 2] += 1;
  CHECK_EQUAL(h.push(0, h.ids), 0u);
}

TEST(hints_of_rows_since_cleared_are_left_aside) {
  Hinted h;
  h.store.table(0).clear();
  Buffers again(h.spec, 0, h.ids);
  std::reverse(again.ids.begin(), again.ids.end());
  h.store.pull({again.pull()}, true);
  CHECK_EQUAL(h.push(0, h.ids), 0u);
}

TEST(a_pull_that_found_some_rows_missing_hints_at_the_others) {
  Hinted h;
  h.ids = some_ids(100, 4);
  h.ids.insert(h.ids.end(), h.pulled.ids.begin(), h.pulled.ids.begin() + 50);
  h.pulled = Buffers(h.spec, 0, h.ids);
  h.store.pull({h.pulled.pull()}, false);
  CHECK_EQUAL(h.push(0, h.ids), 50u);
  Buffers made(h.spec, 0, h.ids);
  h.store.pull({made.pull()}, true);
  // Not hinted at, and there by now: found all the same.
  CHECK_EQUAL(h.push(0, h.ids), 50u);
}

}  // namespace
