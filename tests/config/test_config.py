"""Configurations: dotted keys, JSON and back, checks, presets, and the words of the command line."""

import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import pytest

from mixfast import methods
from mixfast.config.options import RunConfig, differences, flatten, from_dict, nearest_multiple, replace, validate
from mixfast.config.presets import build, presets, switch_method
from mixfast.errors import CheckpointError, ConfigError
from mixfast.train import cli


def moco() -> RunConfig[Any]:
    return build("moco", [], None)[0]


def test_flatten_and_replace_are_inverse() -> None:
    flat = flatten(moco())
    assert flat["optim.lr"] == 0.06 and flat["method.temperature"] == 0.1 and flat["data.kind"] == "cifar10"
    changed = replace(moco(), {"optim.lr": 1.0, "seed": 3})
    assert flatten(changed) == {**flat, "optim.lr": 1.0, "seed": 3}
    assert replace(changed, flat) == moco()
    with pytest.raises(KeyError, match=r"lrr"):
        replace(moco(), {"optim.lrr": 1.0})


@pytest.mark.parametrize("preset", presets())
def test_every_preset_is_valid_and_survives_json(preset: str) -> None:
    config, origins = build(preset, [], None)
    validate(config)
    written = json.loads(json.dumps(dataclasses.asdict(config)))
    assert from_dict(RunConfig, written, type(config.method)) == config
    assert origins["method_name"] == f"preset {preset}" and set(origins) <= set(flatten(config))


def test_unknown_saved_key_is_refused() -> None:
    written = dataclasses.asdict(moco()) | {"colour": 1}
    with pytest.raises(ConfigError, match="RunConfig has no key colour"):
        from_dict(RunConfig, written, type(moco().method))


def test_differences_leave_out_what_a_resumed_run_may_change() -> None:
    old = flatten(moco())
    new = {**old, "optim.lr": 1.0, "train.threads": 3, "data.path": "elsewhere"}
    assert differences(old, new) == ["optim.lr: saved 0.06, wanted 1.0"]


def test_published_recipe_and_paper_modifier() -> None:
    flat = flatten(moco())
    recipe = {"optim.momentum": 0.9, "optim.weight_decay": 5e-4, "train.batch_size": 512, "method.queue_size": 4096}
    assert {key: flat[key] for key in recipe} == recipe
    assert flat["model.depth"] == 18 and flat["model.bn_splits"] == 8 and flat["augment.crop_scale"] == (0.08, 1.0)
    literal, origins = build("approach1", ["paper_literal"], None)
    assert (literal.optim.lr, literal.optim.weight_decay) == (3e-3, 1e-4)
    assert origins["optim.lr"] == "modifier paper_literal"


def test_recipes_for_data_sets() -> None:
    v2 = cli.parse(["mocov2-imagenet", "--data.path", "x"]).config
    parts = "moco imagenet augment_v2 --model.head mlp --method.temperature 0.2 --data.path x"
    assert v2 == cli.parse(parts.split()).config
    published = {  # MoCo v2, and where it does not say otherwise MoCo
        "data.size": 224, "augment.crop_scale": (0.2, 1.0), "augment.blur": 0.5, "augment.blur_sigma": (0.1, 2.0),
        "augment.hue": 0.1, "augment.jitter": 0.8, "augment.grey": 0.2, "model.depth": 50, "model.width": 64,
        "model.stem": "imagenet", "model.dim": 128, "model.head": "mlp", "model.bn_splits": 8,
        "method.queue_size": 65536, "method.ema": 0.999, "method.temperature": 0.2, "train.batch_size": 256,
        "train.epochs": 200, "optim.lr": 0.03, "optim.momentum": 0.9, "optim.weight_decay": 1e-4,
        "optim.schedule": "cosine", "optim.cosine_origin": 0,
    }  # fmt: skip
    assert {key: flatten(v2)[key] for key in published} == published
    for name in methods.names():
        for recipe, side in {"cifar100": 32, "stl10": 96, "tiny_imagenet": 64}.items():
            assert cli.parse([name, recipe]).config.data.size == side
        if "queue_size" in methods.load(name).Config.__dataclass_fields__:
            assert cli.parse([name, "imagenet"]).config.method.queue_size == 65536
        else:
            with pytest.raises(ConfigError, match=f"--method.queue_size.*, which {name} has not"):
                cli.parse([name, "imagenet"])
    with pytest.raises(ConfigError, match=r"made for its scenes; name another, as in .* moco imagenet"):
        cli.parse(["imagenet"])


def test_another_batch_gets_advice_and_no_other_rate(tmp_path: Path) -> None:
    found = cli.parse(["moco", "--train.batch_size", "1024"])
    assert found.config.optim.lr == 0.06
    assert "--optim.lr 0.06 was chosen for batches of 512; in proportion, those of 1024 take 0.12" in found.advice
    silent = ["moco", "moco --train.batch_size 1024 --optim.lr 1", "simclr_wmse --train.batch_size 64"]
    assert not any(cli.parse(words.split()).advice for words in silent)


def test_method_replaces_that_of_a_preset_and_keeps_shared_options() -> None:
    config, origins = build("demo", [], "moco")
    assert config.method_name == "moco" and origins["method_name"] == "command line"
    assert config.method.temperature == build("demo", [], None)[0].method.temperature
    other = switch_method(build("approach2_reference", [], None)[0], "moco")
    assert type(other.method) is methods.load("moco").Config and other.method.queue_size == 4096


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.epochs": 0}, r"--train.epochs must be at least 1; got 0"),
        ({"optim.lr": float("nan")}, r"--optim.lr must be at least 0; got nan"),
        ({"eval.temperature": 0.0}, r"--eval.temperature must be above 0; got 0.0"),
        ({"optim.steps": (0.5, 1.5)}, r"--optim.steps must be shares .* got \(0.5, 1.5\)"),
        ({"optim.steps": (-1.5,)}, r"--optim.steps must be .* or whole numbers below 0: .* got \(-1.5,\)"),
        ({"optim.steps": (float("-inf"),)}, r"--optim.steps must be .* got \(-inf,\)"),
        (
            {"train.batch_size": 100},
            r"multiple of --train.accumulate 1 times --model.bn_splits 8; got 100, nearest: 96",
        ),
        ({"train.accumulate": 3}, r"multiple of --train.accumulate 3 times .* got 512, nearest: 504"),
        ({"method.queue_size": 4000}, r"method.queue_size must be a multiple of the 512 keys .* got 4000.* 4096"),
        ({"method.symmetric": True, "method.queue_size": 512}, r"multiple of the 1024 keys .* got 512.* 1024"),
        ({"train.epochs": -1, "eval.k": 0}, r"--train.epochs .*\n--eval.k"),
    ],
    ids=str,
)
def test_impossible_values_name_option_value_and_nearest(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(replace(moco(), changes))


def test_nearest_multiple() -> None:
    assert [nearest_multiple(*pair) for pair in ((100, 8), (3, 8), (4000, 512), (512, 512))] == [96, 8, 4096, 512]


def test_command_line_sets_values_and_their_origins() -> None:
    words = ["approach2", "paper_literal", "--train.epochs", "7", "--data.download", "--augment.crop-scale", "0.2", "1"]
    found = cli.parse(
        [*words, "--optim.lr=0.5", "--method.reverse_regions", "literal", "--compare", "moco", "--out", "x"]
    )
    config = found.config
    assert (found.preset, found.out, found.overwrite) == ("approach2", Path("x"), False)
    assert (config.method_name, config.train.epochs, config.data.download) == ("approach2", 7, True)
    assert (config.optim.lr, config.optim.weight_decay) == (0.5, 1e-4)
    assert (config.augment.crop_scale, config.compare) == ((0.2, 1.0), ("moco",))
    assert config.method.reverse_regions == "literal"
    assert found.origins["optim.lr"] == "command line"
    assert found.origins["optim.weight_decay"] == "modifier paper_literal"
    assert found.origins["data.kind"] == "preset approach2"


@pytest.mark.parametrize("words", [[], ["--compare", "moco", "approach1"], ["demo"]], ids=str)
def test_no_word_means_the_first_run(words: list[str]) -> None:
    found = cli.parse(words)
    assert found.preset == "demo" and found.config == build("demo", [], None)[0]
    assert found.config.method_name == "aligned_mixture" and found.config.data.kind == "scenes"
    assert found.config.compare == ("moco", "approach1")


@pytest.mark.parametrize("method", methods.names())
@pytest.mark.parametrize("modifiers", [[], ["augment_v2", "moco_demo"]], ids=str)
def test_a_method_without_a_preset_starts_from_the_recipe_of_its_name(method: str, modifiers: list[str]) -> None:
    found = cli.parse([*modifiers, "--method", method])
    assert (found.preset, found.config) == (method, build(method, modifiers, None)[0])
    assert found.config.model.depth == 18 and found.config.train.epochs == 200 and found.config.compare == ()
    assert found.config.optim.cosine_origin == len(modifiers) // 2


@pytest.mark.parametrize("words", ["demo --method approach2", "--method approach2 demo"])
def test_a_method_in_a_named_preset_keeps_its_sizes_and_trains_nothing_beside_it(words: str) -> None:
    config = cli.parse(words.split()).config
    assert (config.method_name, config.model.depth, config.model.width) == ("approach2", 8, 16)
    assert config.method.temperature == 0.2 and config.compare == ()


@pytest.mark.parametrize("words", [["--compare"], ["--compare", "none"], ["--compare=none"]], ids=str)
@pytest.mark.parametrize("preset", ["demo", "moco"])
def test_comparing_with_nothing_is_said_in_two_ways(preset: str, words: list[str]) -> None:
    assert cli.parse([preset, *words]).config.compare == ()


def test_method_from_another_module_gets_its_own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True)
    class Config:
        strength: float = 1.0

    class Mine(methods.Method):
        pass

    Mine.Config = Config
    module = types.ModuleType("my_lab_module")
    module.METHOD = Mine  # type: ignore[attr-defined]
    package = types.ModuleType("my_lab")
    monkeypatch.setitem(__import__("sys").modules, "my_lab", package)
    monkeypatch.setitem(__import__("sys").modules, "my_lab.mine", module)
    found = cli.parse(["--method", "my_lab.mine", "--method.strength", "2.5"])
    assert found.config.method == Config(2.5) and found.config.method_name == "my_lab.mine"
    standard = build("moco", [], None)[0]  # MoCo's on CIFAR-10, but for the method
    assert found.preset == "my_lab.mine"
    assert dataclasses.replace(found.config, method_name="moco", method=standard.method) == standard


BAD = [
    ("mocoo", r"unknown preset 'mocoo'; did you mean moco"),
    ("moco papr_literal", r"unknown modifier 'papr_literal'; did you mean paper_literal"),
    ("--method aproach1", r"method: there is no 'aproach1'; did you mean approach1"),
    ("--method no_such_lab.thing", r"cannot import 'no_such_lab.thing'"),
    ("--optim.lrr 0.1", r"unknown option --optim.lrr; did you mean --optim.lr"),
    ("--lr 0.1", r"unknown option --lr; did you mean .*--optim.lr"),
    ("--colour 1", r"unknown option --colour"),
    ("--train.epochs many", r"--train.epochs many: expected a whole number; the default is"),
    ("--train.epochs", r"--train.epochs: expected a whole number"),
    ("--train.epochs 1 2", r"--train.epochs 1 2: expected a whole number"),
    ("--optim.lr fast", r"--optim.lr fast: expected a number"),
    ("--train.precision fp64", r"expected one of auto, fp32, bf16"),
    ("--data.download yes", r"--data.download yes: expected no value"),
    ("--augment.crop_scale 0.5", r"--augment.crop_scale 0.5: expected 2 numbers; the default is 0.5 1.0"),
    ("--augment.flip 2", r"augment.flip must be a probability"),
    ("--model.depth 19", r"model.depth must be one of 8, 18, 20, 34, 50; got 19"),
    ("--data.kind imagenet", r"--data.kind imagenet: expected one of scenes, cifar10"),
    ("--method.temperature -1", r"method.temperature must be above 0"),
    ("--train.epochs 1 --train.epochs 2", r"--train.epochs is given more than once"),
    ("--train.batch_size 0", r"--train.batch_size must be at least 1; got 0"),
    ("--out", r"--out needs a value"),
    ("--out --overwrite", r"--out needs a value"),
    ("--overwrite", r"--overwrite needs --out DIR"),
    ("-x", r"unknown option -x"),
    ("moco --resume runs/x", r"--resume takes preset, method, folder and weights from the run"),
    ("--compare nothing", r"unknown method of --compare 'nothing'; Known: aligned_mixture, approach1"),
    ("--compare none moco", r"unknown method of --compare 'none'"),
    ("simclr --train.batch_size 96 --compare moco", r"method.queue_size must be a multiple of the 96 keys"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[words for words, _ in BAD])
def test_bad_words_are_met_with_the_nearest_valid_ones(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        cli.parse(words.split())
    assert caught.value.exit_code == 2


def test_resume_of_no_run_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not the folder of a run"):
        cli.parse(["--resume", str(tmp_path)])


def test_help_fits_a_screen_and_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    text = cli.short_help()
    lines = text.splitlines()
    assert len(lines) <= 44 and max(map(len, lines)) <= 100
    assert all(name in text for name in [*presets(), *methods.MODIFIERS, *methods.names(), "--help-all"])
    assert text.count("python -m mixfast.train") >= 4
    cli.full_help(["approach2"])
    everything = capsys.readouterr().out.replace("-", "_")
    config = build("approach2", [], None)[0]
    assert all(f"__{key}" in everything for key in flatten(config) if key != "method_name")
