"""Measure how well scores find anomalies among images and among pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]
PRO_LIMIT = 0.3  # false positive rate up to which the benchmarks integrate


@dataclass(frozen=True)
class DetectionQuality:
    """Hold how well one score finds anomalies. What cannot be measured is None.

    Attributes:
        image_auroc: Area under the ROC curve of images. Chance: 0.5.
        image_f1: Largest F1 of any threshold, on images.
        pixel_auroc: Area under the ROC curve of pixels.
        pixel_f1: Largest F1 of any threshold, on pixels.
        pro: Area under the curve of the per-region overlap against the false positive rate, up to 0.3 and divided by
            it. Chance: 0.15.
        by_kind: Area under the ROC curve of good images and those of one kind of defect.
    """

    image_auroc: float
    image_f1: float
    pixel_auroc: float | None
    pixel_f1: float | None
    pro: float | None
    by_kind: dict[str, float]


def auroc(scores: Floats, positive: Booleans) -> float:
    """Return the probability that a random positive scores higher than a random negative, ties counting half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, scores))


def best_f1(scores: Floats, positive: Booleans) -> float:
    """Return the largest harmonic mean of precision and recall over all thresholds."""
    return float(_f1_curve(scores, positive)[0].max())


def best_threshold(scores: Floats, positive: Booleans) -> float:
    """Return the threshold of the largest F1: what scores as much or more counts as an anomaly."""
    f1, thresholds = _f1_curve(scores, positive)
    return float(thresholds[f1.argmax()])


def _f1_curve(scores: Floats, positive: Booleans) -> tuple[Floats, Floats]:
    """Compute the F1 at each threshold."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, thresholds = precision_recall_curve(positive, scores)
    total = precision + recall
    return (2 * precision * recall / np.where(total > 0, total, 1))[:-1], thresholds


def per_region_overlap(maps: Floats, masks: Booleans, limit: float = PRO_LIMIT) -> float:
    """Return the area under the per-region overlap curve, up to a false positive rate.

    The overlap at a threshold is the share of a region that is found, mean over all regions, however large. A region is
    a connected part of a mask, neighbours across corners included. So the curve is a ROC curve whose positive pixels
    weigh 1 over the size of their region.

    Args:
        maps: Scores of pixels (M, H, W).
        masks: Pixels of defects (M, H, W).
        limit: The false positive rate.

    Source: Bergmann et al., Uninformed students, arXiv 1911.02357, section 4.1.
    """
    from scipy.ndimage import label
    from sklearn.metrics import auc, roc_curve

    weights = np.ones(maps.shape)
    for weight, mask in zip(weights, masks, strict=True):
        regions, _ = label(mask, np.ones((3, 3)))
        weight[mask] = 1 / np.bincount(regions.ravel())[regions[mask]]
    false, overlaps, _ = roc_curve(masks.ravel(), maps.ravel(), sample_weight=weights.ravel())
    inside = false <= limit
    x = np.append(false[inside], limit)
    y = np.append(overlaps[inside], np.interp(limit, false, overlaps))
    return float(auc(x, y) / limit)


def detection_quality(
    scores: Floats, kinds: tuple[str, ...], good: str, maps: Floats | None = None, masks: Booleans | None = None
) -> DetectionQuality:
    """Measure how well a score finds anomalies.

    Args:
        scores: Scores of images (M,).
        kinds: Kind of each image.
        good: The kind that is normal.
        maps: Scores of pixels of those images whose pixels are known, (m, H, W).
        masks: Pixels of defects of these images, (m, H, W).
    """
    positive = np.array([kind != good for kind in kinds])
    by_kind = {}
    for kind in sorted(set(kinds) - {good}):
        chosen = np.array([each in (good, kind) for each in kinds])
        by_kind[kind] = auroc(scores[chosen], positive[chosen])
    pixels = maps is not None and masks is not None and bool(masks.any()) and not bool(masks.all())
    if not pixels or maps is None or masks is None:
        return DetectionQuality(auroc(scores, positive), best_f1(scores, positive), None, None, None, by_kind)
    return DetectionQuality(
        auroc(scores, positive),
        best_f1(scores, positive),
        auroc(maps.ravel(), masks.ravel()),
        best_f1(maps.ravel(), masks.ravel()),
        per_region_overlap(maps, masks),
        by_kind,
    )
