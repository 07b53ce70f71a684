// Several callers at once: the pool's turns, and a ledger of pushes against pulls, exports and erasures.
#include <algorithm>
#include <atomic>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

#include "rows.h"
#include "table/store.h"

using namespace satrap;
using namespace satrap::test;

namespace {

TEST(a_pool_runs_every_task_once_for_several_callers_at_once) {
  for (int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    std::vector<std::thread> callers;
    std::atomic<size_t> wrong{0};
    for (int c = 0; c < 3; ++c)
      callers.emplace_back([&] {
        for (size_t round = 0; round < 300; ++round) {
          const size_t n = round % 17;
          std::vector<std::atomic<int>> runs(n);
          pool.run(n, [&](size_t i) { runs[i].fetch_add(1); });
          for (auto& r : runs) wrong += r.load() != 1;
        }
      });
    for (std::thread& t : callers) t.join();
    CHECK_EQUAL(wrong.load(), 0u);
  }
}

TEST(an_exception_in_a_task_reaches_the_caller_and_the_pool_goes_on) {
  for (int threads : {1, 3}) {
    ThreadPool pool(threads);
    for (size_t bad = 0; bad < 8; ++bad) {
      std::string message;
      try {
        pool.run(8, [&](size_t i) {
          if (i == bad) throw std::runtime_error("task " + std::to_string(i));
        });
      } catch (const std::runtime_error& e) {
        message = e.what();
      }
      CHECK(message == "task " + std::to_string(bad));
    }
    std::atomic<int> ran{0};
    pool.run(5, [&](size_t) { ++ran; });
    CHECK_EQUAL(ran.load(), 5);
  }
}

TableSpec ledger_spec(uint32_t dim) {
  TableSpec s = spec_of(dim);
  s.initializer = {InitializerKind::kConstant, 0.0f, 0.0f};
  s.optimizer.lr = 1.0f;
  s.optimizer.weight_decay = 0.0f;
  return s;
}

float total(Table& t) {
  float sum = 0.0f;
  for (uint32_t p = 0; p < t.partitions(); ++p)
    t.visit_ordered(p, [&](uint64_t, const Row& row) {
      float v;
      std::memcpy(&v, row.values, 4);
      sum += v;
    });
  return sum;
}

// Plain SGD with lr 1 and integer gradients is exact in any order. Table 0 keeps all of its rows: what was
// applied must be there to the gradient. Rows of table 1 come and go: there every gradient is either counted
// as applied or as missing. Exports and searches run between them.
TEST(pushes_from_several_threads_are_all_applied_beside_pulls_exports_and_erasures) {
  Store store({ledger_spec(1), ledger_spec(1)}, 3, 3);
  constexpr uint64_t kRows = 3000;
  constexpr int kRounds = 60, kPushers = 3;
  std::vector<uint64_t> ids(kRows);
  for (uint64_t i = 0; i < kRows; ++i) ids[i] = i * 0x9E3779B97F4A7C15ull;
  const TableSpec spec = ledger_spec(1);
  store.pull({Buffers(spec, 0, ids).pull()}, true);
  std::atomic<size_t> applied{0}, missing{0};
  std::atomic<bool> done{false};
  std::atomic<size_t> torn{0};

  std::vector<std::thread> threads;
  for (int k = 0; k < kPushers; ++k)
    threads.emplace_back([&, k] {
      const auto gradient = static_cast<float>(k + 1);
      Buffers kept(spec, 0, ids, gradient), passing(spec, 1, ids, gradient);
      for (int round = 0; round < kRounds; ++round) {
        // Half of the pushes come with what a pull said a moment ago, and much may have happened since.
        const bool pulled = round % 2 == 0;
        if (pulled) store.pull({kept.pull(), passing.pull()}, false);
        const PushResult r = store.push(
            {pulled ? passing.push_pulled() : passing.push(), pulled ? kept.push_pulled() : kept.push()},
            1.0f);
        applied += r.applied;
        missing += r.missing;
        int64_t counted = 0;
        for (int64_t bin : r.staleness) counted += bin;
        if (counted != static_cast<int64_t>(r.applied)) ++torn;
      }
    });
  threads.emplace_back([&] {  // creates rows of table 1, and reads both tables
    Buffers some(spec, 1, {ids.begin(), ids.begin() + kRows / 2}), kept(spec, 0, ids), passing(spec, 1, ids);
    while (!done.load()) {
      store.pull({some.pull()}, true);
      store.pull({kept.pull(), passing.pull()}, false);
    }
  });
  threads.emplace_back([&] {  // erases them again
    for (size_t k = 0; !done.load(); ++k) {
      std::unique_lock lock(store.table(1).mutex());
      for (uint64_t i = k % 7; i < kRows; i += 7) store.table(1).erase(ids[i]);
    }
  });
  threads.emplace_back([&] {  // exports: every push is seen whole, so all rows of table 0 are equal
    while (!done.load()) {
      Table& t = store.table(0);
      std::shared_lock lock(t.mutex());
      float first = 0.0f;
      for (uint32_t p = 0; p < t.partitions(); ++p)
        t.visit_ordered(p, [&](uint64_t, const Row& row) {
          float v;
          std::memcpy(&v, row.values, 4);
          if (first == 0.0f) first = v;
          if (v != first) ++torn;
        });
    }
  });
  for (int k = 0; k < kPushers; ++k) threads[static_cast<size_t>(k)].join();
  done = true;
  for (size_t k = kPushers; k < threads.size(); ++k) threads[k].join();

  CHECK_EQUAL(torn.load(), 0u);
  CHECK_EQUAL(applied.load() + missing.load(), size_t{2} * kRows * kRounds * kPushers);
  CHECK(applied.load() >= size_t{1} * kRows * kRounds * kPushers);
  CHECK_EQUAL(total(store.table(0)), -static_cast<float>(kRows) * kRounds * (1 + 2 + 3));
  check_index(store.table(0));
  check_index(store.table(1));
}

// The same calls with one thread and with four: rows, order and versions to the bit.
TEST(a_store_holds_the_same_bits_for_any_number_of_threads) {
  const std::vector<TableSpec> specs = {spec_of(7, ValueFormat::kFp16, OptimizerKind::kAdam), spec_of(16)};
  std::vector<std::vector<char>> all;
  for (int threads : {1, 4}) {
    std::vector<char> bytes;
    auto append = [&](const auto& array) {
      const char* at = reinterpret_cast<const char*>(array.data());
      bytes.insert(bytes.end(), at, at + array.size() * sizeof array[0]);
    };
    Store store(specs, 2, threads);
    std::mt19937_64 random(4);
    for (int round = 0; round < 6; ++round) {
      std::vector<uint64_t> ids(9000);
      for (uint64_t& id : ids) id = random() % 40000;  // repeated ids in one pull
      Buffers a(specs[0], 0, ids), b(specs[1], 1, ids);
      store.pull({b.pull(), a.pull()}, round % 3 != 2);
      append(a.values);
      append(a.versions);
      append(b.values);
      std::sort(ids.begin(), ids.end());
      ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
      const PushResult r = store.push({Buffers(specs[0], 0, ids, 0.125f).push()}, 0.5f);
      bytes.push_back(static_cast<char>(r.missing));
    }
    Table& t = store.table(0);
    for (uint32_t p = 0; p < t.partitions(); ++p)
      t.visit_ordered(p, [&](uint64_t, const Row& row) {
        const RowLayout& l = t.layout();
        const char* state = reinterpret_cast<const char*>(row.state);
        bytes.push_back(static_cast<char>(*row.version));
        bytes.insert(bytes.end(), row.values, row.values + 2 * l.dim);
        bytes.insert(bytes.end(), state, state + l.state_bytes());
      });
    all.push_back(bytes);
  }
  CHECK(all[0] == all[1]);
}

}  // namespace
