// SPDX-License-Identifier: MIT
// Split batch norm on CPU: cuts each group's maps into pieces, adds up the pieces' sums, writes the result.
//
// Pieces   follow from shapes alone, and their sums are added in order, in double: the bits are the same for any number
//          of threads. A piece's squares are of differences to its own mean, so nothing cancels
// Units    a group's share of a tile of channels; where there are enough of them a thread does all of one unit, whose
//          numbers are then still in its cache when they are read for the second time
// Checked  tests/ops/test_split_batch_norm.py
#include "norm/cpu.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "norm/kernels.h"

namespace mixfast {
namespace splitnorm {
namespace {

constexpr int64_t kThreadWork = 1 << 15;  // elements that are worth another thread

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class Real>
Kernels<Real> kernels_for(Isa isa, const Maps& maps);

template <>
Kernels<float> kernels_for<float>(Isa isa, const Maps& maps) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return avx512::float_kernels(maps.type, maps.channels_last);
  if (isa == Isa::kAvx2) return avx2::float_kernels(maps.type, maps.channels_last);
#endif
  (void)isa;
  return baseline::float_kernels(maps.type, maps.channels_last);
}

template <>
Kernels<double> kernels_for<double>(Isa isa, const Maps& maps) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return avx512::double_kernels(maps.channels_last);
  if (isa == Isa::kAvx2) return avx2::double_kernels(maps.channels_last);
#endif
  (void)isa;
  return baseline::double_kernels(maps.channels_last);
}

// How maps are cut. In channels_last, rows of few channels are taken several at once, as rows of `packed` times as many
// lanes, so that a tile is full; lanes C apart then belong to the same channel.
class Cut {
 public:
  explicit Cut(const Maps& maps) : maps_(maps) {
    const int64_t channels = maps.channels, pixels = maps.pixels;
    if (maps.channels_last) {
      for (int64_t k = 2; k * channels <= kTile && k <= pixels; ++k) packed_ = pixels % k == 0 ? k : packed_;
      lanes_ = packed_ * channels;
      length_ = pixels / packed_;
      longest_ = std::max<int64_t>(kPiece / std::min(lanes_, kTile), 1);
    } else {
      length_ = pixels;
      longest_ = kPiece;
    }
    tiles = maps.channels_last ? ceil_div(lanes_, kTile) : channels;
    units = maps.groups * tiles;
    const int64_t members = maps.samples / maps.groups;
    parts_ = ceil_div(length_, longest_);
    together_ = std::max<int64_t>(longest_ / length_, 1);
    pieces = parts_ > 1 ? members * parts_ : ceil_div(members, together_);
  }

  Piece piece(int64_t unit, int64_t index) const {
    const int64_t group = unit / tiles, tile = unit % tiles, size = maps_.channels * maps_.pixels;
    const int64_t members = maps_.samples / maps_.groups;
    const int64_t first = parts_ > 1 ? index / parts_ : index * together_, part = parts_ > 1 ? index % parts_ : 0;
    const int64_t from = part * length_ / parts_, count = (part + 1) * length_ / parts_ - from;
    const int64_t runs = parts_ > 1 ? 1 : std::min(together_, members - first);
    const int64_t start = (first * maps_.groups + group) * size;
    if (!maps_.channels_last) {
      return {start + tile * maps_.pixels + from, 1, 0, runs, maps_.groups * size, count};
    }
    return {start + from * lanes_ + tile * kTile, runs, maps_.groups * size, count, lanes_, width(tile)};
  }

  // The channels of a tile; channel c's statistics are those of lanes c, c + stride(tile) ... below width(tile).
  int64_t first_channel(int64_t tile) const { return maps_.channels_last ? tile * kTile : tile; }
  int64_t width(int64_t tile) const { return maps_.channels_last ? std::min(kTile, lanes_ - tile * kTile) : 1; }
  int64_t stride(int64_t tile) const { return width(tile) / packed_; }

  int64_t tiles, units, pieces;

 private:
  Maps maps_;
  int64_t packed_ = 1, lanes_ = 1, length_, longest_, parts_, together_;
};

// The passes over the pieces of every unit: gather(unit, piece, sums), finish(unit, sums, factors) once for the unit,
// spread(unit, piece, factors). sums has `Sums` rows of kTile for each piece, factors `Factors` for the unit.
template <class Real, int Sums, int Factors, class Gather, class Finish, class Spread>
void run(const Cut& cut, int threads, Gather gather, Finish finish, Spread spread) {
  const int64_t of_piece = Sums * kTile, of_unit = cut.pieces * of_piece;
  if (cut.units >= threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      const std::unique_ptr<Real[]> sums(new Real[of_unit]);
      Real factors[Factors * kTile] = {};
#pragma omp for schedule(static)
      for (int64_t unit = 0; unit < cut.units; ++unit) {
        for (int64_t i = 0; i < cut.pieces; ++i) gather(cut.piece(unit, i), unit, sums.get() + i * of_piece);
        finish(unit, sums.get(), factors);
        for (int64_t i = 0; i < cut.pieces; ++i) spread(cut.piece(unit, i), factors);
      }
    }
    return;
  }
  const std::unique_ptr<Real[]> sums(new Real[cut.units * of_unit]);
  const std::unique_ptr<Real[]> factors(new Real[cut.units * Factors * kTile]());
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < cut.units * cut.pieces; ++i) {
      gather(cut.piece(i / cut.pieces, i % cut.pieces), i / cut.pieces, sums.get() + i * of_piece);
    }
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < cut.units; ++unit) {
      finish(unit, sums.get() + unit * of_unit, factors.get() + unit * Factors * kTile);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < cut.units * cut.pieces; ++i) {
      spread(cut.piece(i / cut.pieces, i % cut.pieces), factors.get() + i / cut.pieces * Factors * kTile);
    }
  }
}

int threads_for(int threads, const Maps& maps) {
  const int64_t elements = maps.samples * maps.channels * maps.pixels;
  return static_cast<int>(std::min<int64_t>(threads, 1 + elements / kThreadWork));
}

// Elements behind each statistic of a piece.
int64_t count_of(const Piece& piece, bool channels_last) {
  return piece.runs * piece.rows * (channels_last ? 1 : piece.width);
}

template <class Real>
void forward_as(const Forward& call) {
  const Maps& maps = call.maps;
  const Cut cut(maps);
  const Kernels<Real> kernels = kernels_for<Real>(call.isa, maps);
  const int64_t channels = maps.channels;
  const double numbers = static_cast<double>(maps.samples / maps.groups * maps.pixels);
  const Real *const weight = static_cast<const Real*>(call.weight), *const bias = static_cast<const Real*>(call.bias);
  Real *const means = static_cast<Real*>(call.means), *const inverses = static_cast<Real*>(call.inverses);
  const bool running = call.running_mean != nullptr;
  const std::unique_ptr<double[]> moved(running ? new double[2 * maps.groups * channels] : nullptr);

  const auto gather = [&](const Piece& piece, int64_t, Real* sums) { kernels.moments(call.x, piece, sums); };
  const auto finish = [&](int64_t unit, const Real* sums, Real* factors) {
    const int64_t tile = unit % cut.tiles, width = cut.width(tile), stride = cut.stride(tile);
    double mean[kTile] = {}, square[kTile] = {};
    for (int64_t i = 0; i < cut.pieces; ++i) {
      const double count = static_cast<double>(count_of(cut.piece(unit, i), maps.channels_last));
      const Real* const of_piece = sums + i * 3 * kTile;
      for (int64_t l = 0; l < width; ++l) {
        mean[l] += count * static_cast<double>(of_piece[l]) + static_cast<double>(of_piece[kTile + l]);
      }
    }
    for (int64_t l = stride; l < width; ++l) mean[l % stride] += mean[l];
    for (int64_t l = 0; l < width; ++l) mean[l] = (l < stride ? mean[l] / numbers : mean[l % stride]);
    for (int64_t i = 0; i < cut.pieces; ++i) {
      const double count = static_cast<double>(count_of(cut.piece(unit, i), maps.channels_last));
      const Real* const of_piece = sums + i * 3 * kTile;
      for (int64_t l = 0; l < width; ++l) {  // sum (x - mean)^2 = squares + sums^2 terms about the piece's own mean
        const double rest = static_cast<double>(of_piece[kTile + l]);
        const double apart = static_cast<double>(of_piece[l]) - mean[l];
        square[l] += static_cast<double>(of_piece[2 * kTile + l]) + apart * (2 * rest + count * apart);
      }
    }
    for (int64_t l = stride; l < width; ++l) square[l % stride] += square[l];
    for (int64_t l = 0; l < width; ++l) {
      const int64_t channel = cut.first_channel(tile) + l % stride, cell = unit / cut.tiles * channels + channel;
      const double inverse = 1 / std::sqrt(square[l % stride] / numbers + call.eps);
      const double scale = inverse * static_cast<double>(weight[channel]);
      factors[l] = static_cast<Real>(mean[l]);
      factors[kTile + l] = static_cast<Real>(scale);
      const double rounding = static_cast<double>(factors[l]) - mean[l];
      factors[2 * kTile + l] = static_cast<Real>(static_cast<double>(bias[channel]) + rounding * scale);
      if (l >= stride) continue;
      means[cell] = static_cast<Real>(mean[l]);
      inverses[cell] = static_cast<Real>(inverse);
      if (running) {
        moved[cell] = mean[l];
        moved[maps.groups * channels + cell] = square[l] / (numbers - 1);
      }
    }
  };
  const auto spread = [&](const Piece& piece, const Real* factors) {
    kernels.normalise(call.x, call.residual, call.y, piece, factors, call.relu);
  };
  run<Real, 3, 3>(cut, threads_for(call.threads, maps), gather, finish, spread);

  void* const running_statistics[2] = {call.running_mean, call.running_var};
  for (int64_t i = 0; running && i < 2 * channels; ++i) {
    const double* const of_groups = moved.get() + i / channels * maps.groups * channels + i % channels;
    double sum = 0;
    for (int64_t group = 0; group < maps.groups; ++group) sum += of_groups[group * channels];
    Real& statistic = static_cast<Real*>(running_statistics[i / channels])[i % channels];
    statistic = static_cast<Real>((1 - call.momentum) * static_cast<double>(statistic) +
                                  call.momentum * sum / static_cast<double>(maps.groups));
  }
}

// With h = (x - mean) inverse and averages over the group's M numbers of a channel:
//     dx = weight inverse (g - avg g - h avg(g h)),  g = dy but for zeros where y <= 0
// Where g is written, as the residual's gradient, the second pass reads it instead of dy and y.
template <class Real>
void backward_as(const Backward& call) {
  const Maps& maps = call.maps;
  const Cut cut(maps);
  const Kernels<Real> kernels = kernels_for<Real>(call.isa, maps);
  const int64_t channels = maps.channels;
  const double numbers = static_cast<double>(maps.samples / maps.groups * maps.pixels);
  const Real* const weight = static_cast<const Real*>(call.weight);
  const Real *const means = static_cast<const Real*>(call.means), *const inverses =
                                                                      static_cast<const Real*>(call.inverses);
  const std::unique_ptr<double[]> grads(new double[2 * maps.groups * channels]);

  const auto gather = [&](const Piece& piece, int64_t unit, Real* sums) {
    Real mean[kTile] = {};
    const int64_t tile = unit % cut.tiles, stride = cut.stride(tile);
    const Real* const of_tile = means + unit / cut.tiles * channels + cut.first_channel(tile);
    for (int64_t l = 0; l < cut.width(tile); ++l) mean[l] = of_tile[l % stride];
    kernels.products({call.dy, call.y}, call.x, call.d_residual, piece, mean, sums);
  };
  const auto finish = [&](int64_t unit, const Real* sums, Real* factors) {
    const int64_t tile = unit % cut.tiles, width = cut.width(tile), stride = cut.stride(tile);
    double plain[kTile] = {}, weighted[kTile] = {};
    for (int64_t i = 0; i < cut.pieces; ++i) {
      for (int64_t l = 0; l < width; ++l) {
        plain[l] += static_cast<double>(sums[i * 2 * kTile + l]);
        weighted[l] += static_cast<double>(sums[(i * 2 + 1) * kTile + l]);
      }
    }
    for (int64_t l = stride; l < width; ++l) plain[l % stride] += plain[l], weighted[l % stride] += weighted[l];
    for (int64_t l = 0; l < width; ++l) {
      const int64_t channel = cut.first_channel(tile) + l % stride, cell = unit / cut.tiles * channels + channel;
      const double inverse = static_cast<double>(inverses[cell]);
      const double scale = inverse * static_cast<double>(weight[channel]);
      factors[l] = means[cell];
      factors[kTile + l] = static_cast<Real>(-scale * inverse * inverse * weighted[l % stride] / numbers);
      factors[2 * kTile + l] = static_cast<Real>(scale);
      factors[3 * kTile + l] = static_cast<Real>(-scale * plain[l % stride] / numbers);
      grads[cell] = inverse * weighted[l % stride];
      grads[maps.groups * channels + cell] = plain[l % stride];
    }
  };
  const Upstream upstream = call.d_residual ? Upstream{call.d_residual, nullptr} : Upstream{call.dy, call.y};
  const auto spread = [&](const Piece& piece, const Real* factors) {
    kernels.gradient(upstream, call.x, call.dx, piece, factors);
  };
  run<Real, 2, 4>(cut, threads_for(call.threads, maps), gather, finish, spread);

  void* const results[2] = {call.d_weight, call.d_bias};
  for (int64_t i = 0; i < 2 * channels; ++i) {
    const double* const of_groups = grads.get() + i / channels * maps.groups * channels + i % channels;
    double sum = 0;
    for (int64_t group = 0; group < maps.groups; ++group) sum += of_groups[group * channels];
    static_cast<Real*>(results[i / channels])[i % channels] = static_cast<Real>(sum);
  }
}

}  // namespace

void forward(const Forward& call) {
  call.maps.type == Type::kDouble ? forward_as<double>(call) : forward_as<float>(call);
}

void backward(const Backward& call) {
  call.maps.type == Type::kDouble ? backward_as<double>(call) : backward_as<float>(call);
}

}  // namespace splitnorm
}  // namespace mixfast
