// Bounded tables against a model: maps with the rules of table/bounds.h, written out plainly.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "rows.h"

using namespace satrap;
using namespace satrap::test;

namespace {

TableSpec bounded_spec(const BoundSpec& bound, uint32_t dim = 2) {
  TableSpec s = spec_of(dim);
  s.initializer = {InitializerKind::kConstant, 0.0f, 0.0f};
  s.optimizer.lr = 1.0f;
  s.optimizer.weight_decay = 0.0f;
  s.bound = bound;
  return s;
}

BoundSpec capacity(uint64_t rows, Eviction how = Eviction::kRecency) {
  BoundSpec b;
  b.eviction = how;
  b.rows = rows;
  return b;
}

struct ModelRow {
  uint64_t unit = 0;       // recency: of its last use
  uint32_t frequency = 2;  // at most 255
  int64_t age = -1;        // expiry: in units; -1: used since the last sweep
  float value = 0;         // minus the sum of its gradients
};

struct ModelPart {
  std::map<uint64_t, ModelRow> rows;  // by mixed id
  uint64_t made = 0, step = 0, tick = ~uint64_t{0}, seen = 0;
  std::vector<uint8_t> counters;
  BoundCounts counts;
};

struct Model {
  Model(const BoundSpec& b, int bits) : spec(b), bits(bits), parts(size_t{1} << bits) {
    window = (b.window + parts.size() - 1) / parts.size();
    for (ModelPart& p : parts) p.counters.resize((window * 8 + 63) / 64 * 64);
  }

  size_t part_of(uint64_t h) const { return bits == 0 ? 0 : h >> (64 - bits); }
  uint64_t share(size_t p) const {
    return spec.eviction == Eviction::kNone ? ~uint64_t{0}
                                            : spec.rows / parts.size() + (p < spec.rows % parts.size());
  }
  uint64_t unit(size_t p) const { return std::max<uint64_t>(1, share(p) / 128); }

  uint8_t* cell(ModelPart& p, uint64_t h, int k) {
    const uint64_t line = (((h << bits) >> 32) * (p.counters.size() / 64)) >> 32;
    return &p.counters[line * 64 + (h >> (6 * k) & 63)];
  }
  uint32_t sighted(ModelPart& p, uint64_t h) {
    uint32_t least = 255;
    for (int k = 0; k < 4; ++k) least = std::min<uint32_t>(least, *cell(p, h, k));
    return least;
  }
  bool admits(ModelPart& p, uint64_t h) {
    if (spec.sightings == 0) return true;
    if (p.seen == window) {
      for (uint8_t& c : p.counters) c /= 2;
      p.seen = 0;
    }
    ++p.seen;
    const uint32_t now = std::min(255u, sighted(p, h) + 1);
    for (int k = 0; k < 4; ++k)
      *cell(p, h, k) = static_cast<uint8_t>(std::max<uint32_t>(*cell(p, h, k), now));
    return now >= spec.sightings;
  }

  // (coldness, turn among equals: the halves of the mixed id exchanged) in the order in which rows go.
  std::vector<std::pair<int64_t, uint64_t>> order(size_t p, const std::set<uint64_t>& spared) {
    std::vector<std::pair<int64_t, uint64_t>> out;
    for (const auto& [h, r] : parts[p].rows)
      if (!spared.count(h))
        out.emplace_back(spec.eviction == Eviction::kRecency ? static_cast<int64_t>(r.unit) : r.frequency,
                         std::rotl(h, 32));
    std::sort(out.begin(), out.end());
    return out;
  }

  void pull(const std::vector<uint64_t>& ids, uint64_t seconds) {
    std::map<size_t, std::vector<uint64_t>> asked;
    for (uint64_t id : ids) asked[part_of(mix(id))].push_back(mix(id));
    for (const auto& [p, hs] : asked) pull_part(p, hs, seconds);
  }

  void pull_part(size_t p, const std::vector<uint64_t>& hs, uint64_t seconds) {
    ModelPart& part = parts[p];
    std::set<uint64_t> used;
    std::vector<uint64_t> wanted;
    for (uint64_t h : hs) {
      if (part.rows.count(h))
        used.insert(h);
      else
        wanted.push_back(h);
    }
    if (spec.ttl != 0) {
      const uint64_t length = (spec.ttl + 31) / 32, units = (spec.ttl + length - 1) / length;
      const uint64_t tick = (spec.ttl_seconds ? seconds : part.step) / length;
      if (part.tick == ~uint64_t{0}) part.tick = tick;
      const uint64_t passed = tick > part.tick ? tick - part.tick : 0;
      part.tick += passed;
      for (auto it = part.rows.begin(); passed != 0 && it != part.rows.end();) {
        ModelRow& r = it->second;
        r.age = used.count(it->first) || r.age < 0 ? 0 : r.age + static_cast<int64_t>(passed);
        if (static_cast<uint64_t>(r.age) > units) {
          it = part.rows.erase(it);
          ++part.counts.expired;
        } else {
          ++it;
        }
      }
    }
    for (uint64_t h : used) {
      ModelRow& r = part.rows[h];
      r.unit = part.made / unit(p);
      r.frequency = std::min(255u, r.frequency + 1);
      r.age = -1;
    }
    std::vector<uint64_t> admitted;
    for (uint64_t h : wanted) {
      if (admits(part, h))
        admitted.push_back(h);
      else
        ++part.counts.refused;
    }
    if (part.rows.size() + admitted.size() > share(p)) {
      const uint64_t over = part.rows.size() + admitted.size() - share(p) + share(p) / 32;
      const auto all = order(p, used);
      for (size_t i = 0; i < std::min<size_t>(over, all.size()); ++i) {
        part.rows.erase(std::rotl(all[i].second, 32));
        ++part.counts.evicted;
      }
    }
    for (uint64_t h : admitted) {
      if (part.rows.size() >= share(p)) {
        ++part.counts.refused;
        continue;
      }
      ModelRow row;
      row.unit = part.made / unit(p);
      part.rows[h] = row;
      ++part.counts.admitted;
      ++part.made;
      const uint64_t now = part.made / unit(p);
      if (spec.eviction == Eviction::kRecency && part.made % (64 * unit(p)) == 0)
        for (auto& [_, r] : part.rows) r.unit = now - std::min<uint64_t>(now - r.unit, 160);
      if (spec.eviction == Eviction::kFrequency && part.made % share(p) == 0)
        for (auto& [_, r] : part.rows) r.frequency /= 2;
    }
  }

  ModelRow* find(uint64_t id) {
    auto& rows = parts[part_of(mix(id))].rows;
    const auto it = rows.find(mix(id));
    return it == rows.end() ? nullptr : &it->second;
  }

  BoundSpec spec;
  int bits;
  uint64_t window;
  std::vector<ModelPart> parts;
};

// A store and its model, asked the same.
struct Pair {
  Pair(const BoundSpec& b, int bits, uint32_t dim, uint64_t seed)
      : spec(bounded_spec(b, dim)), bits(bits), store(fresh()), model(b, bits), random(seed) {}

  std::unique_ptr<Store> fresh() const { return std::make_unique<Store>(std::vector{spec}, bits, 2); }

  // Popular ids, and now and then one that comes once.
  std::vector<uint64_t> some(size_t n, uint64_t popular) {
    std::set<uint64_t> ids;
    std::uniform_real_distribution<double> u;
    while (ids.size() < n) {
      const double x = u(random);
      ids.insert(x < 0.2 ? random()
                         : static_cast<uint64_t>(static_cast<double>(popular) * x * x * x * x) * 7919);
    }
    std::vector<uint64_t> out(ids.begin(), ids.end());
    std::shuffle(out.begin(), out.end(), random);
    return out;
  }

  void pull(std::vector<uint64_t> ids) {
    store->set_clock(seconds);
    Buffers b(spec, 0, std::move(ids));
    store->pull({b.pull()}, true);
    model.pull(b.ids, seconds);
    for (size_t i = 0; i < b.ids.size(); ++i) {
      const ModelRow* row = model.find(b.ids[i]);
      CHECK_EQUAL(b.values[i * spec.dim], row == nullptr ? 0.0f : row->value);
      CHECK_EQUAL(b.hints[i] != kNoRow, row != nullptr);
    }
    under_way.push_back(std::move(b));
  }

  // The oldest pull's gradients.
  void push(bool hints) {
    Buffers b = std::move(under_way.front());
    under_way.pop_front();
    ++step;
    std::vector<uint16_t> outcomes(b.ids.size());
    for (size_t i = 0; i < b.ids.size(); ++i)
      std::fill_n(b.gradients.begin() + static_cast<ptrdiff_t>(i * spec.dim), spec.dim,
                  static_cast<float>(step % 7 + 1));
    PushItem item = hints ? b.push_pulled() : b.push();
    item.outcomes = outcomes.data();
    const PushResult r = store->push({item}, 1.0f, step);
    size_t missing = 0, waiting = 0;
    for (size_t i = 0; i < b.ids.size(); ++i) {
      const uint64_t h = mix(b.ids[i]);
      ModelPart& part = model.parts[model.part_of(h)];
      ModelRow* row = model.find(b.ids[i]);
      CHECK_EQUAL(outcomes[i] < kOutcomeMissing, row != nullptr);
      if (row != nullptr) {
        row->value -= static_cast<float>(step % 7 + 1);
      } else {
        ++missing;
        const bool waits = spec.bound.sightings != 0 && model.sighted(part, h) < spec.bound.sightings;
        waiting += waits;
        CHECK_EQUAL(outcomes[i], waits ? kOutcomeNotAdmitted : kOutcomeMissing);
      }
      if (spec.bound.ttl != 0 && !spec.bound.ttl_seconds) part.step = std::max(part.step, step);
    }
    CHECK_EQUAL(r.missing, missing);
    CHECK_EQUAL(r.not_admitted, waiting);
    CHECK_EQUAL(r.applied, b.ids.size() - missing);
  }

  void erase(uint64_t id) {
    auto& rows = model.parts[model.part_of(mix(id))].rows;
    CHECK_EQUAL(store->table(0).erase(id), rows.erase(mix(id)) != 0);
  }

  // All rows into a new store, as a checkpoint is loaded, in an order of its own.
  void reload() {
    std::unique_ptr<Store> other = fresh();
    Table& from = store->table(0);
    for (uint32_t p = from.partitions(); p-- > 0;) {
      std::vector<uint64_t> ids;
      std::vector<float> values;
      std::vector<uint8_t> marks;
      from.visit_ordered(p, [&](uint64_t id, const Row& row) {
        ids.push_back(id);
        values.insert(values.end(), values_of(row), values_of(row) + spec.dim);
        marks.resize(marks.size() + from.layout().marks);
        if (from.layout().marks != 0) from.export_marks(p, row, &marks[marks.size() - from.layout().marks]);
      });
      const std::string state = from.export_bound(p);
      CHECK(other->table(0).import_bound(p, state.data(), state.size()));
      std::vector<uint8_t> bytes(values.size() * 4);
      if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
      other->import_rows(0, {{ids.data(), ids.size(), bytes.data(), nullptr, marks.data()}});
    }
    store = std::move(other);
    for (Buffers& b : under_way) std::fill(b.hints.begin(), b.hints.end(), kNoRow);
  }

  void check() {
    Table& t = store->table(0);
    check_index(t);
    for (uint32_t p = 0; p < t.partitions(); ++p) {
      const ModelPart& part = model.parts[p];
      CHECK_EQUAL(t.rows(p), part.rows.size());
      CHECK(t.rows(p) <= t.share(p));
      const BoundCounts c = t.bound(p).counts;
      CHECK_EQUAL(c.admitted, part.counts.admitted);
      CHECK_EQUAL(c.evicted, part.counts.evicted);
      CHECK_EQUAL(c.expired, part.counts.expired);
      CHECK_EQUAL(c.refused, part.counts.refused);
      auto it = part.rows.begin();
      t.visit_ordered(p, [&](uint64_t id, const Row& row) {
        CHECK_EQUAL(mix(id), it->first);
        CHECK_EQUAL(values_of(row)[0], it->second.value);
        ++it;
      });
    }
  }

  TableSpec spec;
  int bits;
  std::unique_ptr<Store> store;
  Model model;
  std::mt19937_64 random;
  std::deque<Buffers> under_way;
  uint64_t step = 0, seconds = 1'700'000'000;
};

// `ids`: asked for in all.
void run(const BoundSpec& bound, int bits, uint32_t dim, size_t ids, uint64_t popular, bool erases = true) {
  Pair pair(bound, bits, dim, bits * 100 + dim);
  size_t asked = 0;
  for (int round = 0; asked < ids; ++round) {
    const size_t n = pair.random() % 50 == 0 ? 3000 : pair.random() % 300 + 1;
    pair.pull(pair.some(n, popular));
    asked += n;
    pair.seconds += pair.random() % 20;
    while (pair.under_way.size() > pair.random() % 4) pair.push(pair.random() % 8 != 0);
    if (erases && pair.random() % 4 == 0) pair.erase(pair.random() % popular * 7919);
    if (round % 97 == 96) pair.check();
    if (round % 251 == 250) pair.reload();
  }
  pair.check();
  const BoundCounts c = pair.store->table(0).bound_counts();
  CHECK((bound.eviction == Eviction::kNone) == (c.evicted == 0));
  CHECK((bound.ttl == 0) == (c.expired == 0));
  CHECK(c.admitted > 0);
  CHECK((bound.sightings != 0) <= (c.refused > 0));
}

constexpr size_t kIds = 200'000;

TEST(recency_as_in_the_model) { run(capacity(2001), 2, 2, kIds, 9000); }
TEST(recency_of_rows_apart_as_in_the_model) { run(capacity(5000), 3, 16, kIds, 30000); }
TEST(recency_in_tiny_partitions_as_in_the_model) { run(capacity(67), 4, 2, kIds / 4, 400); }
TEST(frequency_as_in_the_model) { run(capacity(3000, Eviction::kFrequency), 2, 2, kIds, 20000); }
TEST(expiry_by_steps_as_in_the_model) {
  BoundSpec b;
  b.ttl = 500;
  run(b, 2, 2, kIds, 20000);
}
TEST(expiry_by_seconds_with_frequency_as_in_the_model) {
  BoundSpec b = capacity(4000, Eviction::kFrequency);
  b.ttl = 300;
  b.ttl_seconds = true;
  run(b, 3, 16, kIds, 20000);
}
TEST(admission_as_in_the_model) {
  BoundSpec b;
  b.sightings = 3;
  b.window = 20000;
  run(b, 2, 2, kIds, 20000, false);
}
TEST(everything_at_once_as_in_the_model) {
  BoundSpec b = capacity(4000);
  b.ttl = 100;
  b.sightings = 2;
  b.window = 10000;
  run(b, 3, 16, kIds, 20000);
}

TEST(a_capacity_in_bytes_is_kept_by_the_bytes_held) {
  for (uint32_t dim : {2u, 16u, 24u}) {
    for (uint64_t bytes : {uint64_t{1} << 20, uint64_t{5'000'000}}) {
      BoundSpec b;
      b.eviction = Eviction::kRecency;
      b.bytes = bytes;
      const TableSpec spec = bounded_spec(b, dim);
      Store store({spec}, 2, 1);
      std::mt19937_64 random(1);
      uint64_t most = 0;
      for (int i = 0; i < 300; ++i) {
        std::vector<uint64_t> ids(1000);
        for (uint64_t& id : ids) id = random();
        Buffers batch(spec, 0, ids);
        store.pull({batch.pull()}, true);
        const TableSize size = store.table(0).size();
        most = std::max(most, size.value_bytes + size.state_bytes + size.overhead_bytes);
      }
      CHECK(most <= bytes);
      CHECK(most > bytes * 6 / 10);  // blocks of 128 KiB, of four partitions
    }
  }
}

// Between a pull and its push come pulls that evict: they spoil the hints of the partitions they evicted
// from.
TEST(evictions_spoil_few_hints) {
  const TableSpec spec = bounded_spec(capacity(16 * 8192));
  Store store({spec}, 4, 2);
  std::mt19937_64 random(1);
  std::deque<Buffers> under_way;
  size_t hinted = 0, pushed = 0;
  for (int i = 0; i < 600; ++i) {
    std::vector<uint64_t> ids(1000);
    for (size_t k = 0; k < ids.size(); ++k) ids[k] = k < 300 ? random() : k;  // 300 new ones each time
    under_way.emplace_back(spec, 0, ids);
    store.pull({under_way.back().pull()}, true);
    if (under_way.size() <= 3) continue;
    const PushResult r = store.push({under_way.front().push_pulled()}, 1.0f);
    under_way.pop_front();
    CHECK_EQUAL(r.applied, 1000u);
    if (i < 500) continue;
    hinted += r.hinted;
    pushed += r.applied;
  }
  CHECK(store.table(0).bound_counts().evicted > 30000);
  CHECK(hinted > pushed * 7 / 10);
}

TEST(a_sink_gets_rows_whole_and_coldest_first_before_they_go) {
  TableSpec spec = bounded_spec(capacity(320));
  Store store({spec}, 0, 1);
  std::vector<uint64_t> gone;
  store.table(0).set_sink([&](uint32_t partition, const Victim* victims, const Row* rows, size_t n) {
    CHECK_EQUAL(partition, 0u);
    for (size_t i = 0; i < n; ++i) {
      CHECK_EQUAL(values_of(rows[i])[0], -static_cast<float>(victims[i].id));
      CHECK(store.table(0).find(victims[i].id) == rows[i]);
      gone.push_back(victims[i].id);
    }
  });
  for (uint64_t id = 1; id <= 400; ++id) {
    Buffers one(spec, 0, {id});
    store.pull({one.pull()}, true);
    one.gradients.assign(2, static_cast<float>(id));
    store.push({one.push()}, 1.0f);
  }
  CHECK(gone.size() >= 80);
  CHECK(store.table(0).rows(0) <= 320);
  for (uint64_t id : gone) CHECK(!store.table(0).find(id));
  // In units of 1/128 of the capacity; within one, in the order of the mixed id.
  for (size_t i = 0; i + 1 < gone.size(); ++i) CHECK(gone[i + 1] / 2 + 1 >= gone[i] / 2);
}

TEST(a_batch_larger_than_the_table_keeps_what_has_room) {
  TableSpec spec = bounded_spec(capacity(10));
  Store store({spec}, 0, 1);
  std::vector<uint64_t> ids(50);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = i;
  Buffers all(spec, 0, ids);
  store.pull({all.pull()}, true);
  CHECK_EQUAL(store.table(0).rows(0), 10u);
  const PushResult r = store.push({all.push_pulled()}, 1.0f);
  CHECK_EQUAL(r.applied, 10u);
  CHECK_EQUAL(r.missing, 40u);
  CHECK_EQUAL(store.table(0).bound_counts().refused, 40u);
}

// A sink that fails (a full disk) must not lose the rows it was to take.
TEST(a_sink_that_throws_leaves_the_rows) {
  TableSpec spec = bounded_spec(capacity(100));
  Store store({spec}, 0, 1);
  std::vector<uint64_t> ids(100);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = i;
  Buffers all(spec, 0, ids), more(spec, 0, {1000});
  store.pull({all.pull()}, true);
  store.table(0).set_sink([](uint32_t, const Victim*, const Row*, size_t) { throw std::bad_alloc(); });
  bool thrown = false;
  try {
    store.pull({more.pull()}, true);
  } catch (const std::bad_alloc&) {
    thrown = true;
  }
  CHECK(thrown);
  CHECK_EQUAL(store.table(0).rows(0), 100u);
  for (uint64_t id : ids) CHECK(bool{store.table(0).find(id)});
  check_index(store.table(0));
}

// What the documentation says of the sketch's error.
TEST(few_ids_are_admitted_before_their_time) {
  constexpr uint64_t kWindow = 1 << 16;
  std::mt19937_64 random(3);
  for (uint32_t wanted : {2u, 3u}) {
    Sketch sketch(kWindow);
    uint64_t early = 0, asked = 0;
    for (uint64_t i = 0; i < 20 * kWindow / (wanted - 1); ++i) {
      const uint64_t h = random();
      for (uint32_t k = 1; k < wanted; ++k) early += sketch.add(h, 0) >= wanted;
      ++asked;
    }
    CHECK(static_cast<double>(early) < 0.02 * static_cast<double>(asked));
  }
}

TEST(an_unbounded_table_has_no_marks) {
  for (uint32_t dim : {2u, 16u}) {
    const RowLayout plain(spec_of(dim)), bounded(bounded_spec(capacity(10), dim));
    CHECK_EQUAL(plain.marks, 0u);
    CHECK_EQUAL(bounded.marks, 1u);
    CHECK(plain.together ? plain.value_stride <= bounded.value_stride : plain.group > bounded.group);
  }
}

TEST(a_capacity_of_less_than_a_row_a_partition_is_refused) {
  bool thrown = false;
  try {
    Store store({bounded_spec(capacity(7))}, 3, 1);
  } catch (const std::invalid_argument&) {
    thrown = true;
  }
  CHECK(thrown);
}

// Bug: a row that was evicted and made again counts its updates from 0, and the version of its pull was
// subtracted all the same: up to 255.
TEST(of_a_row_that_was_made_again_since_its_pull_no_staleness_is_told) {
  TableSpec spec = bounded_spec(capacity(64));
  for (bool hinted : {true, false}) {
    Store store({spec}, 1, 1);
    std::mt19937_64 random(5);
    struct Pulled {
      Buffers row;
      uint32_t number;
      uint64_t life, updates;
    };
    struct Told {
      uint64_t life = 0, updates = 0;  // lives so far, and updates in this one
      bool there = false;
    };
    std::map<uint64_t, Told> rows;
    std::deque<Pulled> outstanding;
    size_t known = 0, unknown = 0;
    for (int step = 0; step < 20000; ++step) {
      const uint64_t id = random() % (step % 3 == 0 ? 4 : 200);
      Pulled p{Buffers(spec, 0, {id}, 1.0f), 0, 0, 0};
      for (auto& [other, told] : rows) told.there = bool{store.table(0).find(other)};
      Told& told = rows[id];
      if (!told.there) ++told.life, told.updates = 0;
      store.pull({p.row.pull()}, true);
      p.number = p.row.hints[0], p.life = told.life, p.updates = told.updates;
      outstanding.push_back(std::move(p));
      if (outstanding.size() < 1 + random() % 150) continue;
      Pulled old = std::move(outstanding.front());
      outstanding.pop_front();
      Told& now = rows[old.row.ids[0]];
      if (!store.table(0).find(old.row.ids[0])) continue;
      PushItem push = old.row.push_pulled();
      if (!hinted) push.hints = nullptr;
      uint32_t number = kNoRow;
      store.table(0).find_or_insert(old.row.ids[0], &now.there, &number);
      const PushResult r = store.push({push}, 1.0f);
      CHECK_EQUAL(r.applied, 1u);
      const auto lag = static_cast<uint64_t>(std::find(r.staleness, r.staleness + 257, 1) - r.staleness);
      if (old.life == now.life) {
        const uint64_t since = now.updates - old.updates;
        if (since < kLagDoubted) CHECK_EQUAL(lag, since);
        ++known;
      } else if (lag == 256) {
        ++unknown;
      } else {
        // The same place again, or no hint: then at least it is no more than what the row has seen, unless it
        // had seen so much before.
        CHECK(!hinted || number == old.number);
        CHECK(lag <= now.updates || old.updates > kLagDoubted);
      }
      ++now.updates;
    }
    CHECK(known > 5000);
    CHECK(unknown > (hinted ? 100u : 5u));
  }
}

// Rows of a partition as files have them.
struct Copied {
  std::vector<uint64_t> ids;
  std::vector<uint8_t> values, marks;
  std::vector<float> state;
  void add(const Table& t, uint32_t part, uint64_t id, const Row& row) {
    const size_t bytes = stored_bytes(t.spec().format, t.spec().dim), words = exported_words(t.spec());
    ids.push_back(id);
    values.resize(values.size() + bytes);
    state.resize(state.size() + words);
    marks.resize(marks.size() + t.exported_marks());
    export_row(t.spec(), row, values.data() + values.size() - bytes, state.data() + state.size() - words);
    if (t.exported_marks() != 0) t.export_marks(part, row, marks.data() + marks.size() - t.exported_marks());
  }
  RowArrays arrays() const { return {ids.data(), ids.size(), values.data(), state.data(), marks.data()}; }
  bool operator==(const Copied&) const = default;
};

Copied all_of(const Table& t, uint32_t part) {
  Copied rows;
  t.visit_ordered(part, [&](uint64_t id, const Row& row) { rows.add(t, part, id, row); });
  return rows;
}

// It is handed the rows that were named and the ids that went; all others it must age by itself.
TEST(a_copy_follows_by_what_changed_and_by_the_clocks) {
  for (int kind = 0; kind < 5; ++kind) {
    BoundSpec b = capacity(2000, kind == 1 ? Eviction::kFrequency : Eviction::kRecency);
    if (kind == 2) b = BoundSpec();
    if (kind >= 2) b.ttl = 150;
    if (kind == 4) b.sightings = 2, b.window = 4000;
    const TableSpec spec = bounded_spec(b);
    Store one({spec}, 2, 2), two({spec}, 2, 2);
    Table &from = one.table(0), &to = two.table(0);
    from.keep_removals();
    std::mt19937_64 random(kind);
    uint64_t step = 0, gone = 0, named_rows = 0, rows = 0;
    for (int round = 0; round < 60; ++round) {
      std::set<uint64_t> named;
      for (int i = static_cast<int>(random() % 12); i >= 0; --i) {
        std::set<uint64_t> ids;
        for (int k = 0; k < 60; ++k) ids.insert(random() % (random() % 4 == 0 ? 100'000 : 1'000));
        named.insert(ids.begin(), ids.end());
        Buffers batch(spec, 0, {ids.begin(), ids.end()}, 0.25f);
        one.pull({batch.pull()}, true);
        one.push({batch.push_pulled()}, 1.0f, ++step);
      }
      if (round % 9 == 5) {  // room, so that what stays becomes older than others let it
        for (uint64_t id = 0; id < 100'000; id += 2)
          if (named.contains(id) && from.erase(id)) ++gone;
      }
      for (uint32_t part = 0; part < 4; ++part) {
        std::string bound;
        const Removals removed = from.take_removals(part, &bound);
        CHECK(!removed.lost);
        std::set<uint64_t> changed(removed.ids.begin(), removed.ids.end());
        for (uint64_t id : named)
          if (from.partition_of(id) == part) changed.insert(id);
        Copied copied;
        for (uint64_t id : changed) {
          if (const Row row = from.find(id))
            copied.add(from, part, id, row);
          else
            gone += to.erase(id);
        }
        CHECK(to.advance_bound(part, bound.data(), bound.size()));
        two.import_rows(0, {copied.arrays()});
        CHECK(all_of(from, part) == all_of(to, part));
        const std::string have = to.export_bound(part);
        CHECK(from.export_bound(part) == have);
        named_rows += copied.ids.size(), rows += from.rows(part);
      }
    }
    CHECK(gone > 1000);
    CHECK(named_rows < rows / 2);
    check_index(to);
  }
}

TEST(a_cut_of_a_partition_without_sightings_knows_of_none) {
  BoundSpec b = capacity(400);
  b.sightings = 2, b.window = 4000;
  const TableSpec spec = bounded_spec(b);
  Store store({spec}, 0, 1);
  Table& t = store.table(0);
  const std::string then = t.export_bound(0);
  t.open_cut(0);
  Buffers batch(spec, 0, {1, 2, 3});
  store.pull({batch.pull()}, true);
  CHECK(t.export_bound(0).size() > then.size());
  CHECK(t.cut_bound(0) == then);
  t.open_cut(0);  // again: as of now
  CHECK(t.cut_bound(0) == t.export_bound(0));
  store.table(0).clear();
  CHECK(t.cut_bound(0).empty());
  store.pull({batch.pull()}, true);
}

TEST(a_cut_knows_the_sightings_of_before_they_were_halved) {
  BoundSpec b = capacity(400);
  b.sightings = 2, b.window = 40'000;  // 80 blocks
  const TableSpec spec = bounded_spec(b);
  Store store({spec}, 0, 1);
  Table& t = store.table(0);
  uint64_t id = 0;
  const auto see = [&](size_t n) {
    std::vector<uint64_t> ids(n);
    for (uint64_t& x : ids) x = ++id;
    Buffers batch(spec, 0, ids);
    store.pull({batch.pull()}, true);
  };
  see(b.window - 5);
  const std::string then = t.export_bound(0);
  t.open_cut(0);
  see(10);
  CHECK(t.bound(0).sketch.seen() < 10);
  CHECK(t.cut_bound(0) == then);
}

// Page by page, with training between the pages: what is read has the clocks of its moment, what was named or
// removed since comes again.
TEST(a_partition_is_copied_in_pages_while_it_is_used) {
  for (int kind = 0; kind < 5; ++kind) {
    BoundSpec b = capacity(800, kind == 1 ? Eviction::kFrequency : Eviction::kRecency);
    if (kind == 2) b = BoundSpec();
    if (kind >= 2) b.ttl = 150;
    if (kind == 4) b.sightings = 2, b.window = 4000;
    const TableSpec spec = bounded_spec(b);
    Store one({spec}, 2, 2);
    Table& from = one.table(0);
    std::mt19937_64 random(kind);
    uint64_t step = 0, gone = 0, again = 0, aged = 0;
    std::set<uint64_t> named;
    const auto train = [&] {
      std::set<uint64_t> ids;
      for (int k = 0; k < 40; ++k) ids.insert(random() % (random() % 4 == 0 ? 100'000 : 1'000));
      named.insert(ids.begin(), ids.end());
      Buffers batch(spec, 0, {ids.begin(), ids.end()}, 0.25f);
      one.pull({batch.pull()}, true);
      one.push({batch.push_pulled()}, 1.0f, ++step);
    };
    for (int i = 0; i < 100; ++i) train();
    for (int move = 0; move < 12; ++move) {
      const auto part = static_cast<uint32_t>(move % 4);
      Store two({spec}, 2, 1);
      Table& to = two.table(0);
      named.clear();
      from.follow(part);
      std::vector<uint64_t> wanted = from.ids(part);
      CHECK_EQUAL(wanted.size(), from.rows(part));
      for (int track = 0; track < 4; ++track) {
        for (size_t at = 0; at < wanted.size(); at += 16) {
          Copied page;
          for (size_t i = at; i < std::min(wanted.size(), at + 16); ++i) {
            if (const Row row = from.find(wanted[i]))
              page.add(from, part, wanted[i], row);
            else
              to.erase(wanted[i]);
          }
          const std::string clocks = from.export_clocks(part, false), before = to.export_bound(part);
          CHECK(to.import_bound(part, clocks.data(), clocks.size()));
          aged += to.export_bound(part) != before;
          two.import_rows(0, {page.arrays()});
          CHECK(to.rows(part) <= to.share(part));
          if (track < 3 && random() % 3 == 0)
            for (auto n = random() % 12; n > 0; --n) train();
        }
        const Removals removed = from.take_followed(part);
        CHECK(!removed.lost);
        std::set<uint64_t> changed(removed.ids.begin(), removed.ids.end());
        for (uint64_t id : named)
          if (from.partition_of(id) == part) changed.insert(id);
        named.clear();
        wanted.clear();
        for (uint64_t id : changed) {
          if (from.find(id))
            wanted.push_back(id);
          else
            gone += to.erase(id);
        }
        again += wanted.size();
      }
      CHECK(wanted.empty());
      const std::string all = from.export_clocks(part, true);
      CHECK(to.import_bound(part, all.data(), all.size()));
      CHECK(all_of(from, part) == all_of(to, part));
      CHECK(from.export_bound(part) == to.export_bound(part));
      check_index(to);
      from.unfollow(part);
      CHECK(from.take_followed(part).lost);
    }
    CHECK(gone > 20);
    CHECK(again > 200);
    CHECK(aged > 50);
  }
}

TEST(who_follows_is_told_where_marks_can_no_more_be_told_from_clocks) {
  BoundSpec b;
  b.ttl = 64;
  const TableSpec spec = bounded_spec(b);
  Store one({spec}, 0, 1), two({spec}, 0, 1);
  Buffers batch(spec, 0, {1, 2, 3});
  one.pull({batch.pull()}, true);
  two.import_rows(0, {all_of(one.table(0), 0).arrays()});
  Table& t = two.table(0);
  t.follow(0);
  CHECK(!t.take_followed(0).lost);
  two.pull({batch.pull()}, true);  // the first that ages rows which came from elsewhere
  CHECK(t.take_followed(0).lost);
  t.follow(0);
  const std::string state = one.table(0).export_bound(0);
  CHECK(t.import_bound(0, state.data(), state.size()));
  CHECK(t.take_followed(0).lost);
}

TEST(clocks_that_go_back_or_are_cut_off_are_not_taken) {
  BoundSpec b = capacity(400);
  b.ttl = 64;
  const TableSpec spec = bounded_spec(b);
  Store store({spec}, 0, 1);
  Table& t = store.table(0);
  t.follow(0);
  uint64_t id = 0;
  const auto train = [&] {
    Buffers batch(spec, 0, {++id, ++id, 7}, 0.5f);
    store.pull({batch.pull()}, true);
    store.push({batch.push_pulled()}, 1.0f, id);
  };
  for (int i = 0; i < 20; ++i) train();
  const std::string old = t.export_clocks(0, false);
  for (int i = 0; i < 20; ++i) train();
  const std::string now = t.export_clocks(0, true), bound = t.export_bound(0);
  const Copied rows = all_of(t, 0);
  CHECK(!t.import_bound(0, old.data(), old.size()));
  for (size_t bytes = 0; bytes < 88 + 8; ++bytes) CHECK(!t.import_bound(0, now.data(), bytes));
  std::string late = now;
  late[32] = static_cast<char>(late[32] - 1);  // the clock, which is then behind its last sweep
  CHECK(!t.import_bound(0, late.data(), late.size()));
  CHECK(t.export_bound(0) == bound);
  CHECK(all_of(t, 0) == rows);
}

// Of more than that, it is only known that they are not.
TEST(a_partition_remembers_half_as_many_removals_as_it_has_rows) {
  const TableSpec spec = bounded_spec(capacity(8000));
  Store store({spec}, 0, 1);
  store.table(0).keep_removals();
  std::string bound;
  uint64_t id = 0;
  for (int kept = 1; kept >= 0; --kept) {
    store.table(0).take_removals(0, &bound);
    for (uint64_t to = id + (kept ? 11'000 : 13'000); id < to; id += 100) {
      std::vector<uint64_t> ids(100);
      std::iota(ids.begin(), ids.end(), id);
      Buffers batch(spec, 0, ids);
      store.pull({batch.pull()}, true);
    }
    const Removals removed = store.table(0).take_removals(0, &bound);
    CHECK_EQUAL(removed.lost, kept == 0);
    CHECK(removed.lost ? removed.ids.empty() : removed.ids.size() > 2900);
  }
}

// Of rows that nobody names after a cut, values, state and marks of then are known, whether a rule has
// removed them or not; of a table with a cold tier no row is gone, and none has marks.
TEST(a_cut_remembers_what_rules_do_to_rows_that_nobody_names) {
  for (int kind = 0; kind < 5; ++kind) {
    BoundSpec b = capacity(2000, kind == 1 ? Eviction::kFrequency : Eviction::kRecency);
    if (kind == 2) b = BoundSpec();
    if (kind >= 2) b.ttl = 60;
    if (kind >= 3) b.sightings = 2, b.window = kind == 3 ? 4'000 : 40'000;
    if (kind == 4) b.ttl = 0;
    const TableSpec spec = bounded_spec(b);
    Store store({spec}, 2, 1);
    Table& t = store.table(0);
    char folder[] = "/tmp/satrap-cut-XXXXXX";
    if (kind == 4) store.open_cold(0, mkdtemp(folder), "t");
    std::mt19937_64 random(kind);
    uint64_t step = 0, gone = 0, there = 0;
    std::set<uint64_t> named;
    const auto go_on = [&](int steps, uint64_t from) {
      for (int i = 0; i < steps; ++i) {
        std::set<uint64_t> ids;
        for (int k = 0; k < 60; ++k) ids.insert(from + random() % (random() % 2 == 0 ? 4'000 : 1'000));
        named.insert(ids.begin(), ids.end());
        Buffers batch(spec, 0, {ids.begin(), ids.end()}, 0.25f);
        store.pull({batch.pull()}, true);
        store.push({batch.push_pulled()}, 1.0f, ++step);
      }
    };
    go_on(100, 0);
    for (int round = 0; round < 3; ++round) {
      std::map<uint64_t, Copied> then, found;
      std::vector<std::string> bounds;
      for (uint32_t part = 0; part < 4; ++part) {
        t.visit_ordered(part, [&](uint64_t id, const Row& row) { then[id].add(t, part, id, row); });
        t.open_cut(part);
        bounds.push_back(t.export_bound(part));
      }
      named.clear();
      go_on(20 + 60 * round, 3'000 * (round + 1));  // others, mostly
      CutRows removed;
      CHECK(t.take_cut_rows(&removed));
      CHECK(kind != 4 || removed.ids.empty());
      for (auto& [id, copied] : then) {
        if (named.contains(id)) continue;
        std::vector<char> record;
        const Row row = t.find_anywhere(id, &record);
        Copied now;
        if (row) {
          now.add(t, t.partition_of(id), id, row);
          t.cut_marks(&id, 1, now.marks.data());
          ++there;
        } else {
          const size_t i = std::find(removed.ids.begin(), removed.ids.end(), id) - removed.ids.begin();
          CHECK(i < removed.ids.size());
          const size_t bytes = stored_bytes(spec.format, spec.dim), words = exported_words(spec);
          const size_t marks = t.exported_marks();
          now.ids = {id};
          now.values.assign(&removed.values[i * bytes], &removed.values[i * bytes] + bytes);
          now.state.assign(removed.state.data() + i * words, removed.state.data() + (i + 1) * words);
          now.marks.assign(removed.marks.data() + i * marks, removed.marks.data() + (i + 1) * marks);
          ++gone;
        }
        CHECK(now == copied);
      }
      for (uint32_t part = 0; part < 4; ++part) {
        CHECK(t.export_bound(part) != bounds[part]);
        CHECK(t.cut_bound(part) == bounds[part]);
        if (round == 2) {  // also where all of it becomes another
          CHECK(t.import_bound(part, bounds[(part + 1) % 4].data(), 0) == false);
          CHECK(t.import_bound(part, bounds[part].data(), bounds[part].size()));
          go_on(3, 0);
          CHECK(t.cut_bound(part) == bounds[part]);
        }
        t.close_cut(part);
        CHECK(t.cut_bound(part).empty());
      }
      CHECK_EQUAL(t.cut_bytes(), 0u);
    }
    if (kind == 4) rmdir(folder);
    CHECK(there > 100);
    CHECK(kind == 4 || gone > 100);
  }
}

}  // namespace
