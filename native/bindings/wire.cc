// Rows as bytes of a message, for satrap.store.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <optional>

#include "bindings/arrays.h"
#include "wire/rows.h"

namespace satrap {
namespace {

using Indices = In<uint32_t, nb::ndim<1>>;

// Rows of the message, after a look at every index.
size_t check_indices(const std::optional<Indices>& indices, size_t rows_of_array, size_t rows) {
  if (!indices) return rows;
  uint32_t most = 0;
  const uint32_t* p = indices->data();
  for (size_t i = 0; i < indices->shape(0); ++i) most = std::max(most, p[i]);
  need(indices->shape(0) == 0 || most < rows_of_array, "an index is beyond the rows of the array");
  return indices->shape(0);
}

WireFormat format_of(int format) {
  need(format >= 0 && format <= 2, "format must be 0, 1 or 2");
  return static_cast<WireFormat>(format);
}

template <typename T>
void bind_moves(nb::module_& m) {
  m.def("gather", [](const In<T, nb::ndim<1>>& in, const Indices& order, const Out<T, nb::ndim<1>>& out) {
    nb::gil_scoped_release release;
    check_indices(order, in.shape(0), 0);
    need(out.shape(0) == order.shape(0), "out must be as long as the order");
    gather(in.data(), order.data(), order.shape(0), out.data());
  });
  m.def("scatter",
        [](const In<T, nb::ndim<1>>& in, const Indices& positions, const Out<T, nb::ndim<1>>& out) {
          nb::gil_scoped_release release;
          check_indices(positions, out.shape(0), 0);
          need(in.shape(0) == positions.shape(0), "there must be a position for each element");
          scatter(in.data(), positions.data(), positions.shape(0), out.data());
        });
}

}  // namespace

void bind_wire(nb::module_& m) {
  bind_moves<uint64_t>(m);
  bind_moves<uint8_t>(m);
  m.def("largest", [](const In<float, nb::ndim<2>>& values) {
    nb::gil_scoped_release release;
    return wire_kernels().largest(values.data(), values.shape(0) * values.shape(1));
  });
  m.def("half_scale", &half_scale);
  m.def(
      "encode_rows",
      [](const In<float, nb::ndim<2>>& values, int format, float scale, const std::optional<Indices>& order,
         const Out<uint8_t, nb::ndim<1>>& out) {
        nb::gil_scoped_release release;
        const WireFormat f = format_of(format);
        const size_t rows = check_indices(order, values.shape(0), values.shape(0)), dim = values.shape(1);
        need(dim >= 1 && dim <= 4096, "dim must be 1 to 4096");
        need(out.shape(0) == section_bytes(f, rows, dim), "out has not the bytes of these rows");
        return wire_kernels().encode(f, values.data(), order ? order->data() : nullptr, rows,
                                     static_cast<uint32_t>(dim), scale, reinterpret_cast<char*>(out.data()));
      },
      nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg());
  m.def(
      "decode_rows",
      [](const In<uint8_t, nb::ndim<1>>& buffer, size_t rows, int format, float scale,
         const Out<float, nb::ndim<2>>& out, const std::optional<Indices>& positions) {
        nb::gil_scoped_release release;
        const WireFormat f = format_of(format);
        const size_t dim = out.shape(1);
        need(dim >= 1 && dim <= 4096, "dim must be 1 to 4096");
        need(check_indices(positions, out.shape(0), out.shape(0)) == rows,
             "there must be a position, or a row of out, for each row");
        need(buffer.shape(0) == section_bytes(f, rows, dim), "the buffer has not the bytes of these rows");
        wire_kernels().decode(f, reinterpret_cast<const char*>(buffer.data()), rows,
                              static_cast<uint32_t>(dim), scale, positions ? positions->data() : nullptr,
                              out.data());
      },
      nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none());
  m.def("route", [](const In<uint64_t, nb::ndim<1>>& ids, int partition_bits,
                    const In<uint16_t, nb::ndim<1>>& owners, size_t servers) {
    const size_t n = ids.shape(0);
    need(partition_bits >= 0 && partition_bits <= 16, "partitions must be 1 to 65536");
    need(owners.shape(0) == size_t{1} << partition_bits, "one owner a partition");
    need(servers >= 1 && servers <= 65536, "servers must be 1 to 65536");
    need(n < (size_t{1} << 32), "more than 2^32 ids");
    auto order = std::make_unique_for_overwrite<uint32_t[]>(n);
    auto counts = std::make_unique<int64_t[]>(servers);
    {
      nb::gil_scoped_release release;
      uint16_t most = 0;
      for (size_t p = 0; p < owners.shape(0); ++p) most = std::max(most, owners.data()[p]);
      need(most < servers, "an owner is not one of the servers");
      route(ids.data(), n, partition_bits, owners.data(), servers, order.get(), counts.get());
    }
    return nb::make_tuple(owned(std::move(order), {n}), owned(std::move(counts), {servers}));
  });
}

}  // namespace satrap
