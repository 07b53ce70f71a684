// Tables whose rows are mostly on disk, against tables that hold them all: nobody can tell one from the
// other.
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <thread>

#include "rows.h"
#include "table/cold_index.h"

using namespace satrap;
using namespace satrap::test;

namespace {

std::string folder() { return std::filesystem::temp_directory_path().string(); }

TableSpec cold_spec(TableSpec s, uint64_t memory_rows, Eviction how = Eviction::kRecency) {
  s.bound.eviction = how;
  s.bound.rows = memory_rows;
  return s;
}

// The file of the only store with cold rows: it has no name, and is found among what this process has open.
int cold_file() {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code ignored;
    const std::string to = std::filesystem::read_symlink(entry.path(), ignored).string();
    if (to.rfind(folder(), 0) == 0 && to.find("(deleted)") != std::string::npos)
      return std::stoi(entry.path().filename().string());
  }
  return -1;
}

using Content = std::map<uint64_t, std::pair<std::vector<uint8_t>, std::vector<float>>>;

Content content(Table& t) {
  Content out;
  for (uint32_t p = 0; p < t.partitions(); ++p) {
    uint64_t last = 0, rows = 0;
    t.visit_ordered(p, [&](uint64_t id, const Row& row) {
      CHECK(rows == 0 || mix(id) > last);
      last = mix(id), ++rows;
      std::vector<uint8_t> values(stored_bytes(t.spec().format, t.spec().dim));
      std::vector<float> state(exported_words(t.spec()));
      export_row(t.spec(), row, values.data(), state.data());
      CHECK(out.emplace(id, std::make_pair(values, state)).second);
    });
    CHECK_EQUAL(rows, t.rows(p));
  }
  return out;
}

void check_same(Table& a, Table& b) {
  const Content x = content(a), y = content(b);
  CHECK_EQUAL(x.size(), y.size());
  for (const auto& [id, row] : y) {
    const auto it = x.find(id);
    CHECK(it != x.end());
    if (it == x.end()) continue;
    CHECK(it->second.first == row.first);
    CHECK_BITS(it->second.second.data(), row.second.data(), row.second.size());
  }
}

std::vector<uint64_t> some_ids(std::mt19937_64& random, uint64_t below, size_t most) {
  std::vector<uint64_t> ids;
  std::unordered_set<uint64_t> seen;
  for (size_t n = 1 + random() % most; ids.size() < n;) {
    // Small ids come more often.
    const uint64_t id = random() % (1 + random() % below);
    if (seen.insert(id).second)
      ids.push_back(id);
    else if (seen.size() == below)
      break;
  }
  return ids;
}

// The same calls to a table with a cold tier and to one without: the same answers, and at the end the same
// rows.
void train_both(const TableSpec& spec, uint64_t memory_rows, Eviction how, int threads, size_t ids,
                size_t batch, int steps) {
  Store cold({cold_spec(spec, memory_rows, how)}, 2, threads), plain({spec}, 2, threads);
  cold.open_cold(0, folder(), "t");
  std::mt19937_64 random(memory_rows * 7 + spec.dim);
  std::vector<Buffers> outstanding[2];
  bool erased = false;
  for (int step = 0; step < steps; ++step) {
    const std::vector<uint64_t> wanted = some_ids(random, ids, batch);
    Buffers a(spec, 0, wanted, 0.5f), b(spec, 0, wanted, 0.5f);
    for (size_t i = 0; i < a.gradients.size(); ++i)
      a.gradients[i] = b.gradients[i] = static_cast<float>(static_cast<int>(random() % 9) - 4) / 8;
    const bool create = random() % 4 != 0;
    if (random() % 2) cold.prefetch(0, a.ids.data(), a.ids.size());
    cold.pull({a.pull()}, create);
    plain.pull({b.pull()}, create);
    CHECK_BITS(a.values.data(), b.values.data(), a.values.size());
    CHECK(a.versions == b.versions);
    if (create) {
      outstanding[0].push_back(std::move(a));
      outstanding[1].push_back(std::move(b));
    }
    // Pushes lag a few pulls behind: their rows may have gone cold again.
    while (outstanding[0].size() > random() % 5) {
      const PushResult x = cold.push({outstanding[0].front().push_pulled()}, 1.0f, 1),
                       y = plain.push({outstanding[1].front().push_pulled()}, 1.0f, 1);
      CHECK_EQUAL(x.applied, y.applied);
      CHECK_EQUAL(x.missing, y.missing);
      // Of rows that were erased, and may have been made again, the older updates are not told alike.
      if (!erased) CHECK(std::equal(x.staleness, x.staleness + 257, y.staleness));
      for (auto& o : outstanding) o.erase(o.begin());
    }
    if (step > steps / 2 && random() % 8 == 0 && (erased = true))
      for (uint64_t id : some_ids(random, ids, 4))
        CHECK_EQUAL(cold.table(0).erase(id), plain.table(0).erase(id));
  }
  check_same(cold.table(0), plain.table(0));
  const ColdCounts c = cold.table(0).cold()->counts();
  CHECK_EQUAL(
      c.rows + 0, cold.table(0).size().rows - [&] {
        uint64_t hot = 0;
        for (uint32_t p = 0; p < 4; ++p) hot += cold.table(0).rows(p) - cold.table(0).cold()->rows(p);
        return hot;
      }());
  if (memory_rows * 2 < ids) CHECK(c.rows > 0 && c.returned > 0 && c.written > c.returned);
}

}  // namespace

TEST(an_index_of_cold_rows_finds_what_a_multimap_finds_as_it_grows_and_shrinks) {
  for (int bits : {0, 6}) {
    Arena arena;
    ColdIndex index;
    index.configure(&arena, bits);
    std::unordered_multimap<uint64_t, uint32_t> model;
    std::mt19937_64 random(3);
    const uint64_t part = bits == 0 ? 0 : uint64_t{5} << (64 - bits);
    std::vector<std::pair<uint64_t, uint32_t>> there;
    for (uint32_t step = 0; step < 150000; ++step) {
      // Half of them in one narrow range, so that buckets overflow; some x twice.
      uint64_t h = bits == 0 ? random() : part | random() >> bits;
      if (random() % 2) h = part | ((h & 0xFFFFFFFFFFull) << 12) >> bits;
      if (!there.empty() && random() % 8 == 0) h = there[random() % there.size()].first;
      if (random() % 3 != 0 || there.empty()) {
        index.insert(h, step);
        there.push_back({h, step});
      } else {
        const size_t k = random() % there.size();
        const auto [gone, slot] = there[k];
        if (random() % 2) {
          CHECK(index.replace(gone, slot, 1000000 + step));
          there[k].second = 1000000 + step;
        } else {
          CHECK(index.erase(gone, slot));
          CHECK(!index.holds(gone, slot) && !index.erase(gone, slot));
          there[k] = there.back();
          there.pop_back();
        }
      }
    }
    CHECK_EQUAL(index.size(), there.size());
    for (const auto& [h, slot] : there) CHECK(index.holds(h, slot));
    for (const auto& [h, slot] : there) CHECK(index.erase(h, slot));
    CHECK_EQUAL(index.size(), uint64_t{0});
  }
}

TEST(an_index_of_a_million_cold_rows_takes_ten_bytes_a_row_and_seldom_names_a_row_of_another_id) {
  Arena arena;
  ColdIndex index;
  index.configure(&arena, 2);
  std::mt19937_64 random(1);
  auto h = [&] { return random() >> 2; };
  for (uint32_t i = 0; i < 1000000; ++i) index.insert(h(), i);
  CHECK(index.bytes() < 10500000);
  int wrong = 0;
  for (int i = 0; i < 100000; ++i) index.find(h(), [&](uint32_t) { return ++wrong, false; });
  CHECK(wrong < 100);  // a million of 2^32: 23
}

TEST(a_table_with_a_cold_tier_trains_to_the_same_bits_in_every_format_and_optimizer) {
  for (ValueFormat format : {ValueFormat::kFp32, ValueFormat::kFp16, ValueFormat::kBf16, ValueFormat::kInt8})
    for (OptimizerKind kind : kKinds) {
      TableSpec s = spec_of(format == ValueFormat::kFp32 ? 16 : 10, format, kind);
      if (format != ValueFormat::kFp32) s.rounding = Rounding::kStochastic;
      train_both(s, 64, Eviction::kRecency, 1, 2000, 60, 120);
    }
}

TEST(batches_larger_than_the_memory_of_a_cold_table_train_to_the_same_bits) {
  for (Eviction how : {Eviction::kRecency, Eviction::kFrequency})
    for (int threads : {1, 2}) train_both(spec_of(3), 4, how, threads, 20000, 5000, 60);
}

TEST(the_file_is_never_more_than_half_as_large_again_as_its_rows_and_rows_are_written_thrice_at_most) {
  TableSpec s = spec_of(64);
  Store store({cold_spec(s, 2000)}, 0, 1);
  store.open_cold(0, folder(), "t");
  std::mt19937_64 random(5);
  for (int step = 0; step < 300; ++step) {
    Buffers b(s, 0, some_ids(random, 40000, 4000));
    store.pull({b.pull()}, true);
  }
  const ColdCounts c = store.table(0).cold()->counts();
  CHECK(c.rows > 20000);
  CHECK(c.moved > 0 && c.moved < 2 * c.written);
  CHECK(c.file_bytes < c.rows * c.record_bytes * 3 / 2 + (size_t{1} << 20));
  store.table(0).clear();
  CHECK_EQUAL(store.table(0).size().rows, uint64_t{0});
  CHECK_EQUAL(store.table(0).cold()->counts().file_bytes, uint64_t{0});
}

TEST(a_damaged_cold_record_is_named_by_folder_and_offset_and_nothing_changes) {
  TableSpec s = spec_of(16);
  Store store({cold_spec(s, 8)}, 0, 1);
  store.open_cold(0, folder(), "user");
  for (uint64_t id = 0; id < 100; ++id) {
    Buffers b(s, 0, {id});
    store.pull({b.pull()}, true);
  }
  const uint64_t rows = store.table(0).size().rows;
  const int file = cold_file();
  CHECK(file >= 0);
  const uint32_t bytes = store.table(0).cold()->record_bytes();
  // Each byte of the first record, id and padding included. Id 0 went first.
  for (uint32_t at = 0; at < bytes; ++at) {
    char was, other;
    CHECK(::pread(file, &was, 1, at) == 1);
    other = static_cast<char>(was ^ 0x40);
    CHECK(::pwrite(file, &other, 1, at) == 1);
    int refused = 0;
    auto refuses = [&](const std::function<void()>& call) {
      try {
        call();
      } catch (const ColdError& e) {
        const std::string text = e.what();
        refused += text.find("'user'") != std::string::npos && text.find(folder()) != std::string::npos &&
                   text.find("offset 0:") != std::string::npos && text.find("damaged") != std::string::npos;
      }
    };
    for (bool create : {false, true})
      refuses([&] {
        Buffers b(s, 0, {0});
        store.pull({b.pull()}, create);
      });
    refuses([&] {
      Buffers b(s, 0, {0}, 1.0f);
      store.push({b.push()}, 1.0f);
    });
    refuses([&] { content(store.table(0)); });
    CHECK_EQUAL(refused, 4);
    CHECK(::pwrite(file, &was, 1, at) == 1);
  }
  CHECK_EQUAL(store.table(0).size().rows, rows);
  CHECK_EQUAL(content(store.table(0)).size(), rows);
}

TEST(a_cold_file_that_was_cut_is_told) {
  TableSpec s = spec_of(16);
  Store store({cold_spec(s, 8)}, 0, 1);
  store.open_cold(0, folder(), "user");
  for (uint64_t id = 0; id < 100; ++id) {
    Buffers b(s, 0, {id});
    store.pull({b.pull()}, true);
  }
  CHECK(::ftruncate(cold_file(), 10) == 0);
  bool told = false;
  try {
    Buffers b(s, 0, {0});
    store.pull({b.pull()}, true);
  } catch (const ColdError& e) {
    told = std::string(e.what()).find("ends here") != std::string::npos;
  }
  CHECK(told);
}

TEST(a_full_disk_is_told_and_rows_stay_as_they_are_and_go_on_when_there_is_room) {
  TableSpec s = spec_of(16);
  Store cold({cold_spec(s, 64)}, 1, 1), plain({s}, 1, 1);
  cold.open_cold(0, folder(), "user");
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit was;
  ::getrlimit(RLIMIT_FSIZE, &was);
  std::mt19937_64 random(9);
  int failed = 0;
  for (int step = 0; step < 400; ++step) {
    const std::vector<uint64_t> ids = some_ids(random, 4000, 50);
    Buffers a(s, 0, ids, 0.25f), b(s, 0, ids, 0.25f);
    rlimit small = was;
    small.rlim_cur = random() % 300000;
    ::setrlimit(RLIMIT_FSIZE, &small);
    bool full = false;
    try {
      cold.pull({a.pull()}, true);
    } catch (const ColdError& e) {
      full = std::string(e.what()).find("cannot be written") != std::string::npos;
      CHECK(full);
    }
    failed += full;
    ::setrlimit(RLIMIT_FSIZE, &was);
    if (full) cold.pull({a.pull()}, true);
    plain.pull({b.pull()}, true);
    CHECK_BITS(a.values.data(), b.values.data(), a.values.size());
    CHECK_EQUAL(cold.push({a.push_pulled()}, 1.0f).applied, plain.push({b.push_pulled()}, 1.0f).applied);
  }
  CHECK(failed > 10);
  check_same(cold.table(0), plain.table(0));
}

TEST(cold_rows_are_looked_up_and_asked_for_ahead_beside_training) {
  TableSpec s = spec_of(8);
  Store store({cold_spec(s, 256)}, 3, 2);
  store.open_cold(0, folder(), "t");
  std::atomic<bool> over{false};
  auto beside = [&](bool prefetch) {
    std::mt19937_64 random(prefetch);
    while (!over) {
      Buffers b(s, 0, some_ids(random, 5000, 500));
      if (prefetch)
        store.prefetch(0, b.ids.data(), b.ids.size());
      else
        store.pull({b.pull()}, false);
    }
  };
  std::thread ahead(beside, true), evaluation(beside, false);
  std::mt19937_64 random(11);
  for (int step = 0; step < 100; ++step) {
    Buffers b(s, 0, some_ids(random, 5000, 3000), 0.5f);
    store.pull({b.pull()}, true);
    CHECK_EQUAL(store.push({b.push_pulled()}, 1.0f).applied, b.ids.size());
  }
  over = true;
  ahead.join(), evaluation.join();
}
