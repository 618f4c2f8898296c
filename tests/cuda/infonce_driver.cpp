// SPDX-License-Identifier: MIT
// The functions of csrc/infonce/cuda.h for tests/cuda/test_emulated_infonce.py.
#include "driver.h"
#include "infonce/cuda.h"
#include "infonce/hopper.h"

namespace {

using namespace mixfast::gpu::infonce;
using mixfast::emulator::Call;

constexpr mixfast::gpu::Place kPlace{0, nullptr};

// rows, columns, row stride, column stride and the data.
Matrix matrix(Call& call, Type type) {
  const int64_t rows = call.integer(), row_stride = call.integer(), column_stride = call.integer();
  return {call.buffer(), rows, row_stride, column_stride, type};
}

// Each term: queries, positives (rows 0 if there are none), queue, temperature.
std::vector<Term> terms(Call& call, Type type) {
  std::vector<Term> read(call.integer());
  for (Term& term : read) {
    term.queries = matrix(call, type);
    term.positives = matrix(call, type);
    term.queue = static_cast<int>(call.integer());
    term.temperature = call.real();
  }
  return read;
}

Temperatures temperatures(Call& call) {
  const int64_t stride = call.integer(), type = call.integer();
  return {call.buffer(), stride, static_cast<Type>(type)};
}

const char* run_forward(Call& call) {
  Forward to = {};
  to.dim = call.integer();
  to.reduction = static_cast<Reduction>(call.integer());
  to.factors = static_cast<Factors>(call.integer());
  to.terms = terms(call, static_cast<Type>(call.integer()));
  const auto queue_type = static_cast<Type>(call.integer());
  to.queues.resize(call.integer());
  for (Matrix& queue : to.queues) queue = matrix(call, queue_type);
  to.valid_len = call.buffer<int64_t>();
  to.temperatures = temperatures(call);
  to.losses = call.buffer<float>();
  to.grad_queries = call.buffer<float>();
  to.negative_share = call.buffer<float>();
  to.kernel = static_cast<Kernel>(call.integer());

  std::vector<int64_t> rows, index, keys;
  for (const Term& term : to.terms) rows.push_back(term.queries.rows), index.push_back(term.queue);
  for (const Matrix& queue : to.queues) keys.push_back(queue.rows);
  const int64_t floats =
      workspace_floats(rows, index, keys, to.dim, to.factors, to.grad_queries != nullptr, to.reduction, to.kernel);
  mixfast::emulator::Buffer workspace(floats * sizeof(float), 256, 0);
  to.workspace = reinterpret_cast<float*>(workspace.data());
  return forward(kPlace, to);
}

const char* run_backward(Call& call) {
  Backward to = {};
  to.dim = call.integer();
  to.reduction = static_cast<Reduction>(call.integer());
  to.terms = terms(call, static_cast<Type>(call.integer()));
  to.temperatures = temperatures(call);
  to.grad_losses = call.buffer<float>();
  to.grad_stride = call.integer();
  to.grad_queries = call.buffer<float>();
  to.negative_share = call.buffer<float>();
  to.d_queries = call.buffer();
  to.d_positives = call.buffer();
  to.d_temperature = call.buffer<float>();
  return backward(kPlace, to);
}

// The main kernel of sm_90a alone, float16, one term and one queue, with chunks of any length: a plan would make so
// many that no block had more tiles than stages.
const char* run_hopper(Call& call) {
  mixfast::gpu::infonce::Call to = {};
  to.term_count = to.queue_count = 1;
  to.rows = static_cast<int>(call.integer());
  to.dim = to.padded_dim = static_cast<int>(call.integer());
  const auto keys = static_cast<int>(call.integer());
  to.chunk = static_cast<int>(call.integer());
  to.chunks = static_cast<int>(ceil_div(keys, to.chunk));
  to.query_type = to.key_type = Type::kHalf;
  to.terms[0] = {call.buffer(), nullptr, to.dim, 0, static_cast<float>(call.real()), 0, to.rows, 0, 0};
  to.queues[0] = {call.buffer(), to.dim, 1, keys, 0, 0, to.rows, static_cast<int>(ceil_div(to.rows, 128)), 0};
  to.maxima = call.buffer<float>();
  to.sums = call.buffer<float>();
  to.grads = to.products = call.buffer<float>();
  const cudaError_t error = hopper_launch(Factors::kHalf, to, to.queues[0].tiles * to.chunks, nullptr);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

int main() {
  return mixfast::emulator::serve({{"forward", run_forward}, {"backward", run_backward}, {"hopper", run_hopper}});
}
