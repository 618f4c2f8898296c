// SPDX-License-Identifier: MIT
// What the bindings of masked_upsample_pool on CPU and CUDA share: maps and regions read from tensors, results made.
// `Backend` has the four kernels with their last argument, threads or a place, left out; those that read regions return
// whether these are valid.
#pragma once

#include <algorithm>

#include "common/bind_tensor.h"
#include "pool/cpu.h"

namespace mixfast {
namespace bind {

constexpr int64_t kLargestSide = int64_t{1} << 24;  // pixels, as in _checks.py

struct DenseMaps {
  Tensor tensor;
  Maps maps;
};

// The maps as they are if they are contiguous or channels last, else a copy.
inline DenseMaps dense(const Tensor& features) {
  const bool channels_last = !features.contiguous() && features.channels_last();
  const Tensor kept = channels_last ? features : contiguous(features);
  const int64_t* const n = kept.size;
  return {kept, {n[0], n[1], n[2], n[3], static_cast<Dtype>(kept.number), channels_last}};
}

struct DenseRegions {
  Tensor tensor;
  Regions regions;
};

// Boxes [B, 4] or [4] of any integers, or a mask [B, height, width].
inline DenseRegions dense(const Tensor& regions, int64_t height, int64_t width) {
  const bool boxes = regions.dims < 3;
  const Tensor kept = contiguous(boxes ? as_int64(regions) : regions);
  const int64_t images = kept.dims == 1 ? 1 : kept.size[0];
  return {kept, {kept.data, images, height, width, boxes, static_cast<Dtype>(kept.number)}};
}

// What maps are summed in, and so the dtype of their weights.
inline Number sums(const Tensor& features) { return features.number == kFloat64 ? kFloat64 : kFloat32; }

struct Pooled {
  Tensor inside, outside, weights;
  bool channels_last, valid;
};

template <class Backend>
Pooled pool(const Tensor& features, const Tensor& regions, int64_t height, int64_t width) {
  const DenseMaps map = dense(features);
  const DenseRegions where = dense(regions, height, width);
  const auto& [b, c, h, w, dtype, channels_last] = map.maps;
  const Tensor weights = empty(map.tensor, {where.regions.images, 2, h, w}, sums(features));
  const Tensor inside = empty(map.tensor, {b, c}, features.number),
               outside = empty(map.tensor, {b, c}, features.number);
  const Backend backend(map.tensor);
  const bool valid = backend.pool_regions(map.maps, map.tensor.data, where.regions, weights, inside.data, outside.data);
  return {inside, outside, weights, channels_last, valid};
}

// (inside, outside, weights); None if a box leaves the map or a mask leaves [0, 1].
template <class Backend>
py::object pool_regions(py::handle features, py::handle regions, int64_t height, int64_t width) {
  const Pooled made = pool<Backend>(read(features), read(regions), height, width);
  if (!made.valid) return py::none();
  return py::make_tuple(made.inside.object, made.outside.object, made.weights.object);
}

inline bool try_size(py::handle size, int64_t& height, int64_t& width) {
  std::vector<int64_t> sides;
  if (!try_integers(size, sides) || sides.size() != 2) return false;
  height = sides[0], width = sides[1];
  return 1 <= height && height <= kLargestSide && 1 <= width && width <= kLargestSide;
}

// Whether these are plain tensors that pass the checks of _checks.py, and how large the upsampled map is.
inline bool accepts(const Tensor& features, const Tensor& regions, py::handle output_size, int64_t& height,
                    int64_t& width) {
  if (features.dims != 4 || !features.floating() || features.size[2] < 1 || features.size[3] < 1) return false;
  if (!regions.with(features) || requires_grad(regions)) return false;
  if (regions.dims != 1 && regions.size[0] != features.size[0]) return false;
  if (regions.dims != 3) {
    return (regions.dims == 1 || regions.dims == 2) && regions.size[regions.dims - 1] == 4 &&
           (regions.number == kInt64 || regions.number == kInteger) && try_size(output_size, height, width);
  }
  const int64_t *const sides = regions.size + 1, least = std::min(sides[0], sides[1]);
  if (least < 1 || std::max(sides[0], sides[1]) > kLargestSide || regions.number > kByte) return false;
  if (!output_size.is_none() && !try_size(output_size, height, width)) return false;
  if (!output_size.is_none() && (height != sides[0] || width != sides[1])) return false;
  height = sides[0], width = sides[1];
  return true;
}

// The public function on plain tensors; None for all that needs a closer look by the checks in Python or another
// backend. `apply` makes the results differentiable: it gets the features and (inside, outside, weights, whether
// channels are last, the backend's name).
template <class Backend>
py::object masked_upsample_pool(py::handle apply, py::handle features, py::handle regions, py::handle output_size,
                                py::handle backend) {
  Tensor map, where;
  int64_t height, width;
  if (!names_backend(backend, Backend::kName) || !nothing_on() || !try_read_plain(features, map) ||
      map.kind != Backend::kKind || !try_read_plain(regions, where) ||
      !accepts(map, where, output_size, height, width)) {
    return py::none();
  }
  const Pooled made = pool<Backend>(map, where, height, width);
  if (!made.valid) return py::none();
  if (!requires_grad(map) || !grad_enabled()) return py::make_tuple(made.inside.object, made.outside.object);
  return apply(features, py::make_tuple(made.inside.object, made.outside.object, made.weights.object,
                                        made.channels_last, Backend::kName));
}

// The weights [B, 2, h, w], float64 if `wide`; None as for pool_regions.
template <class Backend>
py::object region_weights(py::handle regions, int64_t height, int64_t width, int64_t h, int64_t w, bool wide) {
  const DenseRegions where = dense(read(regions), height, width);
  const Tensor weights = empty(where.tensor, {where.regions.images, 2, h, w}, wide ? kFloat64 : kFloat32);
  const Backend backend(where.tensor);
  if (!backend.region_weights(where.regions, h, w, wide, weights)) return py::none();
  return weights.object;
}

template <class Backend>
py::object pool_weights(py::handle features, py::handle weights) {
  const DenseMaps map = dense(read(features));
  const Tensor kept = contiguous(read(weights)), &from = map.tensor;
  const Tensor inside = empty(from, {map.maps.batch, map.maps.channels}, from.number);
  const Tensor outside = empty(from, {map.maps.batch, map.maps.channels}, from.number);
  Backend(from).pool_weights(map.maps, from.data, kept.size[0], kept.data, inside.data, outside.data);
  return py::make_tuple(inside.object, outside.object);
}

template <class Backend>
py::object spread(const Tensor& grad_inside, const Tensor& grad_outside, const Tensor& weights, bool channels_last) {
  const Tensor inside = contiguous(grad_inside), outside = contiguous(grad_outside), kept = contiguous(weights);
  const Maps maps = {inside.size[0], inside.size[1], kept.size[2], kept.size[3], static_cast<Dtype>(inside.number),
                     channels_last};
  const Tensor grad = empty(inside, {maps.batch, maps.channels, maps.h, maps.w}, inside.number, channels_last);
  Backend(inside).spread_weights(maps, inside.data, outside.data, kept.size[0], kept.data, grad.data);
  return grad.object;
}

// The gradient of the maps.
template <class Backend>
py::object spread_weights(py::handle grad_inside, py::handle grad_outside, py::handle weights, bool channels_last) {
  return spread<Backend>(read(grad_inside), read(grad_outside), read(weights), channels_last);
}

// The same of plain tensors, whose own derivative nobody asks for; else None.
template <class Backend>
py::object pool_gradient(py::handle grad_inside, py::handle grad_outside, py::handle weights, bool channels_last) {
  Tensor inside, outside, kept;
  if (grad_enabled() || !nothing_on() || !try_read_plain(grad_inside, inside) ||
      !try_read_plain(grad_outside, outside) || !try_read_plain(weights, kept)) {
    return py::none();
  }
  return spread<Backend>(inside, outside, kept, channels_last);
}

template <class Backend>
void define_masked_upsample_pool(py::module_& m) {
  m.def("masked_upsample_pool", &masked_upsample_pool<Backend>);
  m.def("pool_gradient", &pool_gradient<Backend>);
  m.def("region_weights", &region_weights<Backend>);
  m.def("pool_regions", &pool_regions<Backend>);
  m.def("pool_weights", &pool_weights<Backend>);
  m.def("spread_weights", &spread_weights<Backend>);
}

}  // namespace bind
}  // namespace mixfast
