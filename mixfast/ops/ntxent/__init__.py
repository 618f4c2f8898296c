"""NT-Xent, the contrastive loss of SimCLR, computed without storing the 2N x 2N similarities.

z has 2N rows: those of `first`, then those of `second`. Each row is an anchor i once. Its positive is the same row of
the other view; its negatives j are all rows but itself, its positive and the excluded row. With s_ij = z_i.z_j / tau:
    l_i = log sum_j e^{s_ij},  loss_i = softplus(l_i - s_i,pos),  share_i = sigmoid(l_i - s_i,pos)
    p_ij = e^{s_ij - s_i,pos - loss_i}
    dz_i = 1/tau ( sum_j (g_i p_ij + g_j p_ji) z_j - (g_i share_i + g_pos share_pos) z_pos )
for upstream gradients g. The forward pass saves three numbers per anchor; the backward pass computes p again from them.
"""

from torch import Tensor

from mixfast.ops import _dispatch
from mixfast.ops._check import autocast_rows, in_autocast
from mixfast.ops.ntxent import _checks, _operators, reference

NAME = "nt_xent"


def nt_xent(
    first: Tensor,
    second: Tensor,
    *,
    temperature: float | Tensor = 0.5,
    excluded: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Normalised temperature-scaled cross entropy (Chen et al. 2020, SimCLR, eq. 1) of two views of N images.

    The loss of anchor i is -log( e^{z_i.z_pos/tau} / sum_j e^{z_i.z_j/tau} ), where j runs over all 2N rows except i.
    z holds the rows of `first`, then those of `second`, and pos is the same row of the other view. The 2N x 2N
    similarities are never stored, except in the reference backend. Results have the same bits on every run and for any
    number of threads. Works under torch.compile and torch.func. Autocast converts rows to float32 on a CPU and to
    float16 on a GPU; float64 rows stay.

    Args:
        first: [N, D], N >= 1; float16, bfloat16, float32 or float64. Usually unit rows; they are not normalised here.
        second: the same shape, dtype and device; row n is the other view of first's row n.
        temperature: tau, a positive number, or a floating tensor [], which may require a gradient.
        excluded: int64 [2N] or None: for each anchor the index of one more row that its sum over j omits (a known false
            negative), or -1 for none. It must not be the anchor's positive.
        reduction: "mean" or "sum" over the 2N anchors, or "none".
        backend: "auto", or a name from `mixfast.backends()`, which then runs or raises. There is no "cuda": on a GPU
            "auto" takes Triton.

    Returns:
        [] for "mean" and "sum", [2N] for "none"; float32, or float64 for float64. Differentiable with respect to both
        views and temperature. A second derivative raises NotImplementedError, except in the reference backend.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape or device; in the cpu backend also a
            temperature tensor that is not positive, and an excluded row that is a positive or does not exist. The other
            backends do not check these values, since a GPU would have to wait for them: such an entry of `excluded`
            omits nothing.
        RuntimeError: the named backend cannot run this call.
        NotImplementedError: vmap over the operation, a second derivative, one in forward mode for reduction "none", or
            torch.func.grad, jvp and the like inside of torch.compile.
    """
    if in_autocast():
        first, second = autocast_rows(first), autocast_rows(second)
    _checks.check_views(first, second)
    temperature = _checks.check_temperature(temperature, first)
    _checks.check_excluded(excluded, first)
    _checks.check.reduction(reduction)
    device_type = first.device.type
    chosen = _dispatch.choose(NAME, backend, device_type, first.dtype, _dispatch.constant_dim(first.shape[1]))
    if chosen == "reference":
        return reference.losses(first, second, excluded, temperature, reduction)
    return _operators.losses(first, second, excluded, temperature, reduction, chosen)
