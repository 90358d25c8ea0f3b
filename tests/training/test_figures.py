"""The figures of a run show the numbers and images that they are given, each in its place."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imixer.data.image_data import IGNORED
from imixer.training import figures, mask_figures

NAMES = ("ground", "road", "sky")


@pytest.fixture
def axes_of(monkeypatch):
    """Give the axes of the figure that something draws, which is not saved."""

    def draw(function, *args, **options):
        saved = []
        for module in (figures, mask_figures):
            monkeypatch.setattr(module, "save_figure", lambda figure, path, dpi: saved.append(figure))
        function(*args, Path("figure.png"), **options)
        (figure,) = saved
        figure.draw_without_rendering()  # which sets the texts of ticks
        return figure.axes

    return draw


def curves(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


ROWS = [
    {"epoch": 1, "train_loss": 1.5, "val_loss": 1.25, "val_acc": 0.75, "lr": 0.5},
    {"epoch": 2, "train_loss": 0.5, "val_loss": 2.25, "val_acc": 0.25, "lr": 0.125},
]


def test_learning_curves_are_the_metrics_of_each_epoch(axes_of):
    rows = [row | {"val_acc_top5": top5} for row, top5 in zip(ROWS, (0.9, 0.8), strict=True)]
    losses, accuracies, rates = axes_of(figures.draw_learning_curves, rows)
    assert curves(losses) == {"training": ([1, 2], [1.5, 0.5]), "validation": ([1, 2], [1.25, 2.25])}
    assert curves(accuracies) == {"top-1": ([1, 2], [0.75, 0.25]), "top-5": ([1, 2], [0.9, 0.8])}
    assert list(curves(rates).values()) == [([1, 2], [0.5, 0.125])]
    assert accuracies.get_title() == "Accuracy, 25.00% at the end\nbest 75.00% after epoch 1"


def test_learning_curves_of_a_segmentation_are_its_mean_iou_and_the_accuracy_of_pixels(axes_of):
    rows = [row | {"val_miou": miou} for row, miou in zip(ROWS, (0.4, 0.6), strict=True)]
    _, accuracies, _ = axes_of(figures.draw_learning_curves, rows)
    assert curves(accuracies) == {"mIoU": ([1, 2], [0.4, 0.6]), "accuracy of pixels": ([1, 2], [0.75, 0.25])}
    assert accuracies.get_title() == "mIoU, 60.00% at the end"


@pytest.mark.parametrize(
    ("unit", "said"),
    [("images", {(0, 0): "1", (0, 1): "3", (1, 2): "2"}), ("pixels", {(0, 0): "25%", (0, 1): "75%", (1, 2): "100%"})],
)
def test_a_confusion_matrix_has_a_row_for_each_true_class(axes_of, unit, said):
    counts = np.array([[1, 3, 0], [0, 0, 2], [0, 0, 0]])
    axes, *_ = axes_of(lambda path: figures.draw_confusion_matrix(counts, NAMES, path, unit=unit))
    assert axes.images[0].get_array().tolist() == [[0.25, 0.75, 0], [0, 0, 1], [0, 0, 0]]
    assert {text.get_position()[::-1]: text.get_text() for text in axes.texts} == said
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    for axis in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == list(NAMES)


def grays(*values):
    return [Image.new("L", (2, 2), value) for value in values]


def pixels(axes):
    return np.asarray(axes.images[0].get_array()).tolist()


def test_the_worst_images_have_their_true_and_predicted_class_each(axes_of):
    worst = [
        figures.WorstImage(image, f"{number}.png", truth, predicted, confidence)
        for number, (image, truth, predicted, confidence) in enumerate(
            zip(grays(10, 20), ("sky", "road"), ("ground", "road"), (0.75, 0.5), strict=True)
        )
    ]
    first, second = axes_of(figures.draw_worst_images, worst, 1, 9)
    assert (pixels(first), pixels(second)) == ([[10, 10]] * 2, [[20, 20]] * 2)
    assert [axes.get_title() for axes in (first, second)] == [
        "true: sky\npredicted: ground 75%",
        "true: road\npredicted: road 50%",
    ]
    assert [axes.texts[0].get_text() for axes in (first, second)] == ["0.png", "1.png"]


def test_predictions_are_bars_beside_their_image(axes_of):
    chances, labels = [[0.75, 0.25], [0.5, 0.375]], [["sky", "road"], ["road", "ground"]]
    drawn = axes_of(figures.draw_predictions, grays(10, 20), chances, labels, ["a", "b"], ["road", None])
    for number, (picture, bars) in enumerate(zip(drawn[::2], drawn[1::2], strict=True)):
        assert pixels(picture) == [[10 * (number + 1)] * 2] * 2
        assert [bar.get_width() for bar in bars.patches] == chances[number]
        assert [label.get_text() for label in bars.get_yticklabels()] == labels[number]
    assert [axes.get_title(loc="left") for axes in drawn[::2]] == ["a\ntrue: road, missed", "b"]


def test_a_mask_is_drawn_in_the_panel_that_is_called_by_its_name(axes_of):
    palette = ((0, 0, 0), (100, 0, 0), (0, 0, 100))
    names = ("background", *NAMES[1:])
    predicted, truth = np.array([[0, 1], [2, 0]], np.uint8), np.array([[1, 2], [IGNORED, 0]], np.uint8)
    panel = mask_figures.MaskPanel(Image.new("RGB", (2, 2), (40, 40, 40)), predicted, truth, "a.png, mIoU 0.0%")
    drawn = axes_of(lambda path: mask_figures.draw_masks([panel], names, palette, path))
    road, sky = (np.rint([0.45 * 40 + 0.55 * each for each in colour]).tolist() for colour in palette[1:])
    bare = [40, 40, 40]
    assert [axes.get_title() or axes.get_title(loc="left") for axes in drawn] == [panel.title, "true", "predicted"]
    assert list(map(pixels, drawn)) == [
        [[bare, bare], [bare, bare]],
        [[road, sky], [bare, bare]],
        [[bare, road], [sky, bare]],
    ]
