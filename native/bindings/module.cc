// Python's view of the native core: arrays in, arrays out. No logic lives here; satrap.store gives it names
// and docs.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <unordered_set>

#include "base/hash.h"
#include "bindings/arrays.h"
#include "table/store.h"
#include "table/ticket.h"

using namespace satrap;

namespace {

TableSpec table_spec(uint32_t dim, int format, int optimizer, const std::vector<float>& o, int initializer,
                     float a, float b, float max_gradient, uint64_t key) {
  need(dim >= 1 && dim <= 4096, "dim must be 1 to 4096");
  need(o.size() == 10, "ten optimizer settings expected");
  TableSpec s;
  s.dim = dim;
  s.format = static_cast<ValueFormat>(format);
  s.optimizer = {
      static_cast<OptimizerKind>(optimizer), o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7], o[8], o[9]};
  s.initializer = {static_cast<InitializerKind>(initializer), a, b};
  s.max_gradient = max_gradient;
  s.key = key;
  return s;
}

struct PyTicket {
  std::vector<nb::object> keep;  // the arrays the ticket looks into
  std::unique_ptr<Ticket> ticket;
};

using FeatureTuple = std::tuple<uint32_t, Ids, std::optional<In<int64_t, nb::ndim<1>>>,
                                std::optional<In<float, nb::ndim<1>>>, int, uint32_t, size_t, uint32_t>;

}  // namespace

NB_MODULE(_native, m) {
  nb::class_<TableSpec>(m, "TableSpec")
      .def_prop_ro("dim", [](const TableSpec& s) { return s.dim; })
      .def_prop_ro("state_floats", [](const TableSpec& s) { return RowLayout(s).state_floats; })
      .def_prop_ro("value_bytes", [](const TableSpec& s) { return RowLayout(s).value_bytes; });
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
              const std::vector<Out<uint8_t, nb::ndim<1>>>& versions,
              const std::vector<Out<uint32_t, nb::ndim<1>>>& hints, bool create) {
             need(tables.size() == ids.size() && ids.size() == values.size() &&
                      values.size() == versions.size() && values.size() == hints.size(),
                  "one array of ids, values, versions and hints a table");
             std::vector<PullItem> items;
             for (size_t i = 0; i < tables.size(); ++i) {
               need(tables[i] < s.tables(), "no such table");
               need(values[i].shape(0) == ids[i].shape(0) &&
                        values[i].shape(1) == s.table(tables[i]).spec().dim,
                    "values must be [ids, dim]");
               need(versions[i].shape(0) == ids[i].shape(0), "versions must be [ids]");
               need(hints[i].shape(0) == ids[i].shape(0) + 1, "hints must be [ids + 1]");
               items.push_back({tables[i], ids[i].data(), ids[i].shape(0), values[i].data(),
                                versions[i].data(), hints[i].data()});
             }
             nb::gil_scoped_release release;
             s.pull(items, create);
           })
      .def("push",
           [](Store& s, const std::vector<uint32_t>& tables, const std::vector<Ids>& ids,
              const std::vector<In<float, nb::ndim<2>>>& gradients,
              const std::vector<std::optional<In<uint8_t, nb::ndim<1>>>>& versions,
              const std::vector<std::optional<In<uint32_t, nb::ndim<1>>>>& hints, float lr_factor,
              const std::optional<std::vector<Out<uint16_t, nb::ndim<1>>>>& outcomes) {
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
               need(!hints[i] || hints[i]->shape(0) == ids[i].shape(0) + 1, "hints must be [ids + 1]");
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
               r = s.push(items, lr_factor);
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
      .def("export_rows",
           [](Store& s, uint32_t index, uint32_t partition) {
             need(index < s.tables(), "no such table");
             Table& t = s.table(index);
             need(partition < t.partitions(), "no such partition");
             const RowLayout& l = t.layout();
             const size_t value_bytes = l.dim * (t.spec().format == ValueFormat::kFp32 ? 4 : 2);
             std::unique_ptr<uint64_t[]> ids;
             std::unique_ptr<uint8_t[]> values;
             std::unique_ptr<float[]> state;
             size_t n = 0;
             {
               nb::gil_scoped_release release;
               std::shared_lock lock(t.mutex());
               n = t.rows(partition);
               ids.reset(new uint64_t[n]);
               values.reset(new uint8_t[n * value_bytes]);
               state.reset(new float[n * l.state_floats]);
               size_t i = 0;
               t.visit_ordered(partition, [&](uint64_t id, const char* row) {
                 ids[i] = id;
                 std::memcpy(values.get() + i * value_bytes, row + RowLayout::kHeader, value_bytes);
                 std::memcpy(state.get() + i * l.state_floats, row + l.state_offset(),
                             4 * size_t{l.state_floats});
                 ++i;
               });
             }
             return nb::make_tuple(owned(std::move(ids), {n}), owned(std::move(values), {n, value_bytes}),
                                   owned(std::move(state), {n, l.state_floats}));
           })
      .def("import_rows", [](Store& s, uint32_t index, const Ids& ids, const In<uint8_t, nb::ndim<2>>& values,
                             const In<float, nb::ndim<2>>& state) {
        need(index < s.tables(), "no such table");
        Table& t = s.table(index);
        const RowLayout& l = t.layout();
        const size_t value_bytes = l.dim * (t.spec().format == ValueFormat::kFp32 ? 4 : 2), n = ids.shape(0);
        need(values.shape(0) == n && values.shape(1) == value_bytes,
             "values must be [ids, bytes of a row's values]");
        need(state.shape(0) == n && state.shape(1) == l.state_floats, "state must be [ids, state floats]");
        nb::gil_scoped_release release;
        std::unique_lock lock(t.mutex());
        for (size_t i = 0; i < n; ++i) {
          bool inserted;
          char* row = t.find_or_insert(ids.data()[i], &inserted);
          row[0] = 0;
          std::memcpy(row + RowLayout::kHeader, values.data() + i * value_bytes, value_bytes);
          std::memcpy(row + l.state_offset(), state.data() + i * l.state_floats, 4 * size_t{l.state_floats});
        }
      });

  m.def("has_duplicates", [](const Ids& ids) {
    nb::gil_scoped_release release;
    return has_duplicates(ids.data(), ids.shape(0));
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
  m.def("instruction_level", [] { return kernels().name; });
  bind_wire(m);
}
