"""The variants of Triton kernels that triton_report.py compiles: each kernel at the shapes and dtypes of training runs.

Constants and launch options are those of the backends themselves.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from mixfast.ops.infonce import gpu_triton as infonce
from mixfast.ops.infonce import gpu_triton_kernels as infonce_kernels
from mixfast.ops.norm import gpu_triton as norm
from mixfast.ops.norm import gpu_triton_kernels as norm_kernels
from mixfast.ops.ntxent import gpu_triton as nt_xent
from mixfast.ops.ntxent import gpu_triton_kernels as nt_xent_kernels
from mixfast.ops.pool import gpu_triton as pool
from mixfast.ops.pool import gpu_triton_kernels as pool_kernels
from mixfast.ops.views import gpu_triton as augment
from mixfast.ops.views import gpu_triton_draws as draw_kernels
from mixfast.ops.views import gpu_triton_kernels as augment_kernels
from mixfast.ops.views import gpu_triton_mix as mix_kernels
from mixfast.ops.views._layout import Options

Types = dict[str, Any]


class Variant(NamedTuple):
    """A kernel with the types of its arguments ("i32:16" is a multiple of 16, None is None) and its constants."""

    name: str
    kernel: Any
    types: Types
    constants: dict[str, Any]
    launch: dict[str, Any]
    matrix: bool = False  # multiplies matrices on tensor cores


def pool_variants() -> Iterator[Variant]:
    launch = pool._LAUNCH
    sizes = {"height": "i32", "width": "i32"}
    for dtype, sides in (("bf16", (4, 7, 14)), ("fp32", (7,))):
        for last in (False, True):
            for side in sides:
                name = f"{dtype} {'channels_last' if last else 'contiguous'} {side}x{side}"
                maps = {each: f"*{dtype}" for each in ("features", "inside", "outside")}
                types = {**maps, "weights": "*fp32", "channels": "i32:16", **sizes}
                constants = pool.pool_constants(side, side, False, last, False)
                yield Variant(f"pool boxes {name}", pool_kernels.pool, {**types, "boxes": "*i64"}, constants, launch)
                yield Variant(f"pool weights {name}", pool_kernels.pool, {**types, "boxes": None}, constants, launch)
                maps = {each: f"*{dtype}" for each in ("grad_inside", "grad_outside", "grad")}
                types = {**maps, "weights": "*fp32", "channels": "i32:16"}
                constants = pool.spread_constants(side, side, False, last)
                yield Variant(f"spread {name}", pool_kernels.spread, types, constants, launch)
    types = {"boxes": "*i64", "weights": "*fp32", **sizes}
    yield Variant("box_weights 32x32", pool_kernels.box_weights, types, pool.box_constants(32, 32, True), launch)
    for dtype, element_size in (("u8", 1), ("fp32", 4)):
        for side in (7, 64):
            types = {"masks": f"*{dtype}", "weights": "*fp32", **sizes}
            constants = pool.mask_constants(side, side, False, element_size)
            yield Variant(f"mask_weights {dtype} {side}x{side}", pool_kernels.mask_weights, types, constants, launch)
    constants = {"POSITIONS": 4096, "BLOCK_P": 1024}
    yield Variant("normalise 64x64", pool_kernels.normalise, {"weights": "*fp32"}, constants, launch)


def infonce_variants(architecture: int) -> Iterator[Variant]:
    """Variants of InfoNCE: five terms against three queues, with temperatures as numbers."""
    common: Types = {"tiles": "*i32", "temperature": None, "temperatures": ("fp32",) * 5, "total": "i32"}
    common |= {"valid_len": "*i64"}
    partial = {each: "*fp32" for each in ("maxima", "sums", "products")}
    for dim in (64, 128, 256):
        for grad in (True, False):
            chunks = partial if grad else {**partial, "products": None}
            suffix = f"D={dim} {'loss and gradient' if grad else 'loss'}"
            for dtype, factors in (("fp16", "fp16"), ("bf16", "bf16"), ("fp32", "cast"), ("fp32", "bf16x3")):
                if factors == "bf16x3" and dim > infonce.LARGEST_EXACT_DIM:
                    continue
                types = {**common, **chunks, "queries": f"*{dtype}", "queues": (f"*{dtype}",) * 3}
                constants, launch = infonce.partials_constants(architecture, dim, factors, grad)
                product = factors if factors == dtype else f"{dtype} {factors}"
                yield Variant(f"partials {product} {suffix}", infonce_kernels.partials, types, constants, launch, True)
            rows = {each: "*fp16" for each in ("queries", "positives")}
            outputs = {"losses": "*fp32", "shares": "*fp32", "grads": "*fp32" if grad else None}
            constants = {**infonce.row_constants(dim), "GRAD": grad}
            types = {**common, **chunks, **rows, **outputs}
            yield Variant(f"merge fp16 {suffix}", infonce_kernels.merge, types, constants, infonce._LAUNCH)
        names = ("upstream", "grads", "shares", "d_temperatures")
        types = {**common, "terms": "*i32", "upstream_stride": "i32", **{name: "*fp32" for name in names}}
        types |= {name: "*fp16" for name in ("queries", "d_queries", "d_positives")}
        constants = {**infonce.row_constants(dim), "REDUCTION": "mean"}
        yield Variant(f"scale_rows fp16 D={dim}", infonce_kernels.scale_rows, types, constants, infonce._LAUNCH)
    types = {"values": "*fp32", "terms": "*i32", "results": "*fp32"}
    constants = {"MEAN": True, "BLOCK_N": 1024}
    yield Variant("reduce_terms", infonce_kernels.reduce_terms, types, constants, infonce._LAUNCH)


def nt_xent_variants(architecture: int) -> Iterator[Variant]:
    common: Types = {"temperature": None, "number": "fp32", "total": "i32", "chunk": "i32", "chunks": "i32"}
    statistics = ("maxima", "sums", "losses", "denominators", "shares", "upstream", "results", "d_temperatures")
    common |= {**{name: "*fp32" for name in statistics}, "upstream_stride": "i32"}
    for dim in (64, 128, 256):
        for dtype, factors in (("fp16", "fp16"), ("bf16", "bf16"), ("fp32", "cast"), ("fp32", "bf16x3")):
            if factors == "bf16x3" and dim > nt_xent.LARGEST_EXACT_DIM:
                continue
            for excluded in (None, "*i64") if dim == 128 else (None,):
                types = {**common, "rows": f"*{dtype}", "excluded": excluded}
                name = factors if factors == dtype else f"{dtype} {factors}"
                name += f" D={dim}{' excluded' if excluded else ''}"
                constants, launch = nt_xent.pair_constants(architecture, dim, factors, False)
                yield Variant(f"nt_xent partials {name}", nt_xent_kernels.partials, types, constants, launch, True)
                constants, launch = nt_xent.pair_constants(architecture, dim, factors, True)
                constants["REDUCTION"] = "mean"
                yield Variant(f"nt_xent products {name}", nt_xent_kernels.products, types, constants, launch, True)
        types = {**common, "rows": "*fp16", "d_rows": "*fp16"}
        constants, launch = nt_xent.row_constants(dim), nt_xent._LAUNCH
        yield Variant(f"nt_xent merge fp16 D={dim}", nt_xent_kernels.merge, types, constants, launch)
        constants = {**constants, "REDUCTION": "mean"}
        yield Variant(f"nt_xent combine fp16 D={dim}", nt_xent_kernels.combine, types, constants, launch)
    types = {"values": "*fp32", "result": "*fp32", "count": "i32"}
    yield Variant("nt_xent reduce", nt_xent_kernels.reduce, types, {"MEAN": True, "BLOCK_N": 1024}, nt_xent._LAUNCH)


def norm_variants() -> Iterator[Variant]:
    """Variants of the norm with many chunks; in channels_last one stride is 1, in contiguous maps the other."""
    names = (
        "means",
        "squares",
        "group_means",
        "inverses",
        "variances",
        "weight",
        "bias",
        "running_mean",
        "running_var",
    )
    names += ("plain_sums", "weighted_sums", "plain", "weighted", "d_weight", "d_bias")
    common: Types = {**{name: "*fp32" for name in names}, "channels": "i32:16", "momentum": "fp32", "eps": "fp32"}
    common |= {name: "i32" for name in ("groups", "steps", "chunk", "chunks", "total")}
    for dtype, last, pixels in (
        ("bf16", True, "i32:16"),
        ("bf16", False, "i32:16"),
        ("bf16", False, "i32"),
        ("fp32", True, "i32:16"),
    ):
        name = f"{dtype} {'channels_last' if last else 'contiguous'} {'32x32' if pixels == 'i32:16' else '7x7'}"
        strides = {"stride_c": 1} if last else {"stride_p": 1}
        constants = {**norm.map_constants(64, 1024 if pixels == "i32:16" else 49, last), **strides}
        types = {**common, "pixels": pixels, "stride_p": "i32:16", "stride_c": pixels}
        types |= {each: f"*{dtype}" for each in ("x", "y", "dy", "dx")}
        fused = {**types, "residual": f"*{dtype}", "masked": f"*{dtype}"}
        plain = {key: value for key, value in types.items() if key != "y"}
        constants["RELU"] = False
        for kernel, given in (("moments", types), ("normalise", types), ("products", plain), ("gradient", plain)):
            yield Variant(f"norm {kernel} {name}", getattr(norm_kernels, kernel), given, constants, norm._LAUNCH)
        if dtype == "bf16" and last:  # with a residual and ReLU, as networks are trained
            constants = {**constants, "RELU": True}
            for kernel in ("normalise", "products", "gradient"):
                yield Variant(
                    f"norm {kernel} fused {name}", getattr(norm_kernels, kernel), fused, constants, norm._LAUNCH
                )
    for chunks in (16, 132):
        constants, types = norm.merge_constants(chunks), {**common, "pixels": "i32:16"}
        yield Variant(
            f"norm merge_products {chunks} chunks", norm_kernels.merge_products, types, constants, norm._LAUNCH
        )
        constants = {**constants, "BLOCK_P": 32}
        yield Variant(f"norm merge_moments {chunks} chunks", norm_kernels.merge_moments, types, constants, norm._LAUNCH)


def augment_variants(architecture: int) -> Iterator[Variant]:
    """Variants of two views: one tile (32 and 64 px) and many tiles (224 px), with the buffers between stages."""
    types: Types = {"images": "i32", "batch": "i32", "reach": "i32", "source": "*u8", "index": "*i64"}
    types |= {"parameters": "*fp32", "sums": "*fp32", "scale": ("fp32",) * 3, "offset": ("fp32",) * 3}
    for dtype, last in (("fp32", False), ("bf16", True)):
        out = {"out": f"*{dtype}", "scratch": "*fp32"}
        name = f"{dtype} {'channels_last' if last else 'contiguous'}"
        for side in (32, 64, 224):
            for interpolation in ("bilinear", "bicubic"):
                options = augment_options(side, interpolation, last)
                given = {**types, **out, "scratch": None}
                yield from stage(architecture, f"{interpolation} {name}", given, options, crop=True, colour=True)
        small, large = (augment_options(side, "bilinear", last) for side in (32, 224))
        yield from stage(architecture, f"before a blur, {name}", {**types, **out}, small, crop=True, colour=True)
        constants, launch = augment.blur_constants(2, large), augment._BLUR
        yield Variant(f"augment blur {name} 224", augment_kernels.blur, {**types, **out}, constants, launch)
        after = {**types, **out, "scratch": None, "source": "*fp32", "index": None}
        cubic = augment_options(224, "bicubic", last)
        yield from stage(architecture, f"crop after colours, bicubic {name}", after, cubic, crop=True, colour=False)
    for side in (32, 224):
        options = augment_options(side, "bicubic", False)
        given = {**types, "scratch": "*fp32", "out": None}
        yield from stage(architecture, "colours before a crop,", given, options, crop=False, colour=True)
    types = {"state": "*i64", "laws": "*fp64", "parameters": "*fp32", "batch": "i32", "height": "i32", "width": "i32"}
    yield Variant("augment draw", draw_kernels.draw, types, {"BLOCK": augment.DRAWN}, augment._DRAW)
    for name, dtype, channels in (("fp32 nhwc", "*fp32", 3), ("bf16 nchw", "*bf16", 1)):
        types = {**dict.fromkeys(("base", "donor", "out"), dtype), "boxes": "*i64", "share": "*fp32"}
        types |= {"numbers": "i32:16", "pixels": "i32:16", "width": "i32"}
        yield Variant(
            f"mix {name}", mix_kernels.mix, types, {"CHANNELS": channels, "BLOCK": augment.MIXED}, augment._MIX
        )


def augment_options(side: int, interpolation: str, channels_last: bool) -> Options:
    ones = (1.0, 1.0, 1.0)
    return Options(side, side, ones, ones, interpolation, False, False, 0, torch.float32, channels_last)


def stage(
    architecture: int, name: str, types: Types, options: Options, *, crop: bool, colour: bool
) -> Iterator[Variant]:
    """A view's pixels, and of one that is several tiles on every architecture the sums before them."""
    size = options.height, options.width
    constants, launch = augment.render_constants(architecture, 2, size, size, options, crop, colour)
    if colour and options.height > 64:
        own = augment.sums_constants(constants)
        yield Variant(f"augment sums {name} {size[0]}", augment_kernels.grey_sums, types, own, launch)
    given = types if colour and constants["BLOCK_H"] < options.height else {**types, "sums": None}
    yield Variant(f"augment {name} {size[0]}", augment_kernels.render, given, constants, launch)


def variants(architecture: int) -> Iterator[Variant]:
    yield from infonce_variants(architecture)
    yield from nt_xent_variants(architecture)
    yield from pool_variants()
    yield from norm_variants()
    yield from augment_variants(architecture)
