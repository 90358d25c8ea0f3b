"""Define Table 4: iMixer against MLP-Mixer on other data sets."""

from __future__ import annotations

from imixer.experiments.experiment import Experiment, Row
from imixer.experiments.paper import PAPER_TABLE_4, TRIALS
from imixer.experiments.scales import Scale


def _rows(scale: Scale) -> list[Row]:
    rows = []
    for data in dict.fromkeys([*scale.table4_data, *(data for data, _ in PAPER_TABLE_4)]):
        imixer = Row(
            f"imixer-{data}",
            {"data": data, "model": "iMixer"},
            scale.imixer(data=data) if data in scale.table4_data else {},
            data,
            paper=PAPER_TABLE_4.get((data, "imixer")),
            trials=TRIALS.get(data),
        )
        mixer = Row(
            f"mixer-{data}",
            {"data": data, "model": "Mixer"},
            scale.mixer(data=data) if data in scale.table4_data else {},
            data,
            imixer.name,
            PAPER_TABLE_4.get((data, "mixer")),
            TRIALS.get(data),
        )
        rows += [imixer, mixer]
    return rows


TABLE_4 = Experiment("table4", "Table 4: other data sets", "the iMixer on the same data", _rows)
