"""Scores of a trained encoder: nearest neighbours, linear probes, attention maps that localise objects, diagnostics."""

from mixfast.scoring.annotations import load_annotated, read_coco, read_voc, split_off
from mixfast.scoring.baselines import calibrated
from mixfast.scoring.bootstrap import resamples
from mixfast.scoring.boxes import Objects, iou
from mixfast.scoring.canvas import compose
from mixfast.scoring.components import component_scores, retrieval
from mixfast.scoring.diagnostics import alignment, effective_rank, uniformity
from mixfast.scoring.dilate import dilated
from mixfast.scoring.features import Features, extract
from mixfast.scoring.knn import accuracy, knn_predict, knn_score, knn_scores
from mixfast.scoring.labelling import connected_components, label_components
from mixfast.scoring.linear import LinearRecipe, linear_score, linear_scores, sgd_score
from mixfast.scoring.localisation import average_precision, box_curves, energy, object_hits, pixel_counts, pointing
from mixfast.scoring.maps import Mapper, Network, enlarged, fit_mapper
from mixfast.scoring.protocol import (
    Outcome,
    centre_contestant,
    choose_and_score,
    edge_contestant,
    mapper_contestant,
    margin,
    summarise,
)

__all__ = [
    "Features",
    "LinearRecipe",
    "Mapper",
    "Network",
    "Objects",
    "Outcome",
    "accuracy",
    "alignment",
    "average_precision",
    "box_curves",
    "calibrated",
    "centre_contestant",
    "choose_and_score",
    "component_scores",
    "compose",
    "connected_components",
    "dilated",
    "edge_contestant",
    "effective_rank",
    "energy",
    "enlarged",
    "extract",
    "fit_mapper",
    "iou",
    "knn_predict",
    "knn_score",
    "knn_scores",
    "label_components",
    "linear_score",
    "linear_scores",
    "load_annotated",
    "mapper_contestant",
    "margin",
    "object_hits",
    "pixel_counts",
    "pointing",
    "read_coco",
    "read_voc",
    "resamples",
    "retrieval",
    "sgd_score",
    "split_off",
    "summarise",
    "uniformity",
]
