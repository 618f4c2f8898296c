"""mixfast.fit: the command's bits, the caller's settings left alone, data of every form, stops, and plain results."""

import json
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

import mixfast
from mixfast.config.options import replace
from mixfast.data import ImageSet, Splits, load
from mixfast.errors import ConfigError, DataError
from mixfast.evaluate.__main__ import main as evaluate
from mixfast.export import load_backbone
from mixfast.run.signals import STOP_SIGNALS
from mixfast.train import cli
from mixfast.train.__main__ import main
from tests.tiny_run import SMALL, assert_same, last_state, records, rendered, words

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("command_settings")]

OPTIONS = {key.replace(".", "__"): value for key, value in SMALL.items() if key not in ("data.size", "train.epochs")}


@pytest.fixture(scope="module", autouse=True)
def no_pictures(command_settings: None) -> Iterator[None]:
    """Those of the report are tested elsewhere, and take longer than the run."""
    with pytest.MonkeyPatch.context() as patch:
        for draw in ("draw", "draw_views"):
            patch.setattr(f"mixfast.train.report.{draw}", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the command."""
    out = tmp_path_factory.mktemp("command") / "run"
    given = words(out, "moco", eval__diagnostics=())
    assert main([*given[:2], "moco", *given[5:], "--data.kind", "scenes"]) == 0
    return out


@pytest.fixture(scope="module")
def images(command: Path) -> Splits:
    config = cli.parse(["--resume", str(command)]).config
    return load(replace(config, {"data.size": 16}).data, config.seed)


def fit(out: Path, **changes: Any) -> mixfast.Result:
    return mixfast.fit("moco", **{"data": "scenes", "data__size": 16, "epochs": 3, "out": out, **OPTIONS, **changes})


def caller() -> dict[str, Any]:
    """What a caller may have set."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "generator": torch.get_rng_state().tolist(),
        "signals": [signal.getsignal(number) for number in STOP_SIGNALS],
        "streams": (sys.stdout, sys.stderr, sys.excepthook),
        "logging": (logging.root.level, list(logging.root.handlers)),
    }


def weights(folder: Path) -> dict[str, Any]:
    """A run's newest state without its configuration, which says where the images were from."""
    return {key: value for key, value in last_state(folder).items() if key not in ("config", "data")}


@pytest.fixture(scope="module")
def result(command: Path, tmp_path_factory: pytest.TempPathFactory) -> mixfast.Result:
    """A run by the call, in a thread, with the strangest settings that a caller may have."""
    out, kept, changed = tmp_path_factory.mktemp("call") / "run", list[mixfast.Result](), list[bool]()

    def work() -> None:
        torch.set_num_threads(2)
        with torch.device("meta"):
            before = caller()
            rendered.cache_clear()
            kept.append(fit(out, quiet=True))
            changed.append(caller() != before)

    torch.set_default_dtype(torch.float64)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        torch.set_default_dtype(torch.float32)
    assert changed == [False]
    return kept[0]


def test_the_bits_of_the_command_from_a_thread_with_other_defaults(command: Path, result: mixfast.Result) -> None:
    assert_same(last_state(result.folder), last_state(command))
    assert records(result.folder) == records(command)
    assert (result.folder / "command.txt").read_text().split()[1] == "mixfast.fit"
    assert "(mixfast.fit)" in (result.folder / "report.md").read_text()


def test_what_comes_back(result: mixfast.Result) -> None:
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["kind"] == "eval"][-1]
    assert result.scores == {"knn_z": last["knn_z"], "knn_h": last["knn_h"]}
    assert set(result.baselines) == {"raw pixels", "untrained"} and "knn_z" not in result.baselines["raw pixels"]
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert [row["loss"] for row in result.history] == [row["loss"] for row in lines if row["kind"] == "epoch"]
    assert "knn_h" not in result.history[0] and result.history[1]["knn_h"] >= 0  # eval.every is 2
    exported = load_backbone(result.folder / "export").state_dict()
    trained = torch.load(result.folder / "checkpoints" / "last.pt", weights_only=True)["method"]
    assert_same(dict(result.encoder.state_dict()), dict(exported))
    torch.testing.assert_close(exported["conv1.weight"], trained["encoder.backbone.conv1.weight"], rtol=0, atol=0)
    assert not result.encoder.training and exported["conv1.weight"].dtype == torch.float32


def test_again_in_one_process_with_callbacks_in_the_main_thread(
    command: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps, epochs, scored = list[mixfast.Moment](), list[mixfast.Moment](), list[str]()
    torch.set_num_threads(2)
    before = caller()
    done = fit(
        tmp_path / "run",
        quiet=True,
        on_step=lambda moment: steps.append(moment._replace(values=dict(moment.values))),
        on_epoch=epochs.append,
        on_evaluation=lambda moment: scored.append(f"{moment.epoch} {moment.values['name']}"),
    )
    assert caller() == before and capsys.readouterr() == ("", "")
    torch.set_num_threads(1)
    assert_same(last_state(done.folder), last_state(command))
    assert [moment.step for moment in steps] == list(range(1, 13)) and steps[0].steps == 12
    assert [moment.epoch for moment in epochs] == [1, 2, 3] and epochs[0].epochs == 3
    assert scored == ["0 raw pixels", "0 untrained", "2 moco", "2 moco", "3 moco", "3 moco"]
    logged = [line["loss"] for line in records(command) if line["kind"] == "train"]  # every step
    torch.testing.assert_close(torch.stack([moment.values["loss"] for moment in steps]), torch.tensor(logged))
    assert [moment.values["loss"] for moment in epochs] == [row["loss"] for row in done.history]
    for name, value in done.encoder.state_dict().items():
        trained = epochs[-1].encoder.backbone.state_dict()[name]
        assert torch.equal(value, trained), name


@pytest.mark.parametrize("form", ["Splits", "tensors", "data sets"])
def test_images_as_objects(form: str, images: Splits, command: Path, tmp_path: Path) -> None:
    """The command's images, passed: the same weights."""
    sets = [TensorDataset(part.images, part.labels) for part in (images.train, images.test)]
    passed = {
        "Splits": images,
        "tensors": (images.train.images, images.test.images),
        "data sets": tuple(sets),
    }[form]
    done = fit(tmp_path / "run", data=passed, data__size=16, quiet=True)
    saved = weights(command)
    assert_same({**weights(done.folder), "meter": 0}, {**saved, "meter": 0})
    if form == "tensors":  # no classes
        assert done.scores == {} and done.baselines == {} and len(done.history) == 3
        return
    assert records(done.folder) == records(command)
    scores = mixfast.knn(done, quiet=True, baselines=True)
    assert scores == {"moco": done.scores, **done.baselines}
    if form == "data sets":
        with pytest.raises(ConfigError, match=r"passed to mixfast\.fit.*mixfast\.knn\(\.\.\., trained_on="):
            mixfast.knn(done.folder, quiet=True)
        assert mixfast.knn(done.folder, quiet=True, trained_on=passed) == {"moco": done.scores}


def test_one_tensor_is_split_and_keeps_its_size(tmp_path: Path, rng: torch.Generator) -> None:
    noise = torch.randint(256, (40, 3, 20, 20), generator=rng, dtype=torch.uint8)
    done = fit(tmp_path / "run", data=noise, data__size=20, epochs=1, quiet=True)
    assert done.data.train.images.shape == (36, 3, 20, 20) and len(done.data.test) == 4
    kept = torch.cat([done.data.train.images, done.data.test.images])
    assert torch.equal(kept.flatten(1).sort(0).values, noise.flatten(1).sort(0).values)


def test_an_error_in_a_callback_is_the_callers_and_the_run_goes_on_from_there(
    images: Splits, command: Path, tmp_path: Path
) -> None:
    def divide(moment: mixfast.Moment) -> None:
        moment.step / (moment.step - 6)  # the second step of epoch 2

    with pytest.raises(ZeroDivisionError) as caught:
        fit(tmp_path / "run", data=images, quiet=True, on_step=divide)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "divide"
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 8) and "in divide" in (
        tmp_path / "run" / "log.txt"
    ).read_text()
    assert last_state(tmp_path / "run")["step"] == 6
    with pytest.raises(ConfigError, match=r"mixfast\.fit\(resume=\.\.\., data=\.\.\.\)"):
        mixfast.fit(resume=tmp_path / "run", quiet=True)
    done = mixfast.fit(resume=tmp_path / "run", data=images, quiet=True)
    assert_same(weights(done.folder), weights(command))
    assert records(done.folder) == records(command)


def test_an_interrupt_saves_the_state_and_raises(
    command: Path, tmp_path: Path, capsys: Any, request: pytest.FixtureRequest
) -> None:
    at_first = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, at_first))
    before = caller()
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", on_step=lambda moment: moment.step == 6 and signal.raise_signal(signal.SIGINT))
    assert caller() == before
    assert f"mixfast.fit(resume='{tmp_path / 'run'}') continues it" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "stopped"
    assert last_state(tmp_path / "run")["step"] == 6
    assert_same(last_state(mixfast.fit(resume=tmp_path / "run").folder), last_state(command))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__dept": 8}, r"unknown option --model\.dept; did you mean --model\.depth"),
        ({"model": {"depth": 8}}, r"model: an option of a section is a keyword of its own, model__depth="),
        ({"model__depth": 18.5}, r"--model\.depth.*expected a whole number"),
        ({"train__epochs": 2}, r"--train\.epochs is given more than once"),
        ({"optim__lr": float("nan")}, r"--optim\.lr must be at least 0; got nan"),
    ],
)
def test_wrong_options_are_named_and_nothing_is_made(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(tmp_path / "run", **changes)
    assert list(tmp_path.iterdir()) == []


def test_wrong_data_is_named_and_nothing_is_made(tmp_path: Path) -> None:
    floats = torch.rand(40, 3, 16, 16)
    with pytest.raises(DataError, match=r"data: item 0 of the training set: a Tensor of torch\.float32 \[3, 16, 16\]"):
        fit(tmp_path / "run", data=floats, quiet=True)
    with pytest.raises(DataError, match=r"data: it must be .* map-style .*; got int\."):
        fit(tmp_path / "run", data=7, quiet=True)
    with pytest.raises(ConfigError, match=r"data__size: the images of data have 4 pixels; got 16"):
        small = ImageSet(torch.zeros(40, 3, 4, 4, dtype=torch.uint8), torch.zeros(40, dtype=torch.int64), ("a",))
        fit(tmp_path / "run", data=Splits(small, small, (0.5,) * 3, (0.2,) * 3, "small"), quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_one_call_at_a_time(tmp_path: Path) -> None:
    def again(_: mixfast.Moment) -> None:
        fit(tmp_path / "inner")

    with pytest.raises(ConfigError, match=r"another call is training in this process"):
        fit(tmp_path / "run", on_evaluation=again, quiet=True)
    assert not (tmp_path / "inner").exists()


def test_evaluations_are_those_of_the_command(result: mixfast.Result, capsys: Any) -> None:
    pytest.importorskip("torchvision")
    before, folder, few = caller(), str(result.folder), ["--count", "12", "--validation", "10"]
    lines = lambda: [json.loads(line) for line in (result.folder / "evaluations.jsonl").read_text().splitlines()]  # noqa: E731
    accuracy = mixfast.linear(result, epochs=3, quiet=True)
    assert evaluate(["linear", folder, "--epochs", "3"]) == 0
    assert [line["scores"] for line in lines()] == [accuracy, accuracy]
    found = mixfast.localise(folder, count=12, validation=10, quiet=True)
    kept = json.loads(Path(found["files"]["table"]).read_text())
    assert {**kept, "files": found["files"]} == found and Path(found["files"]["picture"]).is_file()
    assert evaluate(["localise", folder, *few]) == 0
    assert json.loads(Path(found["files"]["table"]).read_text())["rows"] == found["rows"]
    boxes = {"count": 4, "images": 8, "steps": 2, "seeds": (0, 1), "supervised": False}
    detected = mixfast.detect(result, quiet=True, **boxes)
    assert [row["name"] for row in detected["rows"]] == ["moco", "untrained"]
    assert json.loads(Path(detected["files"]["table"]).read_text())["rows"] == detected["rows"]
    assert lines()[-1]["settings"]["steps"] == 2 and set(detected["rows"][0]["seeds"]) == {"0", "1"}
    assert caller() == before
    with pytest.raises(ConfigError, match=r"unknown option --kay"):
        mixfast.knn(result, kay=3)
    with pytest.raises(ConfigError, match=r"a recipe takes hours"):
        mixfast.detect(result, recipe="voc-c4-24k")
