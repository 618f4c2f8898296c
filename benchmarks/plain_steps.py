"""Optimiser steps in straightforward PyTorch with contiguous float32 maps, and lightly's step of MoCo.

They follow the style of published code: each InfoNCE term computes its own logits, region vectors come from the
upsampled map, Approach 2 encodes the reversed mixture in a separate pass, weights are averaged tensor by tensor. Views
and mixtures are made before the step. The networks are copies of ours with MoCo's form of split batch norm, so that the
losses are equal and only the computation differs.
"""

import copy
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixfast.models import Encoder
from mixfast.models.split_bn import SplitBatchNorm2d
from mixfast.run.state import Run

Views = dict[str, Tensor]


class GroupedNorm(nn.BatchNorm2d):
    """Split batch norm as a view: sample n goes to the channels of group n mod S, which needs contiguous maps."""

    def __init__(self, norm: SplitBatchNorm2d):
        super().__init__(norm.num_features)
        self.load_state_dict(norm.state_dict())
        self.num_splits = norm.num_splits

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        grouped = x.view(batch // self.num_splits, self.num_splits * channels, height, width)
        repeated = [values.repeat(self.num_splits) for values in (self.running_mean, self.running_var)]
        affine = [values.repeat(self.num_splits) for values in (self.weight, self.bias)]
        result = F.batch_norm(grouped, *repeated, *affine, True, self.momentum, self.eps)
        self.running_mean.data.copy_(repeated[0].view(self.num_splits, channels).mean(0))
        self.running_var.data.copy_(repeated[1].view(self.num_splits, channels).mean(0))
        return result.view(batch, channels, height, width)


def plain(module: nn.Module) -> nn.Module:
    """A contiguous copy without compiled code and fused batch norms, in training mode."""
    network = copy.deepcopy(module).to(memory_format=torch.contiguous_format).train()
    for part in list(network.modules()):
        if isinstance(part, Encoder):
            part._compiled = None
        for name, child in part.named_children():
            if isinstance(child, SplitBatchNorm2d):
                setattr(part, name, GroupedNorm(child))
    return network


def unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=1)


class PlainStep:
    """A step of moco, moco_unmix, approach1, approach2, simclr or byol, on views that are made once."""

    def __init__(self, run: Run, images: Tensor):
        self.run, self.name = run, run.config.method_name
        views = run.views(images)
        self.views = {name: view.contiguous() for name, view in views.items()}
        self.method: Any = plain(run.method)
        self.query: Any = self.method.encoder
        key_encoders = [part for part in self.method.modules() if isinstance(part, Encoder) and part is not self.query]
        self.key: Any = key_encoders[0] if key_encoders else None
        trained = [weight for weight in self.method.parameters() if weight.requires_grad]
        rate, momentum, decay = (getattr(run.config.optim, name) for name in ("lr", "momentum", "weight_decay"))
        self.optimizer = torch.optim.SGD(trained, rate, momentum, weight_decay=decay)
        self.queues = {name: keys.clone().T for name, keys in self.method.negatives().items()}
        self.pointer = 0

    def __call__(self) -> Tensor:
        self.follow()
        with self.run.autocast():
            loss, keys = self.loss(self.views)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.enqueue(keys)
        return loss.detach()

    def loss(self, views: Views) -> tuple[Tensor, Views]:
        """The loss, and the keys to enqueue."""
        return getattr(self, self.name)(views)

    @torch.no_grad()
    def follow(self) -> None:
        pairs = [(self.query, self.key)] if self.key else []
        if hasattr(self.method, "key_region_head"):
            pairs.append((self.method.region_head, self.method.key_region_head))
        for source, target in pairs:
            for weight, follower in zip(source.parameters(), target.parameters(), strict=True):
                follower.data = follower.data * self.run.config.method.ema + weight.data * (
                    1 - self.run.config.method.ema
                )

    @torch.no_grad()
    def enqueue(self, keys: Views) -> None:
        for name, rows in keys.items():
            queue = self.queues[name]
            queue[:, self.pointer : self.pointer + len(rows)] = rows.T
        if keys:
            self.pointer = (self.pointer + len(rows)) % queue.shape[1]

    def encode_key(self, images: Tensor) -> Any:
        """In shuffled order, without gradient."""
        with torch.no_grad():
            order = torch.randperm(len(images), device=images.device)
            encoding, inverse = self.key(images[order]), order.argsort()
            return type(encoding)(*(part[inverse] for part in encoding))

    def infonce(self, query: Tensor, key: Tensor, queue: str = "whole") -> Tensor:
        positive = torch.einsum("nc,nc->n", query, key)[:, None]
        negatives = torch.einsum("nc,ck->nk", query, self.queues[queue].clone().detach())
        logits = torch.cat([positive, negatives], dim=1) / self.run.config.method.temperature
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))

    def regions(self, features: Tensor, boxes: Tensor, size: int, head: nn.Linear) -> tuple[Tensor, Tensor]:
        """(inside, outside) of the box, from the projected and upsampled map."""
        projected = F.conv2d(features, head.weight[:, :, None, None], head.bias)
        large = F.interpolate(projected, size=(size, size), mode="bilinear", align_corners=False)
        pixels = torch.arange(size, device=boxes.device)
        x0, y0, x1, y1 = (side[:, None] for side in boxes.unbind(1))
        rows, columns = ((pixels >= low) & (pixels < high) for low, high in ((y0, y1), (x0, x1)))
        mask = (rows[:, :, None] & columns[:, None, :])[:, None].to(large.dtype)
        parts = [(large * weights).sum((2, 3)) / weights.sum((2, 3)) for weights in (mask, 1 - mask)]
        return unit(parts[0]), unit(parts[1])

    def moco(self, views: Views) -> tuple[Tensor, Views]:
        query, key = unit(self.query(views["query"]).z), unit(self.encode_key(views["key"]).z)
        return self.infonce(query, key), {"whole": key}

    def moco_unmix(self, views: Views) -> tuple[Tensor, Views]:
        lam = views["lam_query_mixed"].mean()
        query, mixed = (unit(self.query(views[name]).z) for name in ("query", "query_mixed"))
        key = unit(self.encode_key(views["key"]).z)
        loss = self.infonce(query, key) + lam * self.infonce(mixed, key) + (1 - lam) * self.infonce(mixed.flip(0), key)
        return loss, {"whole": key}

    def region_vectors(self, views: Views) -> tuple[Tensor, ...]:
        """q, qM, G and L of the query, k, G and L of the key."""
        clean, mixed = self.query(views["query"]), self.query(views["query_mixed"])
        key, key_mixed = self.encode_key(views["key"]), self.encode_key(views["key_mixed"])
        size = views["query"].shape[-1]
        inside, outside = self.regions(mixed.map, views["boxes_query_mixed"], size, self.method.region_head)
        with torch.no_grad():
            keys = self.regions(key_mixed.map, views["boxes_key_mixed"], size, self.method.key_region_head)
        return unit(clean.z), unit(mixed.z), outside, inside, unit(key.z), keys[1], keys[0]

    def approach1(self, views: Views) -> tuple[Tensor, Views]:
        lam = views["lam_query_mixed"].mean()
        query, mixed, outside, inside, key, key_outside, key_inside = self.region_vectors(views)
        loss = self.infonce(query, key) + lam * self.infonce(mixed, key)
        loss = loss + (1 - lam) * self.infonce(inside, key_outside, "global")
        loss = loss + (1 - lam) * self.infonce(inside, key_inside, "local")
        loss = loss + (1 - lam) * self.infonce(outside, key_outside, "global")
        return loss, {"whole": key, "global": key_outside, "local": key_inside}

    def approach2(self, views: Views) -> tuple[Tensor, Views]:
        lam = views["lam_query_mixed"].mean()
        query, mixed, outside, inside, key, key_outside, key_inside = self.region_vectors(views)
        reverse = unit(self.query(views["query_mixed"].flip(0)).z)
        loss = self.infonce(query, key) + lam * self.infonce(mixed, key)
        loss = (
            loss + lam * self.infonce(outside, key_outside, "global") + lam * self.infonce(inside, key_inside, "local")
        )
        loss = loss + (1 - lam) * self.infonce(reverse, key)
        loss = loss + (1 - lam) * self.infonce(outside.flip(0), key_outside.flip(0), "global")
        loss = loss + (1 - lam) * self.infonce(inside.flip(0), key_inside.flip(0), "local")
        return loss, {"whole": key, "global": key_outside, "local": key_inside}

    def simclr(self, views: Views) -> tuple[Tensor, Views]:
        rows = torch.cat([unit(self.query(views[name]).z) for name in ("first", "second")])
        itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        logits = (rows @ rows.T / self.run.config.method.temperature).masked_fill(itself, -torch.inf)
        targets = torch.arange(len(rows), device=rows.device).roll(len(rows) // 2)
        return F.cross_entropy(logits, targets), {}

    def byol(self, views: Views) -> tuple[Tensor, Views]:
        predictions = [self.method.predictor(self.query(views[name]).z) for name in ("first", "second")]
        with torch.no_grad():
            targets = [self.key(views[name]).z for name in ("second", "first")]
        cosines = [F.cosine_similarity(*pair, dim=1).mean() for pair in zip(predictions, targets, strict=True)]
        return -(cosines[0] + cosines[1]) / 2, {}


def lightly_moco(run: Run, images: Tensor) -> Callable[[], Tensor]:
    """MoCo by lightly's loss, memory bank, shuffling and moving average, on the same copies of the networks."""
    loss, utils = importlib.import_module("lightly.loss"), importlib.import_module("lightly.models.utils")
    step = PlainStep(run, images)
    (keys,) = step.queues.values()  # [D, K]
    criterion: Any = loss.NTXentLoss(run.config.method.temperature, memory_bank_size=tuple(keys.T.shape))
    criterion.to(run.device).memory_bank(keys.T[: len(images)], update=True)  # makes the bank
    bank = criterion.memory_bank.bank
    bank.copy_(keys if bank.shape == keys.shape else keys.T)  # the layout differs between versions
    criterion.memory_bank.bank_ptr.zero_()

    def train() -> Tensor:
        utils.update_momentum(step.query, step.key, m=run.config.method.ema)
        with run.autocast():
            query = step.query(step.views["query"]).z
            with torch.no_grad():
                shuffled, order = utils.batch_shuffle(step.views["key"])
                key = utils.batch_unshuffle(step.key(shuffled).z, order)
            value: Tensor = criterion(query, key)
        value.backward()
        step.optimizer.step()
        step.optimizer.zero_grad()
        return value.detach()

    return train
