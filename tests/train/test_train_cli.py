"""The training command as a user meets it: files, printed lines, exit codes and their messages."""

import csv
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mixfast import methods
from mixfast.methods.bases.method import Step
from mixfast.run import engine
from mixfast.run.folder import RunFolder
from mixfast.train.__main__ import main
from tests.tiny_run import assert_same, last_state, process_settings_kept, records, train_in_child, words

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("command_settings")]

MoCo = methods.load("moco")
FILES = ("previous", "last")  # of two checkpoints: before training, and after its only epoch


class Failing(MoCo):  # type: ignore[misc, valid-type]
    """MoCo that meets one kind of trouble in its third step."""

    trouble = ""
    steps = 0

    def step(self, views: dict[str, Tensor], generators: Any) -> Step:
        self.steps += 1
        out = super().step(views, generators)
        if self.steps < 3 or not self.trouble:
            return out
        if self.trouble == "bug":
            raise RuntimeError("shapes do not match")
        if self.trouble == "gpu memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.trouble == "host memory":
            torch.empty(2**50)
        return Step(out.loss * float("nan"), out.parts, out.carry)


METHOD = Failing


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of approach1 with moco beside it, through the command line, the only one here that draws its pictures."""
    out = tmp_path_factory.mktemp("runs") / "run"
    with process_settings_kept(pictures=True):
        assert main(words(out, compare=["moco"], eval__diagnostics=())) == 0
    return out


def test_run_folder_is_complete(finished: Path) -> None:
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert {
        "config.json", "command.txt", "env.json", "status.json", "metrics.jsonl", "metrics.csv", "log.txt", "report.md",
        "checkpoints/last.pt", "checkpoints/previous.pt", "export/backbone.safetensors", "export/export.json",
        "plots/loss.png", "plots/knn.png", "plots/views.png", "plots/time.png",
        "compare/moco/metrics.jsonl", "compare/moco/checkpoints/last.pt", "compare/moco/status.json",
    } <= names  # fmt: skip
    assert not [name for name in names if name.endswith(".tmp")]
    status = json.loads((finished / "status.json").read_text())
    assert {"state": "finished", "exit_code": 0, "step": 12, "epoch": 3}.items() <= status.items()
    env = json.loads((finished / "env.json").read_text())
    assert env["threads"] == 1 and env["torch"] == torch.__version__ and "multi_queue_infonce" in env["backends"]
    config = json.loads((finished / "config.json").read_text())
    assert config["values"]["train"]["epochs"] == 3 and config["values"]["model"]["width"] == 8
    assert config["origins"]["train.epochs"] == "command line" and config["origins"]["augment.hue"] == "preset demo"


def test_metrics_hold_baselines_terms_and_scores(finished: Path) -> None:
    lines = records(finished)
    baselines = {line["name"]: line for line in lines if line["kind"] == "baseline"}
    assert set(baselines) == {"raw pixels", "untrained"} and "knn_z" in baselines["untrained"]
    scored = [line for line in lines if line["kind"] == "eval"]
    assert [line["epoch"] for line in scored] == [2, 3]  # every second epoch, and the last
    assert all(0 <= line[key] <= 100 for line in scored for key in ("knn_z", "knn_h"))
    train = [line for line in lines if line["kind"] in ("train", "epoch")]
    assert [line["step"] for line in train if line["kind"] == "train"] == list(range(1, 13))
    assert [line["step"] for line in train if line["kind"] == "epoch"] == [4, 8, 12]
    assert {"loss", "original", "mixed", "local_global", "local", "global", "lam"} <= set(train[0])
    with open(finished / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows if row["loss"]] == [line["loss"] for line in train]


def test_companion_has_the_same_encoder_budget_and_no_baselines(finished: Path) -> None:
    # Approach 1: 2 passes with and 2 without gradient, 8 units; MoCo: 1 and 1, 4 units; so twice the epochs.
    lines = records(finished / "compare" / "moco")
    assert max(line["epoch"] for line in lines) == 6
    assert not [line for line in lines if line["kind"] == "baseline"]
    other = RunFolder.open(finished / "compare" / "moco").read_config()[0]
    assert other.method_name == "moco" and other.method.temperature == 0.2 and other.eval.every == 4


def test_report_shows_every_row_and_only_files_that_exist(finished: Path) -> None:
    text = (finished / "report.md").read_text()
    last = [line for line in records(finished) if line["kind"] == "eval"][-1]
    assert f"| approach1 | {last['knn_z']:.1f} | {last['knn_h']:.1f} |" in text
    for name in ("raw pixels", "untrained", "moco at equal encoder cost"):
        assert name in text
    assert "- `train.epochs` = `3` (command line)\n" in text and "- `augment.hue` = `0.5` (preset demo)\n" in text
    log = (finished / "log.txt").read_text()
    assert "images/s" in log and "|---" not in log and "| approach1" not in log
    pictures = [part.split(")")[0] for part in text.split("](")[1:]]
    assert sorted(pictures) == [f"plots/{name}.png" for name in ("diagnostics", "knn", "loss", "time", "views")]
    assert all((finished / picture).stat().st_size > 1000 for picture in pictures)


def test_warnings_are_printed_before_training_and_repeated_in_the_report(finished: Path) -> None:
    printed, report = ((finished / name).read_text() for name in ("log.txt", "report.md"))
    run, other = (
        f"keeps {100 * 0.99**steps:.0f} % of its first weights to the end: --method.ema 0.99 averages over 100 steps, "
        f"and the run has {steps}."
        for steps in (12, 24)
    )
    assert printed.index(run) < printed.index("raw pixels") < printed.index(other)
    assert run in report and f"- moco: the network that follows by moving average {other}" in report
    assert "queue: its 64 keys are random vectors at first" in printed and "until step 4 (epoch 1.0)" in printed


@pytest.mark.parametrize("preset", ["moco", "approach2"])
def test_one_epoch_of_a_preset_moves_the_weights_and_prints_its_rate(preset: str, tmp_path: Path, capsys: Any) -> None:
    sizes = words(tmp_path / "run", preset, train__epochs=1, eval__every=0, data__kind="scenes")
    place = sizes.index("--optim.cosine_origin")
    sizes = [word for word in (*sizes[:place], *sizes[place + 2 :]) if word != "demo"]
    assert main([*sizes, "--eval.no-baselines"]) == 0
    row, _ = (line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(f"{preset} "))
    assert row[1:3] == ["1", "0.06"]
    before, after = (torch.load(tmp_path / "run" / "checkpoints" / f"{name}.pt")["method"] for name in FILES)
    moved = [key for key, value in after.items() if key.startswith("encoder") and "weight" in key]
    assert moved and not [key for key in moved if torch.equal(before[key], after[key])]


def test_existing_folder_is_refused_then_overwritten(finished: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    small = [*words(out, "moco", train__epochs=1, data__scenes=16, eval__every=0), "--eval.no-baselines"]
    assert main(small) == 2
    assert f"--out {out} exists and is not empty" in capsys.readouterr().err
    assert json.loads((out / "status.json").read_text())["state"] == "finished"  # untouched
    assert main([*small, "--overwrite"]) == 0
    assert f"report    {out / 'report.md'}" in capsys.readouterr().out
    assert not (out / "compare").exists()
    assert [record["kind"] for record in records(out)] == ["train", "eval", "epoch"]


def test_finished_run_can_be_continued_and_changes_nothing(finished: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = records(out)
    assert main(["--resume", str(out), "--train.threads", "1"]) == 0
    assert "continuing approach1 after step 12 of 12" in capsys.readouterr().out
    assert records(out) == before
    assert len((out / "command.txt").read_text().splitlines()) == 2


def test_options_that_move_no_weight_may_change_on_resume(tmp_path: Path) -> None:
    """Logging, evaluation, checkpoints and paths: what is trained ends in the same bits."""
    whole, broken = (words(tmp_path / name, "moco", eval__diagnostics=()) for name in "ab")
    assert train_in_child(whole, tmp_path / "log") == 0
    assert train_in_child(broken, tmp_path / "log", send=[signal.SIGTERM], at_step=5) == 128 + signal.SIGTERM
    changes = "--train.log-every 3 --eval.every 1 --eval.k 3 --eval.bank 40 --eval.temperature 0.5 --eval.batch-size 7"
    more = "--eval.no-baselines --eval.no-diagnostics --train.checkpoint-every 0 --train.checkpoint-seconds 0.001"
    resume = ["--resume", str(tmp_path / "b"), *changes.split(), *more.split()]
    assert train_in_child(resume, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    ours, theirs = (last_state(tmp_path / name) for name in "ba")
    for state in (ours, theirs):
        del state["config"], state["contents"]
    assert_same(ours, theirs)
    scored = [record["epoch"] for record in records(tmp_path / "b") if record["kind"] == "eval"]
    assert scored == [2, 3]  # the first epoch had ended


def test_a_constant_rate_may_be_kept_for_longer(tmp_path: Path, capsys: Any) -> None:
    """A run that ended after 1 epoch and is continued to 3 ends in the bits of one that began with 3."""
    quick = {"optim__schedule": "constant", "eval__every": 0, "data__scenes": 32}
    short, whole = (
        [*words(tmp_path / name, "moco", train__epochs=epochs, **quick), "--eval.no-baselines"]
        for name, epochs in (("a", 1), ("b", 3))
    )
    assert main(whole) == 0 and main(short) == 0
    assert main(["--resume", str(tmp_path / "a"), "--train.epochs", "3"]) == 0
    ours, theirs = (last_state(tmp_path / name) for name in "ab")
    assert ours["step"] == 6 and ours["config"] == theirs["config"]
    for state in (ours, theirs):
        del state["contents"]
    assert_same(ours, theirs)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["values"]["train"]["epochs"] == 3 and config["origins"]["train.epochs"] == "command line"
    assert {record["lr"] for record in records(tmp_path / "a") if "lr" in record} == {0.06}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optim.lr", "0.5"], "optim.lr: saved 0.06, wanted 0.5"),
        (["--model.dim", "9", "--seed", "4"], "model.dim: saved 8, wanted 9\n  seed: saved 0, wanted 4"),
        (
            ["--train.epochs", "9"],
            "epoch 1 had the rate 0.045 of 3 epochs, and in 9 would have had 0.05819. Start a new",
        ),
        (["--train.epochs", "2"], "--train.epochs 2 is less than the 3 epochs that the run has begun already"),
    ],
)
def test_continuing_with_other_options_lists_them(
    options: list[str], message: str, finished: Path, capsys: Any
) -> None:
    assert main(["--resume", str(finished), *options]) == 4
    assert message in capsys.readouterr().err


def test_broken_checkpoints_exit_4(finished: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    last = out / "checkpoints" / "last.pt"
    last.write_bytes(last.read_bytes()[:3000])
    assert main(["--resume", str(last)]) == 4
    previous = out / "checkpoints" / "previous.pt"
    assert f"--resume {previous}" in capsys.readouterr().err
    assert main(["--resume", str(out)]) == 0
    assert f"warning: {previous} is taken in its place, at step 8" in capsys.readouterr().out
    assert records(out) == records(finished)
    shutil.rmtree(out / "checkpoints")
    assert main(["--resume", str(out)]) == 4
    assert "no checkpoint in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trouble", "code", "parts"),
    [
        ("nan", 5, ["step 2 (epoch 0), precision fp32: loss = nan", "nonfinite.pt", "mixfast.evaluate replay"]),
        (
            "gpu memory",
            6,
            ["out of memory after part 'augment'", "weights", "activations of 16 images", "accumulate 2"],
        ),
        ("host memory", 6, ["out of memory after part 'augment'", "largest batch that fits at once: ", "images"]),
        ("bug", 8, ["error in your code: RuntimeError: shapes do not match", "test_train_cli.py line", "in step"]),
    ],
)
def test_trouble_while_training(
    trouble: str, code: int, parts: list[str], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.train import test_train_cli  # the module that --method imports, which need not be this object

    monkeypatch.setattr(test_train_cli.Failing, "trouble", trouble)
    out = tmp_path / "run"
    arguments = [*words(out, "tests.train.test_train_cli"), "--eval.no-baselines"]
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert all(part in error for part in parts), error
    assert f"--resume {out}" in error  # the checkpoint of step 0 is there
    assert ("Traceback" in error) == (trouble == "bug") and "Traceback" in (out / "log.txt").read_text()
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", code)
    assert main([*arguments, "--overwrite", "--traceback"]) == code
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--train.device tpu", 2, "must be auto, cpu, cuda or cuda:N"),
        ("--train.device cuda:77", 7, "sees"),
        ("--data.kind folder", 2, "needs --data.path"),
        ("--data.kind folder --data.path no_such_folder", 3, "no_such_folder"),
        ("--train.epoch 1", 2, "did you mean --train.epochs"),
        ("--data.scenes 2000000000", 6, "2,000,002,000 images of 32 px (--data.scenes, --data.size) 5,7"),
        (
            "--method.queue_size 2147483584 --model.dim 4096",
            6,
            "queue of 2147483584 keys of 4096 (--method.queue_size, --model.dim) 16,384.0",
        ),
        ("--model.width 65536 --model.depth 50", 6, "a ResNet-50 of width 65536 in training"),
        (
            "--data.scenes 100 --data.test_scenes 20 --train.batch_size 128",
            2,
            "Try --train.batch_size 64 --optim.lr 0.03: 0.06 in prop",
        ),
    ],
)
def test_errors_before_training(options: str, code: int, message: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["--out", str(tmp_path / "run"), *options.split()]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error
    assert code != 6 or not (tmp_path / "run").exists()


def test_folder_without_classes_trains_without_knn(tmp_path: Path, capsys: Any, rng: torch.Generator) -> None:
    (tmp_path / "images").mkdir()
    for index in range(40):
        pixels = torch.randint(256, (16, 16, 3), dtype=torch.uint8, generator=rng).numpy()
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    data = {"data__kind": "folder", "data__path": tmp_path / "images", "data__cache_dir": tmp_path / "cache"}
    assert main(words(tmp_path / "run", "moco", train__epochs=1, eval__diagnostics=(), **data, data__workers=0)) == 0
    printed = capsys.readouterr().out
    assert "kNN is off: not every image has a class." in printed
    assert "preset demo: moco on folder, 16 px, ResNet-8 of width 8, 1 epoch " in printed
    assert "warning: network and length of preset demo are made for its scenes; to train on folder," in printed
    assert {line["kind"] for line in records(tmp_path / "run")} == {"train", "diagnostics", "epoch"}
    assert "Without labels there is no score." in (tmp_path / "run" / "report.md").read_text()


def test_help_needs_no_folder(capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for flag in ("--help", "-h", "--help-all"):
        assert main([flag]) == 0
        assert "usage" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_interrupt_before_training_exits_130(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mixfast.train.launch.load", interrupt)
    assert main(words(tmp_path / "run")) == 130
    assert "stopped before training began" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_default_folder_is_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "train_epoch", lambda run: None)
    assert main([*words(tmp_path, "moco", eval__every=0)[2:], "--eval.no-baselines"]) == 0
    assert (tmp_path / "runs" / "demo-0001" / "report.md").exists()
    assert "report    runs/demo-0001/report.md" in capsys.readouterr().out
