"""A method outside the package: public names are enough, and it trains, resumes and is scored by the trainer."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from mixfast.methods import bases
from mixfast.train.__main__ import main
from tests.tiny_run import process_settings_kept, words

DENSECL = '''
"""DenseCL (Wang et al. 2021): MoCo, and a term between the cells of both views' last maps that match best."""

from dataclasses import dataclass

import torch
from torch import nn

from mixfast.losses import Term, infonce_sum, unit
from mixfast.methods import Method, Step
from mixfast.methods.bases import Queues, check_queue_size, encode_shuffled, follower, update_ema_
from mixfast.ranges import Count, Positive, Share


@dataclass(frozen=True)
class Config:
    temperature: Positive = 0.2
    queue_size: Count = 4096
    ema: Share = 0.99
    dense: float = 0.5  # share of the dense term


class DenseCL(Method):
    Config = Config
    summary = "MoCo, whole images and cells"

    def __init__(self, config, make_encoder, generators):
        super().__init__(config, make_encoder, generators)
        self.encoder = make_encoder()
        self.key_encoder = follower(self.encoder)
        self.head = nn.Conv2d(self.encoder.backbone.channels[-1], self.encoder.dim, 1).to(generators.device)
        self.key_head = follower(self.head)
        self.queues = Queues(("whole", "cells"), self.encoder.dim, config.queue_size, generators["queue"])

    def begin(self, progress):
        update_ema_(self.key_encoder, self.encoder, self.config.ema)
        update_ema_(self.key_head, self.head, self.config.ema)

    def views(self, images, augment, generators):
        x1, x2 = augment(images)
        return {"query": x1, "key": x2}

    def step(self, views, generators):
        q, cells = self.encoder(views["query"]), lambda maps: maps.flatten(2).transpose(1, 2)  # [B, S, C]
        dense_q = cells(self.head(q.map))
        with torch.no_grad():
            k = encode_shuffled(self.key_encoder, views["key"], generators["shuffle"])
            dense_k = cells(self.key_head(k.map))
            match = (cells(q.map) @ cells(k.map).transpose(1, 2)).argmax(dim=2)  # [B, S]
            positive = dense_k.gather(1, match[..., None].expand_as(dense_k)).flatten(0, 1)
        share = q.z.new_tensor(self.config.dense)
        terms = [
            Term("whole", unit(q.z), unit(k.z), "whole", 1 - share),  # B rows
            Term("cells", unit(dense_q.flatten(0, 1)), unit(positive), "cells", share),  # B S rows
        ]
        loss, parts = infonce_sum(terms, self.queues.keys(), self.config.temperature)
        return Step(loss, parts, {"whole": unit(k.z), "cells": unit(dense_k.mean(dim=1))}, terms)

    def update(self, carry):
        self.queues.push_(carry)

    def negatives(self):
        return self.queues.keys()

    @classmethod
    def check(cls, config, batch):
        check_queue_size(config, batch)

    @classmethod
    def candidates(cls, config, batch):
        return 1 + config.queue_size


METHOD = DenseCL
'''


@pytest.fixture
def densecl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The dotted name of the method."""
    for name in ("outside_lab", "outside_lab.densecl"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "outside_lab").mkdir()
    (tmp_path / "outside_lab" / "densecl.py").write_text(DENSECL)
    monkeypatch.syspath_prepend(tmp_path)
    return "outside_lab.densecl"


def test_it_imports_public_names_alone() -> None:
    """Every module has an __all__ that lists the name, or is one of mixfast's own rooms without a private part."""
    imported = re.findall(r"from (mixfast\S*) import (.*)", DENSECL)
    rooms = {"mixfast.losses", "mixfast.methods", "mixfast.methods.bases", "mixfast.ranges"}
    assert {module for module, _ in imported} == rooms
    for module, listed in imported:
        public = getattr(sys.modules[module], "__all__", None) or dir(sys.modules[module])
        assert {name.strip() for name in listed.split(",")} <= {name for name in public if not name.startswith("_")}


def test_every_listed_part_exists_and_says_what_it_is() -> None:
    for name in bases.__all__:
        assert name.isupper() or getattr(bases, name).__doc__, name


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_dense_and_global_terms_train_together(densecl: str, accumulate: int, tmp_path: Path) -> None:
    out = tmp_path / "run"
    changes = {"train__accumulate": accumulate, "data__kind": "scenes", "eval__diagnostics": ()}
    with process_settings_kept():
        assert main(words(out, densecl, **changes)) == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train = [record for record in records if record["kind"] == "train"]
    assert len(train) == 12
    for record in train:
        assert record["loss"] == pytest.approx((record["whole"] + record["cells"]) / 2, rel=1e-5)
    state = torch.load(out / "checkpoints" / "last.pt", weights_only=True)["method"]
    assert state["queues.pointer"].item() == 12 * 16 % 64
    for name in ("whole", "cells"):
        torch.testing.assert_close(state[f"queues.{name}"].norm(dim=1), torch.ones(64))
    found = [record for record in records if "top1_cells" in record]
    assert found and all(0 <= record["top1_cells"] <= 1 for record in found)
