"""python -m tests.gpu.every_kernel [BACKEND ...]: every kernel on small tensors, checked against the reference.

What the sanitizers run: no pytest, whose fixture would initialise the memory that a kernel forgets. Inputs are made and
results are judged on the CPU, so that nearly all kernels are ours. With backend "cpu" it runs where there is no GPU.
"hopper" is the backend "cuda" of InfoNCE with the main kernel that its table of faster ones may leave out.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

import mixfast
from mixfast.ops import split_batch_norm
from mixfast.ops.infonce import gpu_cuda
from tests.backends import device_of
from tests.ops import augmenting

# Of the largest value. The tests judge exactly; here only a wrong kernel should show.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float64: 1e-10}
DIMS = {torch.float32: 100, torch.bfloat16: 128, torch.float16: 64, torch.float64: 64}
SHAPES = [  # B, C, h, w, H, W; Triton compiles anew for each, so it gets the first two, which say all
    (3, 17, 4, 4, 9, 11),
    (2, 9, 7, 7, 28, 28),
    (2, 6, 3, 5, 7, 64),
    (2, 33, 8, 8, 8, 8),
    (1, 5, 14, 14, 5, 50),
    (2, 3, 16, 16, 40, 3),
]
Results = tuple[Tensor, ...]  # on the CPU
Terms = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # rows and queue of each term, keys of each queue
Check = tuple[str, Callable[[str], Results]]  # its name; what a backend makes of it


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def pooling(backend: str, dtype: torch.dtype) -> Iterator[Check]:
    """Both layouts, boxes and masks, the specialised map sizes and others, both passes."""
    if dtype == torch.float16:  # as bfloat16
        return
    shapes = SHAPES[:2] if backend == "triton" else SHAPES
    for shape, last, kind in itertools.product(shapes, (False, True), ("boxes", "bool", "float")):
        name = f"{shape} {kind}{' channels last' if last else ''}"
        yield name, lambda backend, s=shape, c=last, k=kind: pooled(backend, s, c, k, dtype)


def pooled(backend: str, shape: tuple[int, ...], channels_last: bool, kind: str, dtype: torch.dtype) -> Results:
    (b, c, h, w, height, width), rng, device = shape, generator(), device_of(backend)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    features = torch.randn(b, c, h, w, generator=rng).to(dtype).contiguous(memory_format=layout)
    grads = torch.randn(2, b, c, generator=rng).to(dtype).to(device)
    masks = torch.rand(b, height, width, generator=rng)
    x, y = (torch.randint(0, side + 1, (2, b), generator=rng).sort(0).values for side in (width, height))
    regions = {"boxes": torch.stack([x[0], y[0], x[1], y[1]], dim=1), "bool": masks > 0.6, "float": masks}[kind]
    features = features.to(device).requires_grad_()
    size = (height, width) if kind == "boxes" else None
    results = mixfast.masked_upsample_pool(features, regions.to(device), size, backend=backend)
    (gradient,) = torch.autograd.grad(results, [features], [*grads])
    return tuple(each.detach().cpu() for each in (*results, gradient))


RAGGED: Terms = ((5, 70, 64, 1), (1, 0, 1, 2), (130, 700, 9))
MANY: Terms = ((2,) * 33, (0, 1) * 16 + (0,), (40, 3))  # more than one launch takes
LONG: Terms = ((3,), (0,), (25_000,))


def contrasts(backend: str, dtype: torch.dtype) -> Iterator[Check]:
    """Ragged terms that share queues, tails of every block, filling queues, many terms, a long queue, every result."""
    all_dims = backend == "cuda" and dtype != torch.float64
    cases = itertools.product((7, 64, 128, 256) if all_dims else (DIMS[dtype],), (RAGGED,), (False, True))
    for dim, terms, valid in (*cases, (DIMS[dtype], MANY, False), (DIMS[dtype], LONG, False)):
        name = f"{len(terms[0])} terms, D={dim}{', filling' if valid else ''}"
        yield name, lambda backend, d=dim, t=terms, v=valid: contrasted(backend, d, t, v, dtype)


def unit(rows: int, dim: int, rng: torch.Generator, dtype: torch.dtype, device: str) -> Tensor:
    return F.normalize(torch.randn(rows, dim, generator=rng), dim=1).to(dtype).to(device)


def contrasted(backend: str, dim: int, terms: Terms, filling: bool, dtype: torch.dtype) -> Results:
    rng, device, (counts, index, lengths) = generator(), device_of(backend), terms
    leaves = [unit(count, dim, rng, dtype, device).requires_grad_() for count in counts * 2]
    queues = [unit(keys, dim, rng, dtype, device) for keys in lengths]
    temperature = torch.linspace(0.07, 1.0, len(counts)).to(device).requires_grad_()
    valid_len = torch.tensor([0, 650, 9]).to(device) if filling else None
    given = leaves[: len(counts)], leaves[len(counts) :], queues, index
    options = {"valid_len": valid_len, "temperature": temperature, "backend": backend}
    losses = torch.cat(mixfast.multi_queue_infonce(*given, reduction="none", **options))
    gradients = torch.autograd.grad(losses, [*leaves, temperature], torch.ones_like(losses))
    with torch.no_grad():
        means = mixfast.multi_queue_infonce(*given, **options)
    return tuple(each.detach().cpu() for each in (losses, means, *gradients))


def views(backend: str, dtype: torch.dtype) -> Iterator[Check]:
    for images in (5, 70):
        yield f"N={images}", lambda backend, n=images: contrasted_views(backend, n, DIMS[dtype], dtype)


def contrasted_views(backend: str, images: int, dim: int, dtype: torch.dtype) -> Results:
    rng, device = generator(), device_of(backend)
    pair = [unit(images, dim, rng, dtype, device).requires_grad_() for _ in range(2)]
    temperature = torch.tensor(0.2).to(device).requires_grad_()
    excluded = torch.arange(2 * images).roll(1)  # for images > 1 never the positive
    excluded[::3] = -1
    loss = mixfast.nt_xent(*pair, temperature=temperature, excluded=excluded.to(device), backend=backend)
    return tuple(each.detach().cpu() for each in (loss, *torch.autograd.grad(loss, [*pair, temperature])))


def augmentations(backend: str, dtype: torch.dtype) -> Iterator[Check]:
    """Small and large views, both interpolations, layouts and orders, with and without a blur, drawn before."""
    if dtype == torch.float64:
        return
    cases = itertools.product((32, 70), ("demo", "ref", "wmse", "everything"), (False, True))
    for number, (side, recipe, last) in enumerate(cases):
        if number % 2 == (dtype == torch.float32):  # every second, as each is compiled
            name = f"{side} px, {recipe}{', channels last' if last else ''}"
            yield name, lambda backend, s=side, r=recipe, c=last: augmented(backend, s, r, c, dtype)
    yield from mixtures(backend, dtype)


def augmented(backend: str, side: int, recipe: str, channels_last: bool, dtype: torch.dtype) -> Results:
    cfg, device = replace(augmenting.RECIPES[recipe], solarise=0.0), device_of(backend)
    images = augmenting.byte_images(5, generator(), (48, 40)).to(device)
    state, index = torch.tensor([-3, 2**32 - 1]).to(device), torch.tensor([4, 0, 4]).to(device)
    parameters = mixfast.draw_views(state, 3, (48, 40), [cfg, cfg], backend=backend)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    options = augmenting.options(cfg, size=side, dtype=dtype, memory_format=layout)
    views = mixfast.augment_views(images, parameters, index=index, backend=backend, **options)
    return tuple(each.cpu() for each in (state, parameters, *views))


def mixtures(backend: str, dtype: torch.dtype) -> Iterator[Check]:
    """Several programs for an image, both layouts: copies, blends, and boxes that stick out."""
    for last in (False, True):
        yield f"mixture{', channels last' if last else ''}", lambda backend, c=last: mixed(backend, c, dtype)


def mixed(backend: str, channels_last: bool, dtype: torch.dtype) -> Results:
    rng, device = generator(), device_of(backend)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    pair = [torch.randn(3, 3, 40, 37, generator=rng).to(dtype).contiguous(memory_format=layout) for _ in range(2)]
    boxes, share = torch.tensor([[5, 0, 30, 21], [0, 0, 0, 0], [-4, 30, 9, 90]]), torch.tensor([1.0, 0.3, 1.0])
    return (mixfast.mix_views(*(each.to(device) for each in (*pair, boxes, share)), backend=backend).cpu(),)


def norms(backend: str, dtype: torch.dtype) -> Iterator[Check]:
    """Maps of one pixel and of many, tails of every tile, few and many channels, both layouts."""
    for number, shape in enumerate(((12, 70, 1, 1), (12, 5, 7, 7), (6, 64, 40, 40))):
        last = (number + (dtype == torch.float32)) % 2 == 0
        name = f"{shape}{' channels last' if last else ''}"
        yield name, lambda backend, s=shape, c=last: normalised(backend, s, c, dtype)


def normalised(backend: str, shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype) -> Results:
    rng, device, channels = generator(), device_of(backend), shape[1]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, upstream = (torch.randn(shape, generator=rng).to(dtype).to(device) for _ in range(2))
    statistics = torch.promote_types(dtype, torch.float32)
    weight, bias, mean, var = torch.rand(4, channels, generator=rng).to(statistics).to(device)
    leaves = x.contiguous(memory_format=layout).requires_grad_(), weight.requires_grad_(), bias.requires_grad_()
    y = split_batch_norm(*leaves, mean, var, num_splits=3, backend=backend)
    gradients = torch.autograd.grad(y, leaves, upstream)
    residual = (8 * upstream.sign()).requires_grad_()  # so no sum is so near to zero that rounding decides its gradient
    total = split_batch_norm(*leaves, num_splits=3, relu=True, residual=residual, backend=backend)
    gradients += torch.autograd.grad(total, (*leaves, residual), upstream)
    return tuple(each.detach().cpu() for each in (y, mean, var, total, *gradients))


OPERATIONS: dict[str, Callable[[str, torch.dtype], Iterator[Check]]] = {
    "masked_upsample_pool": pooling,
    "multi_queue_infonce": contrasts,
    "nt_xent": views,
    "augment_views": augmentations,
    "split_batch_norm": norms,
}
REFUSED = "no backend can run this call"


def fault(ours: Results, theirs: Results, dtype: torch.dtype) -> str:
    for place, (each, expected) in enumerate(zip(ours, theirs, strict=True)):
        allowed = TOLERANCE[dtype] * max(1.0, expected.abs().max().item())
        if not ((each.double() - expected.double()).abs() <= allowed).all():
            return f"result {place} is off by {(each.double() - expected.double()).abs().max().item():.2e}"
    return ""


def run(operation: str, backend: str) -> tuple[int, list[str]]:
    """(checks made, what was wrong); dtypes that the backend refuses are left out."""
    count, faults = 0, []
    for dtype in DIMS:
        for name, check in OPERATIONS[operation](backend, dtype):
            try:
                ours = check(backend)
            except RuntimeError as error:
                if REFUSED not in str(error):
                    raise
                break
            wrong = fault(ours, check("reference"), dtype)
            count += 1
            faults += [f"{operation} {backend} {dtype}: {name}: {wrong}"] if wrong else []
    return count, faults


def run_all(backend: str) -> int:
    """How many checks of a backend's operations were wrong."""
    failed = 0
    for operation in OPERATIONS:
        if (reason := mixfast.backends()[operation].get(backend, "does not exist")) is not None:
            print(f"{operation} {backend}: {reason}")
            continue
        failed += report(operation, backend, backend)
    return failed


def run_hopper() -> int:
    operation = "multi_queue_infonce"
    reason = gpu_cuda.unavailable()
    if reason is None and "hopper" not in gpu_cuda.kernels():
        reason = "it takes compute capability 9.0, and a build for it"
    if reason is not None:
        print(f"{operation} hopper: {reason}")
        return 0
    with gpu_cuda.kernel("hopper"):
        return report(operation, "cuda", "hopper")


def report(operation: str, backend: str, name: str) -> int:
    count, faults = run(operation, backend)
    print(f"{operation} {name}: {count} checks, {len(faults)} wrong", *faults, sep="\n  ", flush=True)
    return len(faults)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.every_kernel", description=__doc__.split("\n\n")[0])
    parser.add_argument("backends", nargs="*", default=["cuda", "hopper", "triton"])
    names = parser.parse_args().backends
    return 1 if sum(run_hopper() if name == "hopper" else run_all(name) for name in names) else 0


if __name__ == "__main__":
    raise SystemExit(main())
