"""What is about to be trained is on the screen before it is."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from imixer.cli import main
from imixer.data.config import DataConfig
from imixer.data.image_data import ImageData
from imixer.data.sources.digits import ArrayImages
from imixer.escaping import printable
from imixer.training.finetune import freeze
from imixer.training.model import build_model, forward_cost
from imixer.training.preview import show_preview
from imixer.training.run.config import ModelConfig, OptimConfig, ScheduleConfig, TrainConfig

CONFIG = TrainConfig(
    epochs=4, data=DataConfig(batch_size=64), schedule=ScheduleConfig(warmup_epochs=1, cooldown_epochs=2)
)


def items(labels):
    return ArrayImages(np.zeros((len(labels), 8, 8), np.uint8), np.array(labels))


@pytest.fixture
def data():
    return ImageData(
        "pets", items([0] * 90 + [1] * 20), items([0] * 5), ("cat", "dog"), 1, (8, 8), (0.5,), (0.5,),
        sources=("Training/", "Testing/"), notes=("1 channel, as all 110 looked at are gray",),
        left_out=("extra/ (3 images)", "2 .heic in pets"),
    )  # fmt: skip


@pytest.fixture
def built():
    model = ModelConfig(name="imixer_t2_8")
    return build_model(model, DataConfig(), native_size=(8, 8), in_chans=1, num_classes=2)


def shown(data, built, config=CONFIG, width=200, **more):
    """The panel's lines, by their titles."""
    stream = io.StringIO()
    show_preview(data, config, built, Console(file=stream, width=width, highlight=False), **more)
    lines, title = {}, ""
    for line in stream.getvalue().splitlines()[1:-1]:
        cells = re.fullmatch(r"│ (.{8,9}?)  (\S.*?|) *│", line)
        title = cells[1].strip() or title
        lines.setdefault(title, []).append(cells[2])
    return lines


def test_images_and_classes_of_each_part_and_where_they_come_from(data, built):
    lines = shown(data, built)
    assert lines["data"] == ["pets, 2 classes: cat, dog"]
    assert lines["training"] == ["110 images of all 2 classes, 20 to 90 each, Training/"]
    assert lines["held out"] == ["5 images of only 1 of the 2 classes, 5 each, Testing/"]
    assert lines["images"] == ["8x8, seen by the model as 8x8 gray", "1 channel, as all 110 looked at are gray"]


def test_what_is_left_out_is_named_and_counted(data, built):
    assert shown(data, built)["not used"] == ["extra/ (3 images); 2 .heic in pets"]
    many = replace(data, left_out=tuple(f"f{number}/" for number in range(9)), skipped=("a/1.png", "a/2.png"))
    lines = shown(many, built)
    assert lines["not used"] == ["f0/; f1/; f2/; f3/; f4/; f5/; and 3 more"]
    assert lines["skipped"] == ["2 images that cannot be read, the first a/1.png"]
    assert "not used" not in shown(replace(data, left_out=()), built)


def test_a_setting_has_the_effect_that_the_arguments_of_the_weights_leave_it(data, built):
    config = replace(CONFIG, model=ModelConfig(tolerance=1e-3))
    assert shown(data, built, config)["no effect"] == ["model.tolerance 0.001: solver is fixed"]
    solved = replace(built, args=built.args | {"solver": "anderson"})
    assert "no effect" not in shown(data, solved, config)
    behind_a_head = {"backbone": built.name, "backbone_args": solved.args, "head": "linear"}
    assert "no effect" not in shown(data, replace(built, args=behind_a_head), config)


def test_images_that_fill_no_batch_are_counted(data, built):
    (line,) = shown(data, built)["batches"]
    assert line.startswith("1 of 64 images per epoch; the other 46 of the 110 fill no batch")
    (line,) = shown(data, built, replace(CONFIG, data=DataConfig(batch_size=55)))["batches"]
    assert line == "2 of 55 images per epoch"


def test_the_cost_is_that_of_the_images_trained_on(data, built):
    one = forward_cost(built).total
    (model,), (cost,) = (shown(data, built)[title] for title in ("model", "cost"))
    assert model == f"imixer_t2_8, {sum(p.numel() for p in built.model.parameters()):,} parameters"
    assert f"{one / 1e6:,.1f} M multiply-adds per image forward" in cost
    assert f"{one * 3 * 64 * 6 / 1e9:,.1f} G for the training (x 3 x 64 images x 6 epochs)" in cost


def test_counting_draws_no_random_number_and_leaves_the_model_alone(built):
    torch.manual_seed(3)
    state, weights = torch.get_rng_state(), {k: v.clone() for k, v in built.model.state_dict().items()}
    built.model.train()
    assert forward_cost(built) == forward_cost(built)
    assert forward_cost(built).total > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert built.model.training
    assert all(torch.equal(v, weights[k]) for k, v in built.model.state_dict().items())


def test_a_cost_that_depends_on_the_images_is_not_invented(data):
    model = ModelConfig(name="imixer_t2_8", solver="picard")
    built = build_model(model, DataConfig(), native_size=(8, 8), in_chans=1, num_classes=2)
    assert shown(data, built)["cost"] == ["not known beforehand: iterations depend on the images"]


def test_text_from_outside_is_neither_markup_nor_a_command(data, built):
    hostile = replace(
        data,
        name="[bold]p[/bold]",
        class_names=("[red]cat[/red]", "dog\x1b[31m"),
        left_out=("\x1b]0;title\x07.png", "[link=x]a\nb"),
        notes=("[/]",),
    )
    lines = shown(hostile, built)
    assert lines["data"] == [r"[bold]p[/bold], 2 classes: [red]cat[/red], dog\x1b[31m"]
    assert lines["not used"] == [r"\x1b]0;title\x07.png; [link=x]a\x0ab"]
    assert lines["images"][1] == "[/]"


def test_long_names_are_cut_in_the_middle(data, built):
    lines = shown(replace(data, name="a" * 90 + "z" * 90, left_out=("x" * 300,)), built)
    assert lines["data"][0].startswith("a" * 40 + "…" + "z" * 39)
    assert len(lines["not used"][0]) == 120


def test_names_that_are_no_text_can_be_printed():
    assert printable("caf\udce9 \u202e é") == "caf\\udce9 \\u202e é"


def test_training_shows_it_first_and_reads_all_images_alike(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for part, count in (("Training", 55), ("Testing", 8)):
        for name in ("[b]a[", "c"):
            (tmp_path / "scans" / part / name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(rng.random((8, 8), dtype=np.float32))
                image.save(tmp_path / "scans" / part / name / f"{number}.tif")
    out = tmp_path / "run"
    quick = ["--epochs", "1", "--schedule.warmup_epochs", "0", "--schedule.cooldown_epochs", "0", "--logger", "csv"]
    tiny = ["--model.name", "imixer_t2_8", "--model.num_blocks", "1", "--model.embed_dim", "16"]
    assert main(["train", "--data.name", str(tmp_path / "scans"), "--out", str(out), *quick, *tiny]) == 0
    said = capsys.readouterr().err
    assert said.index("about to train") < said.index("epoch 1/1")
    for words in (
        "2 classes: [b]a[, c",
        "110 images of all 2 classes, 55 each, Training/",
        "16 images of all 2 classes, 8 each, Testing/",
        "1 of 64 images per epoch; the other 46 of the 110 fill no batch",
        "more than 8 bits: 0 and 1 become black and white",
    ):
        assert words in said
    assert re.search(r"value_range:\n +- 0.0\n +- 1.0\n", (out / "config.yaml").read_text())
    (tmp_path / "scans" / "Testing" / "notes.txt").write_text("")
    assert main(["evaluate", str(out)]) == 0
    assert main(["evaluate", str(out), "--test", str(tmp_path / "scans" / "Testing")]) == 0
    assert "1 .txt in Testing" in capsys.readouterr().err
    scores = [(out / name).read_text() for name in ("evaluation.json", "test_evaluation.json")]
    top1, loss = (re.findall(rf'"{what}": ([\d.]+)', "".join(scores)) for what in ("top1", "loss"))
    assert (top1[0], loss[0]) == (top1[1], loss[1])


def test_settings_of_what_the_model_does_not_have_are_said_to_have_no_effect(data, built):
    config = replace(CONFIG, optim=OptimConfig(contraction_lr_scale=5.0))
    assert "no effect" not in shown(data, built, config)
    model = ModelConfig(name="mixer_t2_8")
    mixer = build_model(model, DataConfig(), native_size=(8, 8), in_chans=1, num_classes=2)
    assert shown(data, mixer, config)["no effect"] == ["optim.contraction_lr_scale 5: no F is trained"]
    freeze(built.model, "head", "imixer_t2_8")
    assert shown(data, built, config)["no effect"] == ["optim.contraction_lr_scale 5: no F is trained"]


def test_minutes_had_an_effect_where_steps_were_chosen(data, built):
    config = replace(CONFIG, minutes=1.0)
    assert shown(data, built, config)["no effect"] == ["minutes 1: neither model nor steps are chosen"]
    assert "no effect" not in shown(data, built, config, chosen=["steps"])
