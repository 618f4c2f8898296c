"""Batch norm within each group of samples n mod S, the sum with a residual and ReLU: one pass over the maps for the
statistics, one to write the result.

With h = (x - mean) / sqrt(variance + eps) over the M = (B / S) H W numbers of a group's channel, y = weight h + bias,
and for upstream gradients dy (Ioffe and Szegedy 2015, section 3)
    dx = weight / sqrt(variance + eps) (dy - avg dy - h avg(dy h)),  d_weight = sum dy h,  d_bias = sum dy
With a ReLU, y = relu(weight h + bias + residual) and dy is replaced by zero where y <= 0; that is then the residual's
gradient too. Contiguous maps and channels_last maps are read and written without a copy. The forward pass saves x, y
if there is a ReLU (which the next layer saves as well), and two numbers for each channel of each group.

Sweeps over maps, reading and writing, beside those of batch norm, sum and ReLU one after the other:
    norm, ReLU           forward 2 + 1 (beside 3 + 2), backward 6 + 1 (beside 6 + 2)
    norm, sum, ReLU      forward 3 + 1 (beside 5 + 3), backward 5 + 2 (beside 6 + 2)
"""

from torch import Tensor

from mixfast.ops import _dispatch
from mixfast.ops.norm import _checks, _operators, reference

NAME = "split_batch_norm"


def split_batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    num_splits: int,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = False,
    residual: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Batch norm in training mode, with separate statistics for each of S groups of samples (He et al. 2020, MoCo).

    Equals `relu(norm(x) + residual)`: sum and ReLU, where they are asked for, are part of the passes that normalise.
    The bits are those of the three one after the other, rounded to the dtype of x after each; Triton rounds once.

    Group s holds the samples s, s + S, s + 2 S, and so on, as in MoCo's recipe for one device. Running statistics, if
    given, are updated in place: running = (1 - momentum) running + momentum new, where new is the mean over the groups
    of their means, or of their unbiased variances. Results have the same bits on every run and for any number of
    threads. Works under torch.compile and torch.func; autocast does not change it.

    Args:
        x: [B, C, H, W], B a multiple of S, (B / S) H W >= 2; float16, bfloat16, float32 or float64. Contiguous or
            channels_last maps are not copied.
        weight, bias: [C], contiguous, float32, or float64 for float64 maps.
        running_mean, running_var: both [C] like weight, without gradient, or both None.
        num_splits: S, the number of groups; 1 is ordinary batch norm.
        momentum: weight of the new statistics in the running ones, in [0, 1].
        eps: positive number that is added to variances.
        relu: whether negative results become zero; a zero passes no gradient on, as torch's ReLU has it.
        residual: [B, C, H, W] in the dtype of x, added before the ReLU; copied if of another memory format. Or None.
        backend: "auto", or a name from `mixfast.backends()`, which then runs or raises. On a GPU float64 is the
            reference's alone.

    Returns:
        [B, C, H, W] in the dtype of x, and in its memory format if that is contiguous or channels_last, else
        contiguous. Differentiable with respect to x, weight, bias and residual. A second derivative raises
        NotImplementedError, except in the reference backend. Changing the result in place after a ReLU makes the
        backward pass raise, as after torch's.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape, layout or device.
        RuntimeError: the named backend cannot run this call.
        NotImplementedError: vmap over the operation, a second derivative, or torch.func.grad, jvp and the like inside
            of torch.compile.
    """
    _checks.check_maps(x, num_splits)
    _checks.check_channels("weight", weight, x)
    _checks.check_channels("bias", bias, x)
    _checks.check_running(running_mean, running_var, x)
    _checks.check_numbers(momentum, eps)
    _checks.check_relu(relu, residual, x)
    chosen = _dispatch.choose(NAME, backend, x.device.type, x.dtype)
    arguments = x, weight, bias, running_mean, running_var, residual, num_splits, float(momentum), float(eps), relu
    if chosen == "reference":
        return reference.normalise(*arguments)
    return _operators.normalise(*arguments, chosen)
