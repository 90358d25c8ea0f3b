"""Define the ablations: one change of the iMixer at a time, against the paper's iMixer-S."""

from __future__ import annotations

from typing import Any

from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.paper import PAPER_TABLE_1, paper_accuracy
from imixer.experiments.scales import Scale

_Change = tuple[str, dict[str, Any]]  # in words, and as fields of `ModelConfig`


def _ablation(name: str, title: str, column: str, baseline: str, changes: dict[str, _Change]) -> Experiment:
    """Build an experiment with the paper's iMixer-S and a row for each change of it.

    Args:
        name: Name on the command line.
        title: What changes.
        column: Column of the table that names the change.
        baseline: What that column says of the paper's iMixer-S.
        changes: The changes, by name of the row.
    """

    def rows(scale: Scale) -> list[Row]:
        paper = paper_accuracy(PAPER_TABLE_1["imixer", "S"], scale.data, "imixer")
        default = Row("imixer", {column: baseline}, scale.imixer(), scale.data, paper=paper)
        changed = [
            Row(row, {column: words}, scale.imixer(**change), scale.data, default.name)
            for row, (words, change) in changes.items()
        ]
        return [default, *changed]

    return Experiment(name, f"Beyond the paper: {title}", f"the paper's iMixer-S ({column}: {baseline})", rows)


DEPTH = _ablation(
    "depth",
    "layers L of the Hopfield network behind the token mixing",
    "L",
    "3",
    {f"L={layers}": (f"{layers}", {"num_layers": layers}) for layers in (4, 5)},
)

ACTIVATIONS = _ablation(
    "activations",
    "activation of the token mixing's hidden neurons",
    "activation",
    "gelu",
    {act: (act, {"act_layer": [act, act]}) for act in ("relu", "silu", "tanh", "softplus")},
)

TIED = _ablation(
    "tied",
    "symmetric couplings, as the energy wants them",
    "couplings",
    "free",
    {"tied": ("symmetric", {"tied": True})},
)

SOLVER = _ablation(
    "solver",
    "the inverse solved to a tolerance, with its implicit gradient",
    "solver, gradient",
    "2 iterations, unrolled",
    {
        # what is not solved in max_steps is in a run's convergence.csv
        solver: (f"{solver}, implicit", {"solver": solver, "gradient": "implicit", "on_failure": "warn"})
        for solver in ("picard", "anderson")
    },
)

GUARANTEE = _ablation(
    "guarantee",
    "a ceiling of the spectral norms that guarantees a contraction",
    "ceiling c, activation",
    "0.9, gelu",
    {
        "gelu": ("auto (0.797), gelu", {"coeff": "auto"}),
        "gelu_1lip": ("auto (0.9), gelu / 1.129", {"coeff": "auto", "act_layer": ["gelu_1lip", "gelu_1lip"]}),
    },
)

LEGACY = _ablation(
    "legacy",
    "weights normalised once per forward, or per iteration as in the published code",
    "normalised",
    "per forward",
    {"legacy": ("per iteration", {"legacy": True})},
)
