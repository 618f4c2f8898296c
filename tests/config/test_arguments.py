"""How options are spelled, and what an error suggests."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import tyro

from mixfast.config.arguments import matching_name, nearest, normalised, parse
from mixfast.errors import ConfigError
from mixfast.ranges import Count, Positive
from mixfast.train import cli
from tests.config.test_values import cases


@dataclasses.dataclass(frozen=True)
class Options:
    """Do something."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    data_path: str | None = None  # where
    k: Count | None = None  # neighbours
    rates: tuple[Positive, ...] = ()  # of learning
    pair: tuple[int, int] = (1, 2)  # of sizes
    grey: bool = False  # colourless
    baselines: bool = True  # also
    kind: Literal["norm", "power"] = "norm"  # of map


def read(words: str) -> Options:
    return parse(Options, words.split(), "python -m x")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("a b", {}),
        ("a --data-path x b", {"data_path": "x"}),
        ("a b --data_path x", {"data_path": "x"}),
        ("a b --data.path=x", {"data_path": "x"}),
        ("--k 3 a b", {"k": 3}),
        ("--k None a b", {}),
        ("a b --rates 0.1 2", {"rates": (0.1, 2.0)}),
        ("--pair 3 4 a b", {"pair": (3, 4)}),
        ("--pair -3 -4 a b", {"pair": (-3, -4)}),
        ("--grey a --no-baselines b", {"grey": True, "baselines": False}),
        ("--gray --no_baselines a b", {"grey": True, "baselines": False}),
        ("a b --kind power", {"kind": "power"}),
    ],
)
def test_arguments_become_options_however_they_are_spelled(words: str, expected: dict[str, Any]) -> None:
    assert read(words) == dataclasses.replace(Options((Path("a"), Path("b"))), **expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a --data-pth x", "unknown option --data-pth; did you mean --data_path?"),
        ("a --no-baseline", "unknown option --no-baseline; did you mean --no-baselines?"),
        ("a --no-k", "unknown option --no-k; see --help."),
        ("a -k 3", "unknown option -k; did you mean --k?"),
        ("a --tracebak", "unknown option --tracebak; did you mean --traceback?"),
        ("a --k three", "--k three: expected a whole number or None; the default is None."),
        ("a --k", "--k: expected a whole number or None; the default is None."),
        ("a --k 0", "--k must be at least 1; got 0"),
        ("a --rates 1 x", "--rates 1 x: expected any number of numbers; the default is none."),
        ("a --rates 1 inf", "--rates must be values, each finite; got (1.0, inf)"),
        ("a --pair 1", "--pair 1: expected 2 whole numbers; the default is 1 2."),
        ("a --kind powr", "--kind powr: expected one of norm, power; the default is norm."),
        ("a --grey=yes", "--grey yes: expected no value: the option switches on, and with no- before its name off"),
        ("a --k 1 --k 2", "--k is given more than once."),
    ],
)
def test_an_error_names_the_option_and_what_it_takes(words: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(words)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_every_option_of_training_can_be_spelled_in_four_ways() -> None:
    keys = {key for _, key, *_ in cases()}
    assert len({normalised(key) for key in keys}) == len(keys)
    for words in (["--data.cache-dir", "x"], ["--data.cache_dir=x"], ["--data-cache-dir", "x"], ["--data_cache_dir=x"]):
        assert cli.parse(words).config.data.cache_dir == "x"
    for word in ("--data.no-cache", "--no-data.cache", "--data-no-cache", "--no_data_cache"):
        assert not cli.parse([word]).config.data.cache


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--no-data.cach", "did you mean --data.no-cache"),
        ("--data.no-cach", "did you mean --data.no-cache"),
        ("--lr 1", "did you mean --optim.lr?"),
        ("--batch-size 1", "did you mean --train.batch_size or --eval.batch_size?"),
        ("--overwrit", "did you mean --overwrite?"),
        ("moco --optim.lr abc", "--optim.lr abc: expected a number; the default is 0.06."),
    ],
)
def test_suggestions_never_say_the_opposite(words: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        cli.parse(words.split())
    assert message in str(caught.value) and "--data.cache" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # no box of tyro's


def test_names_are_found_however_they_are_spelled() -> None:
    assert cli.parse(["MoCo-v1", "augment-v2"]).preset == "moco_v1" and cli.parse(["mocov2"]).preset == "moco_v2"
    assert cli.parse(["--method", "moco-unmix", "--compare", "none"]).config.method_name == "moco_unmix"
    assert cli.parse(["moco", "--compare", "moco-cutmix"]).config.compare == ("moco_cutmix",)
    assert cli.parse(["--compare", "none"]).config.compare == cli.parse(["--compare"]).config.compare == ()
    kind = cli.parse(["moco", "--data.kind", "CIFAR-100", "--model.head", "MLP-BN", "--optim.name", "SGD"]).config
    assert (kind.data.kind, kind.model.head, kind.optim.name) == ("cifar100", "mlp_bn", "sgd")
    assert matching_name("localize", ["knn", "localise"]) == "localise"
    assert nearest("mocov2", ["moco", "moco_v1"]) == ["moco"] and nearest("moco_v", ["moco_v1"]) == []
