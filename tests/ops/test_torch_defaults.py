"""torch's default dtype and default device change nothing: operations follow their arguments alone, to the bit."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mixfast
from mixfast import augment, losses, mix
from mixfast.ops.views.reference import constant
from mixfast.rng import Generators
from mixfast.scoring import bootstrap, components, localisation, maps
from tests.backends import device_of, each_backend
from tests.ops import augmenting

Made = Callable[[], list[Tensor]]
BOXES, SIZE = [[0, 0, 3, 5], [2, 1, 9, 8]], (9, 9)


def unit(count: int, rng: torch.Generator, dim: int = 16) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=rng), dim=1)


def with_gradients(run: Callable[..., list[Tensor]], *inputs: Tensor) -> list[Tensor]:
    """What `run` returns, then the gradient of the sum of the squares with respect to each input."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    results = run(*leaves)
    grads = torch.autograd.grad(sum(result.square().sum() for result in results), leaves)
    return [result.detach() for result in results] + list(grads)


def by_each_reduction(run: Callable[..., list[Tensor]], *inputs: Tensor) -> list[Tensor]:
    return [made for reduction in ("mean", "none") for made in with_gradients(partial(run, reduction), *inputs)]


def infonce(rng: torch.Generator, backend: str) -> Made:
    device = device_of(backend)
    query, key, queue = (unit(count, rng).to(device) for count in (5, 5, 40))
    temperature, length = torch.tensor([0.2], device=device), torch.tensor([30], device=device)

    def run(reduction: str, query: Tensor, key: Tensor, temperature: Tensor) -> list[Tensor]:
        options = {"temperature": temperature, "valid_len": length, "reduction": reduction, "backend": backend}
        made = mixfast.multi_queue_infonce([query], [key], [queue], [0], **options)
        return [made] if isinstance(made, Tensor) else made

    return partial(by_each_reduction, run, query, key, temperature)


def nt_xent(rng: torch.Generator, backend: str) -> Made:
    device = device_of(backend)
    first, second = (unit(5, rng).to(device) for _ in range(2))
    temperature, excluded = torch.tensor(0.2, device=device), torch.tensor([2] + [-1] * 9, device=device)

    def run(reduction: str, first: Tensor, second: Tensor, temperature: Tensor) -> list[Tensor]:
        options = {"temperature": temperature, "excluded": excluded, "reduction": reduction}
        return [mixfast.nt_xent(first, second, backend=backend, **options)]

    return partial(by_each_reduction, run, first, second, temperature)


def pooling(rng: torch.Generator, backend: str) -> Made:
    device = device_of(backend)
    features, mask = torch.randn(2, 3, 4, 4, generator=rng).to(device), torch.rand(2, *SIZE, generator=rng).to(device)
    boxes = torch.tensor(BOXES, device=device)

    def run() -> list[Tensor]:
        made = []
        for regions, size in ((boxes, SIZE), (mask, None)):
            made += with_gradients(
                lambda x, regions=regions, size=size: list(
                    mixfast.masked_upsample_pool(x, regions, size, backend=backend)
                ),
                features,
            )
        weights = mixfast.region_weights(boxes, SIZE, (4, 4), backend=backend)
        pooled = with_gradients(lambda x: list(mixfast.weighted_pool(x, weights, backend=backend)), features)
        return [*made, weights, *pooled]

    return run


def batch_norm(rng: torch.Generator, backend: str) -> Made:
    device = device_of(backend)
    x, weight, bias, mean, var = (
        torch.rand(*shape, generator=rng).to(device) for shape in ((4, 6, 3, 3), (6,), (6,), (6,), (6,))
    )

    def run() -> list[Tensor]:
        running = mean.clone(), var.clone()
        made = with_gradients(
            lambda *leaves: [mixfast.ops.split_batch_norm(*leaves, *running, num_splits=2, backend=backend)],
            *(x, weight, bias),
        )
        return [*made, *running]

    return run


def views(rng: torch.Generator, backend: str) -> Made:
    device = device_of(backend)
    images, index = augmenting.byte_images(6, rng, (9, 7)).to(device), torch.tensor([4, 0, 1], device=device)
    state = augmenting.new_state(rng).to(device)
    recipe = augmenting.EVERYTHING

    def run() -> list[Tensor]:
        parameters = mixfast.draw_views(state.clone(), 3, (9, 7), [recipe, recipe], backend=backend)
        options = augmenting.options(recipe, index=index, size=(5, 8), backend=backend)
        made = mixfast.augment_views(images, parameters, **options)
        boxes, share = torch.tensor([[0, 0, 3, 2]] * 3, device=device), parameters[0, :, 4].contiguous()
        return [parameters, *made, mixfast.mix_views(*made, boxes, share, backend=backend)]

    return run


# What makes the inputs of calls and returns the calls; the operation whose backends run them.
RUNS: list[tuple[Callable[[torch.Generator, str], Made], str]] = [
    (infonce, "multi_queue_infonce"),
    (nt_xent, "nt_xent"),
    (pooling, "masked_upsample_pool"),
    (batch_norm, "split_batch_norm"),
    (views, "augment_views"),
]
CASES = [
    pytest.param(run, *case.values, marks=case.marks, id=f"{run.__name__}-{case.id}")
    for run, operation in RUNS
    for case in each_backend(operation).args[1]
]
DEFAULTS = {"float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16, "meta": "meta"}


@contextmanager
def default(name: str) -> Iterator[None]:
    """torch's default dtype, or default device, set to something that no operation may follow."""
    wanted, before = DEFAULTS[name], (torch.get_default_dtype(), torch.get_default_device())
    constant.cache_clear()  # made under the default, then
    try:
        torch.set_default_device(wanted) if isinstance(wanted, str) else torch.set_default_dtype(wanted)
        yield
    finally:
        torch.set_default_dtype(before[0])
        torch.set_default_device(None if before[1].type == "cpu" else before[1])
        constant.cache_clear()


def check(made: Made, *names: str) -> None:
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(default(name))
        results = made()
    expected = made()
    assert len(results) == len(expected)
    for ours, theirs in zip(results, expected, strict=True):
        assert (ours.dtype, ours.device, ours.stride()) == (theirs.dtype, theirs.device, theirs.stride())
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize(("run", "backend"), CASES)
def test_operations(run: Callable[[torch.Generator, str], Made], backend: str, name: str, rng: torch.Generator) -> None:
    check(run(rng, backend), name)


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_is_built_on_them(name: str, rng: torch.Generator) -> None:
    images, (first, second, keys) = augmenting.byte_images(6, rng, (9, 7)), (unit(6, rng) for _ in range(3))
    box_kinds = [mix.MixtureConfig(mixture=kind, alpha=a) for kind in ("cutmix", "saliency", "none") for a in (1, 0.5)]

    def made() -> list[Tensor]:
        draws = Generators(3)
        state, generator = draws.counter("views"), draws["mix"]
        pair = augment.augment(images, augmenting.EVERYTHING, state, augmenting.MEAN, augmenting.STD)
        results = [state, *pair, augment.normalise(images, augmenting.MEAN, augmenting.STD)]
        for config in (*box_kinds, mix.MixtureConfig(mixture="mixup", box_per_sample=True)):
            results += mix.mix(*pair, generator, config, p_global=0.5)
        weight = results[-1]
        terms = [losses.Term("a", first, second, "q", weight), losses.Term("b", second, first, "q", 0.5)]
        results.append(losses.infonce_sum(terms, {"q": keys}, 0.2)[0])
        results.append(losses.nt_xent_sum([losses.PairTerm("a", first, second, weight)], 0.2)[0])
        results.append(losses.minus_cosine(first, losses.unit(second.bfloat16())))
        return results

    check(made, name)


@pytest.mark.parametrize("name", DEFAULTS)
def test_scores(name: str, rng: torch.Generator) -> None:
    heat, boxes = torch.rand(5, 9, 9, generator=rng), torch.tensor([[[1, 1, 5, 6]]] * 5)
    masks = torch.rand(5, 9, 9, generator=rng) < 0.5

    def made() -> list[Tensor]:
        draws = bootstrap.resamples(5, number=20)
        mean = bootstrap.summary([heat[:, 0]], lambda sums: sums.mean(1), draws)["low"]
        return [
            *(draws, draws.new_tensor(mean), maps.entropy(heat)),
            components.mixture_boxes(4, (9, 9), 0.3, torch.Generator("cpu").manual_seed(1)),
            *localisation.box_curves(heat, boxes.float(), 10),
            *localisation.pixel_counts(heat, masks),
        ]

    check(made, name)
