"""Define Figures 3, 5, 6 and 7: the fixed point iterations of a trained iMixer-S."""

from __future__ import annotations

from imixer.experiments.experiment import Experiment, FigureKind, Row
from imixer.experiments.paper import TRIALS
from imixer.experiments.scales import Scale

N_ITERS = (1, 2, 4)  # whose models Figures 3, 5 and 6 compare
_FEATURES_N, _FEATURES_DATA = 4, "imagenet"  # of Figure 7


def _models(scale: Scale) -> list[Row]:
    """Return the rows of Table 2 with h_r = 2."""
    return [Row(f"n={n}", {"n": str(n)}, scale.imixer(n_iter=n), scale.data) for n in N_ITERS]


def _features(scale: Scale) -> list[Row]:
    """Return a single row, on ImageNet where the scale has it and no other data are asked for."""
    data = _FEATURES_DATA if _FEATURES_DATA in scale.table4_data and not scale.data_given else scale.data
    settings = scale.imixer(data=data, n_iter=_FEATURES_N)
    return [Row(f"n={_FEATURES_N}", {"n": str(_FEATURES_N)}, settings, data, trials=TRIALS.get(data))]


def _convergence(name: str, figure: FigureKind, title: str) -> Experiment:
    return Experiment(name, f"Figure {name[3:]}: {title}, trained with n = 1, 2, 4", "", _models, figure)


FIGURES = (
    _convergence("fig3", "first block", "Norm_a and cos_a of the first iMLP"),
    _convergence("fig5", "norms", "Norm_a of every iMLP"),
    _convergence("fig6", "cosines", "cos_a of every iMLP"),
    Experiment(
        "fig7",
        "Figure 7: feature maps of each iteration in the last iMLP, trained with n = 4",
        "",
        _features,
        "features",
    ),
)
