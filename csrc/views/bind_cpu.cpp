// SPDX-License-Identifier: MIT
// augment_views, draw_views and mix_views on CPU, for Python: addresses and sizes, which
// mixfast/ops/views/cpu_native.py has checked.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <vector>

#include "views/cpu.h"

namespace {

namespace py = pybind11;
using namespace mixfast;
using namespace mixfast::augment;
using Address = uintptr_t;
using Three = std::array<float, 3>;
using Size = std::array<int64_t, 2>;

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

int64_t augment_views(Address images, int64_t count, const Size& image_size, Address index, Address parameters,
                      int64_t views, int64_t batch, const Size& size, const Three& scale, const Three& offset,
                      bool bicubic, bool colour_first, bool grey_first, int64_t reach, int type, bool channels_last,
                      Address out, int threads, int isa) {
  const py::gil_scoped_release release;
  Options options = {
      image_size[0], image_size[1],           size[0],      size[1], {}, {}, bicubic, colour_first, grey_first,
      reach,         static_cast<Type>(type), channels_last};
  std::copy_n(scale.begin(), 3, options.scale);
  std::copy_n(offset.begin(), 3, options.offset);
  return run({options, static_cast<const uint8_t*>(pointer(images)), count, static_cast<const int64_t*>(pointer(index)),
              static_cast<const float*>(pointer(parameters)), views, batch, pointer(out)},
             threads, static_cast<Isa>(isa));
}

void draw_views(Address state, int64_t batch, const Size& size, const std::vector<double>& numbers,
                Address parameters) {
  const py::gil_scoped_release release;
  constexpr size_t width = sizeof(Law) / sizeof(double);
  draw(static_cast<int64_t*>(pointer(state)), batch, size[0], size[1], reinterpret_cast<const Law*>(numbers.data()),
       static_cast<int64_t>(numbers.size() / width), static_cast<float*>(pointer(parameters)));
}

void mix_views(Address base, Address donor, Address boxes, Address share, const std::array<int64_t, 4>& shape, int type,
               bool channels_last, Address out, int threads) {
  const py::gil_scoped_release release;
  mix({pointer(base), pointer(donor), static_cast<const int64_t*>(pointer(boxes)),
       static_cast<const float*>(pointer(share)), shape[0], shape[1], shape[2], shape[3], static_cast<Type>(type),
       channels_last, pointer(out)},
      threads);
}

std::vector<int> augment_views_instruction_sets() {
  std::vector<int> names;
  for (const Isa isa : instruction_sets()) names.push_back(static_cast<int>(isa));
  return names;
}

}  // namespace

void bind_augment_views(py::module_& m) {
  m.def("augment_views", &augment_views);
  m.def("draw_views", &draw_views);
  m.def("mix_views", &mix_views);
  m.def("augment_views_instruction_sets", &augment_views_instruction_sets);
}
