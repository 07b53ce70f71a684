// Python's view of the native core: arrays in, arrays out. No logic lives here; satrap.store gives it names
// and docs.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <bit>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <unordered_set>

#include "base/hash.h"
#include "bindings/arrays.h"
#include "table/convert.h"
#include "table/ids.h"
#include "table/store.h"
#include "table/ticket.h"

using namespace satrap;

namespace {

TableSpec table_spec(uint32_t dim, int format, int rounding, int optimizer, const std::vector<float>& o,
                     int state, int initializer, float a, float b, float max_gradient, uint64_t key,
                     const std::tuple<int, uint64_t, uint64_t, uint64_t, bool, uint32_t, uint64_t>& bound) {
  need(dim >= 1 && dim <= 4096, "dim must be 1 to 4096");
  need(o.size() == 10, "ten optimizer settings expected");
  TableSpec s;
  s.dim = dim;
  s.format = static_cast<ValueFormat>(format);
  s.rounding = static_cast<Rounding>(rounding);
  s.optimizer = {
      static_cast<OptimizerKind>(optimizer), o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7], o[8], o[9],
      static_cast<StateFormat>(state)};
  s.initializer = {static_cast<InitializerKind>(initializer), a, b};
  s.max_gradient = max_gradient;
  s.key = key;
  const auto& [eviction, rows, bytes, ttl, ttl_seconds, sightings, window] = bound;
  need(eviction >= 0 && eviction <= 2 && (eviction == 0) == (rows == 0 && bytes == 0),
       "a capacity goes with a way to evict");
  need(sightings <= 255 && (sightings == 0) == (window == 0), "sightings must be 0 to 255, with a window");
  s.bound = {static_cast<Eviction>(eviction), rows, bytes, ttl, ttl_seconds, sightings, window};
  return s;
}

struct PyTicket {
  std::vector<nb::object> keep;  // the arrays the ticket looks into
  std::unique_ptr<Ticket> ticket;
};

using FeatureTuple = std::tuple<uint32_t, Ids, std::optional<In<int64_t, nb::ndim<1>>>,
                                std::optional<In<float, nb::ndim<1>>>, int, uint32_t, size_t, uint32_t>;

// Ids, values, state, marks.
using Block = std::tuple<Ids, In<uint8_t, nb::ndim<2>>, In<float, nb::ndim<2>>,
                         std::optional<In<uint8_t, nb::ndim<2>>>>;

}  // namespace

NB_MODULE(_native, m) {
  nb::class_<TableSpec>(m, "TableSpec")
      .def_prop_ro("dim", [](const TableSpec& s) { return s.dim; })
      .def_prop_ro("state_words", [](const TableSpec& s) { return exported_words(s); })
      .def_prop_ro("value_bytes", [](const TableSpec& s) { return stored_bytes(s.format, s.dim); })
      .def_prop_ro("marks", [](const TableSpec& s) { return s.bound.marks(); })
      .def_prop_ro("bounded", [](const TableSpec& s) { return s.bound.any(); });
  m.def("table_spec", &table_spec);

  nb::class_<PyTicket>(m, "Ticket")
      .def("unique",
           [](nb::handle self, uint32_t table) {
             const auto& t = *nb::cast<PyTicket&>(self).ticket;
             const auto& u = t.unique(table);
             // Lives in the ticket; the array keeps it alive.
             return nb::ndarray<nb::numpy, const uint64_t, nb::ndim<1>>(u.data(), {u.size()}, self);
           })
      .def("positions",
           [](nb::handle self, size_t feature) {
             const auto& t = *nb::cast<PyTicket&>(self).ticket;
             need(feature < t.features().size(), "no such feature");
             const auto& p = t.positions(feature);
             return nb::ndarray<nb::numpy, const int32_t, nb::ndim<1>>(p.data(), {p.size()}, self);
           })
      .def_prop_ro("samples", [](const PyTicket& t) { return t.ticket->samples(); })
      .def_prop_ro("ids", [](const PyTicket& t) { return t.ticket->ids(); });

  nb::class_<Store>(m, "Store")
      .def("__init__",
           [](Store* self, const std::vector<TableSpec*>& specs, int partition_bits, int threads) {
             std::vector<TableSpec> copies;
             for (const TableSpec* s : specs) copies.push_back(*s);
             need(partition_bits >= 0 && partition_bits <= 16, "partitions must be 1 to 65536");
             need(threads >= 1, "threads must be 1 or more");
             new (self) Store(copies, partition_bits, threads);
           })
      .def_prop_ro("threads", [](Store& s) { return s.pool().threads(); })
      .def("pull",
           [](Store& s, const std::vector<uint32_t>& tables, const std::vector<Ids>& ids,
              const std::vector<Out<float, nb::ndim<2>>>& values,
              const std::vector<std::optional<Out<uint8_t, nb::ndim<1>>>>& versions,
              const std::vector<std::optional<Out<uint32_t, nb::ndim<1>>>>& hints, bool create) {
             need(tables.size() == ids.size() && ids.size() == values.size() &&
                      values.size() == versions.size() && values.size() == hints.size(),
                  "one array of ids, values, versions and hints a table");
             std::vector<PullItem> items;
             for (size_t i = 0; i < tables.size(); ++i) {
               need(tables[i] < s.tables(), "no such table");
               need(values[i].shape(0) == ids[i].shape(0) &&
                        values[i].shape(1) == s.table(tables[i]).spec().dim,
                    "values must be [ids, dim]");
               need(!versions[i] || versions[i]->shape(0) == ids[i].shape(0), "versions must be [ids]");
               need(!hints[i] || hints[i]->shape(0) == ids[i].shape(0) + kSealWords,
                    "hints must be [ids + 4]");
               items.push_back({tables[i], ids[i].data(), ids[i].shape(0), values[i].data(),
                                versions[i] ? versions[i]->data() : nullptr,
                                hints[i] ? hints[i]->data() : nullptr});
             }
             nb::gil_scoped_release release;
             s.pull(items, create);
           })
      .def("push",
           [](Store& s, const std::vector<uint32_t>& tables, const std::vector<Ids>& ids,
              const std::vector<In<float, nb::ndim<2>>>& gradients,
              const std::vector<std::optional<In<uint8_t, nb::ndim<1>>>>& versions,
              const std::vector<std::optional<In<uint32_t, nb::ndim<1>>>>& hints, float lr_factor,
              const std::optional<std::vector<Out<uint16_t, nb::ndim<1>>>>& outcomes, uint64_t step) {
             need(tables.size() == ids.size() && ids.size() == gradients.size() &&
                      gradients.size() == versions.size() && gradients.size() == hints.size() &&
                      (!outcomes || outcomes->size() == gradients.size()),
                  "one array of ids, gradients, versions, hints and outcomes a table");
             std::vector<PushItem> items;
             for (size_t i = 0; i < tables.size(); ++i) {
               need(tables[i] < s.tables(), "no such table");
               need(gradients[i].shape(0) == ids[i].shape(0) &&
                        gradients[i].shape(1) == s.table(tables[i]).spec().dim,
                    "gradients must be [ids, dim]");
               need(!versions[i] || versions[i]->shape(0) == ids[i].shape(0), "versions must be [ids]");
               need(!hints[i] || hints[i]->shape(0) == ids[i].shape(0) + kSealWords,
                    "hints must be [ids + 4]");
               need(!outcomes || (*outcomes)[i].shape(0) == ids[i].shape(0), "outcomes must be [ids]");
               items.push_back({tables[i], ids[i].data(), ids[i].shape(0), gradients[i].data(),
                                versions[i] ? versions[i]->data() : nullptr,
                                hints[i] ? hints[i]->data() : nullptr,
                                outcomes ? (*outcomes)[i].data() : nullptr});
             }
             auto bins = std::make_unique<int64_t[]>(257);
             PushResult r;
             {
               nb::gil_scoped_release release;
               r = s.push(items, lr_factor, step);
               std::memcpy(bins.get(), r.staleness, sizeof r.staleness);
             }
             return nb::make_tuple(r.applied, r.missing, r.not_finite, owned(std::move(bins), {257}));
           })
      .def("ticket",
           [](Store& s, const std::vector<FeatureTuple>& features, size_t samples) {
             auto t = std::make_unique<PyTicket>();
             std::vector<TicketFeature> parts;
             for (const FeatureTuple& tuple : features) {
               const auto& [table, ids, offsets, weights, pooling, dim, column, max_length] = tuple;
               const size_t n = ids.shape(0);
               need(table < s.tables(), "no such table");
               need(dim == s.table(table).spec().dim, "the feature's dim is not its table's");
               need(pooling >= 0 && pooling <= 2, "pooling must be 0, 1 or 2");
               need(n < (size_t{1} << 31), "more than 2^31 ids of one feature in a batch");
               if (offsets) {
                 need(offsets->shape(0) == samples + 1, "offsets must be [samples + 1]");
                 const int64_t* o = offsets->data();
                 bool ok = o[0] == 0 && o[samples] == static_cast<int64_t>(n);
                 for (size_t b = 0; b < samples; ++b) ok &= o[b] <= o[b + 1];
                 need(ok, "offsets must ascend from 0 to the number of ids");
               } else {
                 need(n == samples, "without offsets every sample has exactly one id");
               }
               need(!weights || weights->shape(0) == n, "weights must be [ids]");
               parts.push_back({table, ids.data(), n, offsets ? offsets->data() : nullptr,
                                weights ? weights->data() : nullptr, static_cast<uint8_t>(pooling), dim,
                                column, max_length});
               t->keep.push_back(nb::cast(ids));
               if (offsets) t->keep.push_back(nb::cast(*offsets));
               if (weights) t->keep.push_back(nb::cast(*weights));
             }
             {
               nb::gil_scoped_release release;
               t->ticket = std::make_unique<Ticket>(std::move(parts), s.tables(), samples, s.pool());
             }
             return t.release();  // nanobind owns what it is given as a pointer
           })
      .def("pool",
           [](Store& s, const PyTicket& t, const std::vector<In<float, nb::ndim<2>>>& rows,
              Out<float, nb::ndim<2>> out, const std::vector<Out<float, nb::ndim<3>>>& sequences,
              const std::vector<Out<bool, nb::ndim<2>>>& masks) {
             const Ticket& ticket = *t.ticket;
             need(rows.size() == s.tables(), "one array of rows a table");
             std::vector<const float*> r;
             for (size_t i = 0; i < rows.size(); ++i) {
               need(rows[i].shape(0) >= ticket.unique(static_cast<uint32_t>(i)).size(), "too few rows");
               r.push_back(rows[i].data());
             }
             need(out.shape(0) == ticket.samples(), "out must be [samples, width]");
             size_t sequence = 0;
             for (const TicketFeature& f : ticket.features()) {
               need(rows[f.table].shape(1) == f.dim, "rows must be [U, dim]");
               if (f.max_length == 0) {
                 need(f.column + f.dim <= out.shape(1), "out is too narrow");
               } else {
                 need(sequence < sequences.size() && sequence < masks.size(), "one array a sequence");
                 const auto& q = sequences[sequence];
                 need(q.shape(0) == ticket.samples() && q.shape(1) == f.max_length && q.shape(2) == f.dim &&
                          masks[sequence].shape(0) == ticket.samples() &&
                          masks[sequence].shape(1) == f.max_length,
                      "a sequence must be [samples, length, dim], its mask [samples, length]");
                 ++sequence;
               }
             }
             std::vector<float*> q;
             std::vector<uint8_t*> k;
             for (const auto& x : sequences) q.push_back(x.data());
             for (const auto& x : masks) k.push_back(reinterpret_cast<uint8_t*>(x.data()));
             float* o = out.data();
             const size_t width = out.shape(1);
             nb::gil_scoped_release release;
             ticket.pool(r, o, width, q, k, s.pool());
           })
      .def("unpool",
           [](Store& s, const PyTicket& t, std::optional<In<float, nb::ndim<2>>> grad,
              const std::vector<std::optional<In<float, nb::ndim<3>>>>& sequences,
              const std::vector<Out<float, nb::ndim<2>>>& rows) {
             const Ticket& ticket = *t.ticket;
             need(rows.size() == s.tables(), "one array of rows a table");
             need(!grad || grad->shape(0) == ticket.samples(), "the gradient must be [samples, width]");
             const size_t width = grad ? grad->shape(1) : 0;
             size_t sequence = 0;
             for (const TicketFeature& f : ticket.features()) {
               need(
                   rows[f.table].shape(1) == f.dim && rows[f.table].shape(0) == ticket.unique(f.table).size(),
                   "rows must be [U, dim]");
               if (f.max_length == 0) {
                 need(!grad || f.column + f.dim <= width, "the gradient is too narrow");
               } else {
                 need(sequence < sequences.size(), "one gradient a sequence");
                 const auto& q = sequences[sequence++];
                 need(!q || (q->shape(0) == ticket.samples() && q->shape(1) == f.max_length &&
                             q->shape(2) == f.dim),
                      "a sequence's gradient must be [samples, length, dim]");
               }
             }
             std::vector<const float*> q;
             for (const auto& x : sequences) q.push_back(x ? x->data() : nullptr);
             std::vector<float*> r;
             for (const auto& x : rows) r.push_back(x.data());
             const float* g = grad ? grad->data() : nullptr;
             nb::gil_scoped_release release;
             ticket.unpool(g, width, q, r, s.pool());
           })
      .def("erase",
           [](Store& s, uint32_t table, const Ids& ids) {
             need(table < s.tables(), "no such table");
             nb::gil_scoped_release release;
             Table& t = s.table(table);
             s.prefetch(table, ids.data(), ids.shape(0));
             std::unique_lock lock(t.mutex());
             size_t erased = 0;
             for (size_t i = 0; i < ids.shape(0); ++i) erased += t.erase(ids.data()[i]);
             return erased;
           })
      .def("reserve_rows",
           [](Store& s, uint32_t table, uint64_t rows,
              const std::optional<std::vector<uint32_t>>& partitions) {
             need(table < s.tables(), "no such table");
             std::vector<bool> wanted(s.table(table).partitions(), !partitions);
             if (partitions)
               for (uint32_t p : *partitions) {
                 need(p < wanted.size(), "no such partition");
                 wanted[p] = true;
               }
             nb::gil_scoped_release release;
             std::unique_lock lock(s.table(table).mutex());
             s.table(table).reserve_rows(rows, &wanted);
           })
      .def("fill",
           [](Store& s, uint32_t table, const Ids& ids) {
             need(table < s.tables(), "no such table");
             need(ids.shape(0) < (size_t{1} << 32), "more than 2^32 ids in a call");
             nb::gil_scoped_release release;
             return s.fill(table, ids.data(), ids.shape(0));
           })
      .def("clear",
           [](Store& s) {
             nb::gil_scoped_release release;
             for (uint32_t i = 0; i < s.tables(); ++i) {
               std::unique_lock lock(s.table(i).mutex());
               s.table(i).clear();
             }
           })
      .def("size",
           [](Store& s, uint32_t table) {
             need(table < s.tables(), "no such table");
             std::shared_lock lock(s.table(table).mutex());
             const TableSize z = s.table(table).size();
             return nb::make_tuple(z.rows, z.value_bytes, z.state_bytes, z.overhead_bytes);
           })
      .def("open_cold",
           [](Store& s, uint32_t table, const std::string& folder, const std::string& name) {
             need(table < s.tables(), "no such table");
             const BoundSpec& b = s.table(table).spec().bound;
             need(b.eviction != Eviction::kNone && b.ttl == 0 && s.table(table).size().rows == 0,
                  "rows go to disk where there is a capacity, no time to live, and no row yet");
             s.open_cold(table, folder, name);
           })
      .def("prefetch",
           [](const Store& s, uint32_t table, const Ids& ids) {
             need(table < s.tables(), "no such table");
             nb::gil_scoped_release release;
             s.prefetch(table, ids.data(), ids.shape(0));
           })
      .def("cold_counts",
           [](Store& s, uint32_t table) {
             need(table < s.tables(), "no such table");
             std::shared_lock lock(s.table(table).mutex());
             const ColdCounts c =
                 s.table(table).cold() == nullptr ? ColdCounts() : s.table(table).cold()->counts();
             return nb::make_tuple(c.rows, c.file_bytes, c.index_bytes, c.written, c.moved, c.returned,
                                   c.looked_up);
           })
      .def("held_bytes", [](Store& s) { return s.held(); })
      .def("set_limit", [](Store& s, uint64_t bytes) { s.set_limit(bytes); })
      .def("set_clock", [](Store& s, uint64_t seconds) { s.set_clock(seconds); })
      .def("clock", [](Store& s) { return s.clock(); })
      .def("share",
           [](Store& s, uint32_t table, uint32_t partition) {
             need(table < s.tables() && partition < s.table(table).partitions(), "no such partition");
             return s.table(table).share(partition);
           })
      .def("bound_counts",
           [](Store& s, uint32_t table) {
             need(table < s.tables(), "no such table");
             std::shared_lock lock(s.table(table).mutex());
             const BoundCounts c = s.table(table).bound_counts();
             return nb::make_tuple(c.admitted, c.evicted, c.expired, c.refused);
           })
      .def("export_bound",
           [](Store& s, uint32_t table, uint32_t partition) {
             need(table < s.tables(), "no such table");
             Table& t = s.table(table);
             need(partition < t.partitions(), "no such partition");
             std::string state;
             if (t.bounded()) {
               std::shared_lock lock(t.mutex());
               state = t.export_bound(partition);
             }
             return nb::bytes(state.data(), state.size());
           })
      .def("import_bound",
           [](Store& s, uint32_t table, uint32_t partition, const nb::bytes& state) {
             need(table < s.tables(), "no such table");
             Table& t = s.table(table);
             if (partition >= t.partitions() || !t.bounded()) return false;
             std::unique_lock lock(t.mutex());
             return t.import_bound(partition, state.c_str(), state.size());
           })
      .def("keep_removals",
           [](Store& s, uint32_t table) {
             need(table < s.tables(), "no such table");
             std::unique_lock lock(s.table(table).mutex());
             s.table(table).keep_removals();
           })
      .def("removals_lost",
           [](Store& s, uint32_t table, uint32_t partition) {
             need(table < s.tables(), "no such table");
             Table& t = s.table(table);
             need(partition < t.partitions() && t.bounded(), "no such partition of a bounded table");
             std::shared_lock lock(t.mutex());
             return t.bound(partition).removed.lost;
           })
      .def("take_removals",
           [](Store& s, uint32_t table, uint32_t partition) {
             need(table < s.tables(), "no such table");
             Table& t = s.table(table);
             need(partition < t.partitions() && t.bounded(), "no such partition of a bounded table");
             std::string state;
             std::unique_lock lock(t.mutex());
             const Removals removed = t.take_removals(partition, &state);
             return nb::make_tuple(removed.lost, owned_ids(removed.ids),
                                   nb::bytes(state.data(), state.size()));
           })
      .def("follow",
           [](Store& s, uint32_t table, uint32_t partition, bool on) {
             need(table < s.tables(), "no such table");
             Table& t = s.table(table);
             need(partition < t.partitions() && t.bounded(), "no such partition of a bounded table");
             std::unique_lock lock(t.mutex());
             on ? t.follow(partition) : t.unfollow(partition);
           })
      .def("take_followed",
           [](Store& s, uint32_t table, uint32_t partition) {
             need(table < s.tables(), "no such table");
             Table& t = s.table(table);
             need(partition < t.partitions() && t.bounded(), "no such partition of a bounded table");
             std::unique_lock lock(t.mutex());
             const Removals removed = t.take_followed(partition);
             return nb::make_tuple(removed.lost, owned_ids(removed.ids));
           })
      .def("export_clocks",
           [](Store& s, uint32_t table, uint32_t partition, bool whole) {
             need(table < s.tables(), "no such table");
             Table& t = s.table(table);
             need(partition < t.partitions() && t.bounded(), "no such partition of a bounded table");
             std::shared_lock lock(t.mutex());
             const std::string state = t.export_clocks(partition, whole);
             return nb::bytes(state.data(), state.size());
           })
      .def("rows_of",
           [](Store& s, uint32_t table, uint32_t partition) {
             need(table < s.tables() && partition < s.table(table).partitions(), "no such partition");
             std::shared_lock lock(s.table(table).mutex());
             return s.table(table).rows(partition);
           })
      .def("export_ids",
           [](Store& s, uint32_t table, uint32_t partition) {
             need(table < s.tables(), "no such table");
             Table& t = s.table(table);
             need(partition < t.partitions(), "no such partition");
             std::vector<uint64_t> ids;
             {
               nb::gil_scoped_release release;
               std::shared_lock lock(t.mutex());
               ids = t.ids(partition);
             }
             return owned_ids(ids);
           })
      .def("in_memory",
           [](Store& s, uint32_t table, const Ids& ids) {
             need(table < s.tables(), "no such table");
             Table& t = s.table(table);
             const size_t n = ids.shape(0);
             std::unique_ptr<uint8_t[]> there(new uint8_t[n]);
             {
               nb::gil_scoped_release release;
               std::shared_lock lock(t.mutex());
               for (size_t i = 0; i < n; ++i) there[i] = static_cast<bool>(t.find(ids.data()[i]));
             }
             return owned(std::move(there), {n});
           })
      .def("open_cut",
           [](Store& s, uint32_t table) {
             need(table < s.tables() && s.table(table).bounded(), "no such bounded table");
             Table& t = s.table(table);
             std::unique_lock lock(t.mutex());
             for (uint32_t p = 0; p < t.partitions(); ++p) t.open_cut(p);
             return t.cut_bytes();
           })
      .def("close_cut",
           [](Store& s, uint32_t table, uint32_t partition) {
             need(table < s.tables() && partition < s.table(table).partitions(), "no such partition");
             nb::gil_scoped_release release;
             std::unique_lock lock(s.table(table).mutex());
             s.table(table).close_cut(partition);
             return s.table(table).cut_bytes();
           })
      .def("cut_bound",
           [](Store& s, uint32_t table, uint32_t partition) {
             need(table < s.tables() && partition < s.table(table).partitions(), "no such partition");
             std::string state;
             {
               nb::gil_scoped_release release;
               std::shared_lock lock(s.table(table).mutex());
               state = s.table(table).cut_bound(partition);
             }
             return nb::bytes(state.data(), state.size());
           })
      .def("cut_marks",
           [](Store& s, uint32_t index, const Ids& ids) {
             need(index < s.tables(), "no such table");
             Table& t = s.table(index);
             const size_t n = ids.shape(0), marks_of = t.exported_marks();
             std::unique_ptr<uint8_t[]> marks(new uint8_t[n * marks_of]());
             if (marks_of != 0) {
               nb::gil_scoped_release release;
               std::shared_lock lock(t.mutex());
               t.cut_marks(ids.data(), n, marks.get());
             }
             return owned(std::move(marks), {n, marks_of});
           })
      .def("take_cut_rows",
           [](Store& s, uint32_t index) {
             need(index < s.tables(), "no such table");
             Table& t = s.table(index);
             CutRows rows;
             bool whole = false;
             {
               nb::gil_scoped_release release;
               std::unique_lock lock(t.mutex());
               whole = t.take_cut_rows(&rows);
             }
             const size_t n = rows.ids.size();
             const auto array = [&]<typename T>(const std::vector<T>& from, size_t width) {
               std::unique_ptr<T[]> to(new T[n * width]);
               std::copy(from.begin(), from.end(), to.get());
               return owned(std::move(to), {n, width});
             };
             return nb::make_tuple(whole, owned_ids(rows.ids),
                                   array(rows.values, stored_bytes(t.spec().format, t.layout().dim)),
                                   array(rows.state, exported_words(t.spec())),
                                   array(rows.marks, t.exported_marks()));
           })
      .def("advance_bound",
           [](Store& s, uint32_t table, uint32_t partition, const nb::bytes& state) {
             need(table < s.tables(), "no such table");
             Table& t = s.table(table);
             if (partition >= t.partitions() || !t.bounded()) return false;
             std::unique_lock lock(t.mutex());
             return t.advance_bound(partition, state.c_str(), state.size());
           })
      .def("export_rows",
           [](Store& s, uint32_t index, uint32_t partition) {
             need(index < s.tables(), "no such table");
             Table& t = s.table(index);
             need(partition < t.partitions(), "no such partition");
             const RowLayout& l = t.layout();
             const size_t value_bytes = stored_bytes(t.spec().format, l.dim);
             const uint32_t words = exported_words(t.spec()), marks_of = t.exported_marks();
             std::unique_ptr<uint64_t[]> ids;
             std::unique_ptr<uint8_t[]> values;
             std::unique_ptr<float[]> state;
             std::unique_ptr<uint8_t[]> marks;
             size_t n = 0;
             {
               nb::gil_scoped_release release;
               std::shared_lock lock(t.mutex());
               n = t.rows(partition);
               ids.reset(new uint64_t[n]);
               values.reset(new uint8_t[n * value_bytes]);
               state.reset(new float[n * words]);
               marks.reset(new uint8_t[n * marks_of]);
               size_t i = 0;
               t.visit_ordered(partition, [&](uint64_t id, const Row& row) {
                 ids[i] = id;
                 export_row(t.spec(), row, values.get() + i * value_bytes, state.get() + i * words);
                 if (marks_of != 0) t.export_marks(partition, row, marks.get() + i * marks_of);
                 ++i;
               });
             }
             return nb::make_tuple(owned(std::move(ids), {n}), owned(std::move(values), {n, value_bytes}),
                                   owned(std::move(state), {n, words}),
                                   owned(std::move(marks), {n, marks_of}));
           })
      .def("read_rows",
           [](Store& s, uint32_t index, const Ids& ids) {
             need(index < s.tables(), "no such table");
             Table& t = s.table(index);
             const RowLayout& l = t.layout();
             const size_t value_bytes = stored_bytes(t.spec().format, l.dim);
             const uint32_t words = exported_words(t.spec()), marks_of = t.exported_marks();
             std::unique_ptr<uint64_t[]> found;
             std::unique_ptr<uint8_t[]> values, marks;
             std::unique_ptr<float[]> state;
             size_t n = 0;
             {
               nb::gil_scoped_release release;
               s.prefetch(index, ids.data(), ids.shape(0));
               std::shared_lock lock(t.mutex());
               const size_t most = ids.shape(0);
               std::vector<char> record;
               found.reset(new uint64_t[most]);
               values.reset(new uint8_t[most * value_bytes]);
               state.reset(new float[most * words]);
               marks.reset(new uint8_t[most * marks_of]);
               for (size_t i = 0; i < most; ++i) {
                 const Row row = t.find_anywhere(ids.data()[i], &record);
                 if (!row) continue;
                 found[n] = ids.data()[i];
                 export_row(t.spec(), row, values.get() + n * value_bytes, state.get() + n * words);
                 if (marks_of != 0) t.export_marks(t.partition_of(found[n]), row, marks.get() + n * marks_of);
                 ++n;
               }
             }
             return nb::make_tuple(owned(std::move(found), {n}), owned(std::move(values), {n, value_bytes}),
                                   owned(std::move(state), {n, words}),
                                   owned(std::move(marks), {n, marks_of}));
           })
      .def("import_rows", [](Store& s, uint32_t index, const std::vector<Block>& blocks) {
        need(index < s.tables(), "no such table");
        const Table& t = s.table(index);
        const size_t value_bytes = stored_bytes(t.spec().format, t.layout().dim);
        const uint32_t words = exported_words(t.spec());
        std::vector<RowArrays> rows;
        for (const auto& [ids, values, state, marks] : blocks) {
          const size_t n = ids.shape(0);
          need(values.shape(0) == n && values.shape(1) == value_bytes,
               "values must be [ids, bytes of a row's values]");
          need(state.shape(0) == n && state.shape(1) == words, "state must be [ids, words of state]");
          need(!marks || (marks->shape(0) == n && marks->shape(1) == t.exported_marks()),
               "marks must be [ids, marks]");
          rows.push_back({ids.data(), n, values.data(), state.data(), marks ? marks->data() : nullptr});
        }
        nb::gil_scoped_release release;
        s.import_rows(index, rows);
      });

  m.def("has_duplicates", [](const Ids& ids) {
    nb::gil_scoped_release release;
    return has_duplicates(ids.data(), ids.shape(0));
  });
  m.def("convert_rows", [](const TableSpec& from, const TableSpec& to, const In<uint8_t, nb::ndim<2>>& values,
                           const In<float, nb::ndim<2>>& state) {
    need(from.dim == to.dim && from.optimizer.kind == to.optimizer.kind &&
             (from.optimizer.momentum > 0) == (to.optimizer.momentum > 0),
         "rows of another dim or optimizer");
    const size_t n = values.shape(0), bytes = stored_bytes(to.format, to.dim), words = exported_words(to);
    need(values.shape(1) == stored_bytes(from.format, from.dim), "values must be [rows, bytes of a row]");
    need(state.shape(0) == n && state.shape(1) == exported_words(from),
         "state must be [rows, words of state]");
    std::unique_ptr<uint8_t[]> new_values(new uint8_t[n * bytes]);
    std::unique_ptr<float[]> new_state(new float[n * words]);
    {
      nb::gil_scoped_release release;
      for (size_t i = 0; i < n; ++i)
        convert_row(from, to, values.data() + i * values.shape(1), state.data() + i * state.shape(1),
                    new_values.get() + i * bytes, new_state.get() + i * words);
    }
    return nb::make_tuple(owned(std::move(new_values), {n, bytes}), owned(std::move(new_state), {n, words}));
  });
  m.def("initial_values", [](const TableSpec& spec, uint64_t id) {
    auto values = std::make_unique<float[]>(spec.dim);
    kernels().initialize(spec, id, values.get(), nullptr);
    return owned(std::move(values), {spec.dim});
  });
  m.def("mix", [](const Ids& ids) {
    auto out = std::make_unique<uint64_t[]>(ids.shape(0));
    for (size_t i = 0; i < ids.shape(0); ++i) out[i] = mix(ids.data()[i]);
    return owned(std::move(out), {ids.shape(0)});
  });
  m.def("hash_ids", [](const Ids& ids, uint64_t key, uint64_t rows, uint32_t hashes) {
    need(rows >= 1 && hashes >= 1, "rows and hashes must be 1 or more");
    auto out = std::make_unique<uint64_t[]>(ids.shape(0) * hashes);
    {
      nb::gil_scoped_release release;
      hash_ids(ids.data(), ids.shape(0), key, rows, hashes, out.get());
    }
    return owned(std::move(out), {ids.shape(0) * hashes});
  });
  m.def("split_ids", [](const Ids& ids, uint64_t key, uint64_t rows) {
    need(rows >= 1 && rows < uint64_t{1} << 32, "rows must be 1 to 2^32 - 1");
    auto out = std::make_unique<uint64_t[]>(ids.shape(0) * 2);
    {
      nb::gil_scoped_release release;
      split_ids(ids.data(), ids.shape(0), key, rows, out.get());
    }
    return owned(std::move(out), {ids.shape(0) * 2});
  });
  m.attr("seal_words") = kSealWords;
  m.def("instruction_level", [] { return kernels().name; });
  bind_wire(m);
  bind_durable(m);
}
