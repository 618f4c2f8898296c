// SPDX-License-Identifier: MIT
// multi_queue_infonce on CPU, for Python: addresses and sizes, which mixfast/ops/infonce/cpu_native.py has checked.
#include "infonce/bind.h"

namespace {

namespace py = pybind11;
using namespace mixfast;
using namespace mixfast::infonce;
using Numbers = std::vector<double>;

void infonce_forward(const Table& terms, const Numbers& temperatures, int type, const Table& queues, int queue_type,
                     int64_t dim, int reduction, int64_t losses, int64_t grad_queries, int64_t negative_share,
                     int threads, int isa) {
  const py::gil_scoped_release release;
  forward({terms_of(terms, temperatures, type), queues_of(queues, queue_type), dim, static_cast<Reduction>(reduction),
           pointer(losses), pointer(grad_queries), pointer(negative_share), threads, static_cast<Isa>(isa)});
}

void infonce_backward(const Table& terms, const Numbers& temperatures, int type, int64_t dim, int reduction,
                      int64_t grad_losses, int64_t grad_stride, int64_t grad_queries, int64_t negative_share,
                      int64_t d_queries, int64_t d_positives, int64_t d_temperature, int threads) {
  const py::gil_scoped_release release;
  backward({terms_of(terms, temperatures, type), dim, static_cast<Reduction>(reduction), pointer(grad_losses),
            grad_stride, pointer(grad_queries), pointer(negative_share), pointer(d_queries), pointer(d_positives),
            pointer(d_temperature), threads});
}

std::vector<int> infonce_instruction_sets() {
  std::vector<int> names;
  for (const Isa isa : instruction_sets()) names.push_back(static_cast<int>(isa));
  return names;
}

}  // namespace

void bind_multi_queue_infonce(py::module_& m) {
  m.def("infonce_forward", &infonce_forward);
  m.def("infonce_backward", &infonce_backward);
  m.def("infonce_instruction_sets", &infonce_instruction_sets);
}
