"""The paper's numbers, against a transcript of its tables."""

import re

import pytest

from imixer.experiments.paper import PAPER_TABLE_1, PAPER_TABLE_2, PAPER_TABLE_3, PAPER_TABLE_4, PaperAccuracy

NUMBER = re.compile(r"([\d.]+)(?:\+-([\d.]+))?")

TRANSCRIPT1 = {
    "mixer": "88.08+-0.51 89.03+-0.24 86.67+-0.30",
    "imixer": "88.56+-0.30 89.07+-0.33 87.48+-0.40",
}
TRANSCRIPT2 = {
    0.25: "88.26+-0.28 88.22+-0.33 88.29+-0.37",
    0.5: "88.32+-0.39 88.21+-0.45 88.22+-0.43",
    1.0: "88.36+-0.31 88.32+-0.32 88.32+-0.32",
    2.0: "88.54+-0.34 88.56+-0.30 88.46+-0.26",
}
TRANSCRIPT3 = {
    "spectral": "88.54+-0.34 88.56+-0.30 88.46+-0.26",
    "none": "88.73+-0.39 88.32+-0.31 88.07+-0.28",
    "batch": "87.60+-0.34 81.62+-1.98 81.83+-2.00",
}
TRANSCRIPT4 = {
    "cifar100": "68.13+-0.46 68.26+-0.30",
    "stanford_cars": "8.09+-0.45 7.96+-0.17",
    "food101": "76.11+-0.32 76.08+-0.20",
    "imagenet": "73.91 74.10",
}


@pytest.mark.parametrize(
    ("table", "transcript", "columns"),
    [
        (PAPER_TABLE_1, TRANSCRIPT1, ("S", "B", "L")),
        (PAPER_TABLE_2, TRANSCRIPT2, (1, 2, 4)),
        (PAPER_TABLE_3, TRANSCRIPT3, (1, 2, 4)),
        (PAPER_TABLE_4, TRANSCRIPT4, ("mixer", "imixer")),
    ],
)
def test_the_tables_are_the_papers(table, transcript, columns):
    expected = {}
    for row, text in transcript.items():
        for column, (mean, std) in zip(columns, NUMBER.findall(text), strict=True):
            expected[row, column] = PaperAccuracy(float(mean), float(std) if std else None)
    assert table == expected


def test_the_tables_agree_where_they_report_the_same_model():
    for n in (1, 2, 4):
        assert PAPER_TABLE_2[2.0, n] == PAPER_TABLE_3["spectral", n]
    assert PAPER_TABLE_1["imixer", "S"] == PAPER_TABLE_2[2.0, 2]
