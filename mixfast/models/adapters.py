"""Backbones of `model.backbone`: torchvision's, timm's, and those of a module outside this package."""

import ast
import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixfast.errors import ConfigError, PlatformError
from mixfast.models.backbone import Adapted, Backbone
from mixfast.outside import import_module

FORMS = "resnet, torchvision:NAME, timm:NAME, or package.module:factory of your own; options follow as ,key=value"
LIBRARIES = ("torchvision", "timm")
# Options of the libraries' factories that fetch or read weights, or that this package sets itself.
_REFUSED = {"pretrained", "weights", "weights_backbone", "checkpoint_path", "num_classes", "features_only"}
_REFUSED |= {"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
_PROBE = 64  # side in pixels of the image with which a chain's strides are measured

# torchvision's classes whose forward pass is a chain of children: (the chain, what a name of a stage begins with)
_CHAINS = {
    "ResNet": (("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"), "layer"),
    "RegNet": (("stem", "trunk_output"), "trunk_output"),
    **dict.fromkeys(("ConvNeXt", "EfficientNet", "MobileNetV2", "MobileNetV3"), (("features",), "features")),
}


class Named(NamedTuple):
    """The parts of a value of `model.backbone` other than "resnet"."""

    source: str  # torchvision, timm, or the dotted path of a module
    name: str  # of a network or factory there
    options: dict[str, Any]  # keyword arguments of the factory

    @property
    def own(self) -> bool:
        """Whether the factory is in a user's module."""
        return self.source not in LIBRARIES


def parse(text: str) -> Named:
    """The parts of "timm:vit_tiny_patch16_224,img_size=32,patch_size=8" and the like.

    An option's value is a Python literal, or else a string.

    Raises:
        ConfigError: the text has another form, or an option that would fetch weights.
    """
    target, *pairs = re.split(r",(?=\s*\w+=)", text)
    source, colon, name = target.partition(":")
    dotted = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
    name_pattern = r"[\w.]+" if source in LIBRARIES else dotted
    if not (colon and re.fullmatch(dotted, source) and re.fullmatch(name_pattern, name)):
        raise ConfigError(f"model.backbone must be {FORMS}; got {text!r}")
    options = {key.strip(): _literal(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    named = Named(source, name, options)
    if not named.own and (refused := sorted(_REFUSED & set(options))):
        raise ConfigError(
            f"model.backbone {source}:{name} does not take {', '.join(refused)}: weights are always drawn anew, and "
            "there is no classifier. Omit it."
        )
    return named


def _literal(value: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def draw(text: str, generator: torch.Generator) -> Backbone:
    """The backbone that `text` names, on the generator's device, with the weights that its factory gives it.

    The factory runs on the CPU while PyTorch's global generator is seeded from `generator`: one seed gives one network,
    and the global generator is as before afterwards.
    """
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        backbone = make(text)
    return backbone.to(generator.device)


def make(text: str, factory: Callable[..., object] | None = None) -> Backbone:
    """The backbone that `text` names; `factory` replaces the user's factory that it names.

    Raises:
        ConfigError: nothing has that name, its factory does not take these options, or it does not return a backbone.
        PlatformError: the library is missing.
    """
    named = parse(text)
    if named.source == "torchvision":
        return adapted(_torchvision(named), text)
    if named.source == "timm":
        return adapted(_timm(named), text)
    factory = factory or imported(named)
    try:
        inspect.signature(factory).bind(**named.options)
    except (TypeError, ValueError) as error:  # ValueError: a callable without a signature
        raise ConfigError(f"model.backbone {text}: {named.name} does not take these options: {error}.") from error
    return adapted(factory(**named.options), text)


def imported(named: Named) -> Callable[..., object]:
    """The factory of a module outside this package."""
    module = import_module(named.source, "model.backbone")
    factory = getattr(module, named.name, None)
    if not callable(factory):
        factories = [name for name, value in vars(module).items() if callable(value)]
        raise ConfigError(
            f"model.backbone: {named.source} has no factory {named.name}{_nearest(named.name, factories)}"
        )
    return factory


def _torchvision(named: Named) -> nn.Module:
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise _missing(named, error) from error
    model_names = models.list_models(module=models)
    if named.name not in model_names:
        raise ConfigError(f"model.backbone: torchvision has no {named.name}{_nearest(named.name, model_names)}")
    return _built(named, partial(models.get_model, named.name, weights=None))


def _timm(named: Named) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise _missing(named, error) from error
    if not timm.is_model(named.name):
        raise ConfigError(f"model.backbone: timm has no {named.name}{_nearest(named.name, timm.list_models())}")
    build = partial(timm.create_model, named.name, pretrained=False, num_classes=0)
    try:
        return _built(named, partial(build, dynamic_img_size=True))  # transformers then take images of any side
    except ConfigError as error:
        if "dynamic_img_size" not in str(error):
            raise
    return _built(named, build)


def _built(named: Named, build: Callable[..., nn.Module]) -> nn.Module:
    try:
        return build(**named.options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:  # the libraries' errors about options
        options = ", ".join(f"{key}={value!r}" for key, value in named.options.items()) or "no options"
        raise ConfigError(f"model.backbone {named.source}:{named.name} with {options}: {error}") from error


def _missing(named: Named, error: Exception) -> PlatformError:
    return PlatformError(
        f"model.backbone {named.source}:{named.name} needs {named.source}, which cannot be imported ({error}). "
        f"Run: pip install {named.source}"
    )


def _nearest(name: str, names: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(names), n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(nearest)}?" if nearest else ""


def adapted(module: object, text: str) -> Backbone:
    """Turn the network that a factory returned into a `Backbone`.

    Raises:
        ConfigError: `module` is not a `Backbone` and cannot be adapted.
    """
    type_name = type(module).__name__
    if isinstance(module, Backbone):
        backbone = module
    elif isinstance(module, nn.Sequential):
        backbone = Chain(module, [name for name, _ in module.named_children()], "", text)
    elif isinstance(module, nn.Module) and hasattr(module, "forward_intermediates") and hasattr(module, "feature_info"):
        backbone = TimmBackbone(module)
    elif isinstance(module, nn.Module) and type(module).__module__.startswith("torchvision.") and type_name in _CHAINS:
        backbone = _torchvision_chain(module, text)
    elif text.startswith("torchvision:"):
        raise ConfigError(
            f"model.backbone {text}: torchvision's {type_name} has no known stages; its {', '.join(_CHAINS)} have. "
            "Name a network of those, one of timm's, or a factory of your own (docs/backbones.md)."
        )
    else:
        raise ConfigError(
            f"model.backbone {text} gave a {type_name}; it must give a mixfast.models.Backbone, an nn.Sequential from "
            "images to a map, or a network of torchvision or timm (docs/backbones.md)."
        )
    channels, strides = getattr(backbone, "channels", None), getattr(backbone, "strides", None)
    if not (_positive(channels) and _positive(strides) and len(backbone.channels) == len(backbone.strides)):
        raise ConfigError(
            f"model.backbone {text}: channels and strides must be lists with a positive number for each stage; got "
            f"{channels} and {strides}."
        )
    return backbone


def _positive(values: object) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(n, int) and n > 0 for n in values)


class Chain(Adapted):
    """Children of a network that are called one after the other; a stage ends before the size of the map changes.

    Args:
        network: from images [B, 3, H, W] to a map.
        names: of the children, in their order.
        prefix: only children whose name begins with it are ends of stages.
        text: the name of the network in messages.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], prefix: str, text: str):
        super().__init__(network)
        self.names = list(names)
        shapes: list[torch.Size] = []
        network.eval()  # one image is too few for statistics
        with torch.no_grad():
            x = torch.zeros(1, 3, _PROBE, _PROBE)
            for name in names:
                x = network.get_submodule(name)(x)
                if not (isinstance(x, Tensor) and x.dim() == 4):
                    returned = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
                    raise ConfigError(
                        f"model.backbone {text}: child {name} must return a map [B, C, h, w]; got {returned}."
                    )
                shapes.append(x.shape)
        network.train()
        following = [*shapes[1:], torch.Size()]
        ends = [
            index
            for index, (name, shape, after) in enumerate(zip(names, shapes, following, strict=True))
            if name.startswith(prefix) and shape[2:] != after[2:]
        ]
        self.ends = [self.names[index] for index in ends]
        self.channels = [shapes[index][1] for index in ends]
        self.strides = [max(1, round(_PROBE / shapes[index][2])) for index in ends]

    def maps(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        ends = [self.ends[layer - 1] for layer in layers]
        maps_by_name: dict[str, Tensor] = {}
        x = images
        for name in self.names[: max(map(self.names.index, ends)) + 1]:
            x = self.network.get_submodule(name)(x)
            if name in ends:
                maps_by_name[name] = x
        return [maps_by_name[name] for name in ends]


def _torchvision_chain(network: nn.Module, text: str) -> Chain:
    children, prefix = _CHAINS[type(network).__name__]
    names: list[str] = []
    for child in children:
        module = network.get_submodule(child)
        parts = module.named_children() if child in ("features", "trunk_output") else ()
        names += [f"{child}.{name}" for name, _ in parts] or [child]
    for head in ("fc", "classifier"):
        if hasattr(network, head):
            setattr(network, head, nn.Identity())
    return Chain(network, names, prefix, text)


class TimmBackbone(Adapted):
    """A network of timm. The patch tokens of a transformer become a feature map; its class token is omitted.

    The stages are those of timm's `feature_info`; of a transformer, its blocks, whose tokens pass the network's final
    norm (timm's `forward_intermediates` with norm=True).
    """

    def __init__(self, network: Any):
        super().__init__(network)
        self.channels = [stage["num_chs"] for stage in network.feature_info]
        self.strides = [stage["reduction"] for stage in network.feature_info]

    def maps(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        stages = sorted(set(layers))
        network: Any = self.network
        stage_maps = network.forward_intermediates(
            images,
            indices=[stage - 1 for stage in stages],
            norm=True,
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        by_stage = dict(zip(stages, stage_maps, strict=True))
        return [by_stage[layer] for layer in layers]
