"""A segmentation trains, resumes bit for bit, is evaluated at its images' size, and refuses masks that do not fit."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from lightning.fabric import Fabric
from PIL import Image
from timm.models._hub import save_for_hf
from torch import nn

from imixer.cli import main
from imixer.data.config import DataConfig, MaskConfig
from imixer.data.image_data import IGNORED
from imixer.data.masked_batches import joint_transform
from imixer.data.sources.open_masked import open_masked
from imixer.data.sources.scenes import CLASSES, open_scenes
from imixer.errors import InputError
from imixer.training import mask_figures
from imixer.training.finished_run import load_run
from imixer.training.mask_logits import MaskPredictor
from imixer.training.run.config import ModelConfig, SegmentConfig, TrainConfig
from imixer.training.run.parsing import build_config, expand_config_flags, parse, train_parser
from imixer.training.run.result import best_row
from imixer.training.run.resume_rules import check_changes
from imixer.training.segmentation_metrics import SegmentationMetrics, sliding_logits, window_starts
from imixer.training.tasks.losses import SegmentationLoss, build_loss, loss_settings
from imixer.training.tasks.registry import find_task
from imixer.training.train_state import TrainState

SMALL = [
    *("--task", "segment", "--data.image_size", "16", "--data.batch_size", "4", "--model.name", "imixer_t4_32"),
    *("--model.num_blocks", "2", "--model.embed_dim", "16", "--schedule.warmup_epochs", "1", "--precision", "32"),
    *("--logger", "csv", "--epochs", "2"),
]


def save(path, pixels, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8), mode).save(path)


def squares(root, images=10, size=(24, 20), classes=3):
    """Squares of the colour of their class, on noise."""
    draw = np.random.default_rng(0)
    for number in range(images):
        pixels, mask = draw.integers(0, 60, (*size, 3)), np.zeros(size)
        top, left = draw.integers(0, min(size) - 8, 2)
        kind = number % (classes - 1) + 1
        pixels[top : top + 8, left : left + 8, kind] = 230
        mask[top : top + 8, left : left + 8] = kind
        save(root / "images" / f"{number}.png", pixels)
        save(root / "masks" / f"{number}.png", mask)
    return root


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch):
    monkeypatch.setattr("imixer.training.tasks.segmentation.drawn", lambda path, draw: True)


def test_a_scene_is_the_same_for_a_seed_and_held_out_scenes_show_other_digits():
    data, again = open_scenes(DataConfig()), open_scenes(DataConfig())
    assert data.class_names == CLASSES and (len(data.train), len(data.val)) == (4000, 500)
    image, mask = data.val[3]
    assert np.array_equal(mask, again.val[3][1]) and np.array_equal(np.asarray(image), np.asarray(again.val[3][0]))
    assert not np.array_equal(mask, open_scenes(DataConfig(split_seed=1)).val[3][1])
    assert image.size == mask.shape[::-1] == (32, 32) and len(np.unique(data.train.masks)) == 11


def test_no_data_named_means_the_scenes_for_segmentation_and_the_digits_otherwise():
    def configured(*words):
        return build_config(parse(train_parser(), expand_config_flags(words)))

    assert (configured("--task", "segment").data.name, configured("--task=segment").data.name) == ("scenes", "scenes")
    assert configured().data.name == "digits"


def test_the_loss_is_cross_entropy_and_dice_of_the_pixels_that_count():
    logits, targets = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    targets[0, :2] = IGNORED
    known = targets != IGNORED
    flat, truth = logits.movedim(1, -1)[known], targets[known]
    entropy = torch.nn.functional.cross_entropy(flat, truth)
    torch.testing.assert_close(SegmentationLoss(dice=0)(logits, targets), entropy)
    chances, hot = flat.softmax(1), torch.eye(3)[truth]
    dice = 1 - ((2 * (chances * hot).sum(0) + 1) / (chances.sum(0) + hot.sum(0) + 1)).mean()
    torch.testing.assert_close(SegmentationLoss(dice=0.5)(logits, targets), entropy + 0.5 * dice)
    weights = (1.0, 2.0, 0.5)
    weighted = torch.nn.functional.cross_entropy(flat, truth, torch.tensor(weights))
    torch.testing.assert_close(SegmentationLoss(dice=0, weights=weights)(logits, targets), weighted)
    for loss in (SegmentationLoss(0.1, 0.5, weights), SegmentationLoss()):
        assert build_loss(json.loads(json.dumps(loss_settings(loss)))) == loss


def test_pixels_without_a_weight_have_no_loss_whatever_the_smoothing():
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = SegmentationLoss(0.1, 0.0, (0.0, 1.0))(logits, torch.zeros(1, 4, 4, dtype=torch.int64))
    loss.backward()
    assert loss == 0 and not logits.grad.any()
    few = torch.zeros(1, 4, 4, dtype=torch.int64)
    few[0, 0, 0] = 1
    alone = SegmentationLoss(0.1, 0.0)(logits[..., :1, :1], few[..., :1, :1])
    weighted = SegmentationLoss(0.1, 0.0, (1e-9, 1.0))(logits[..., :1, :1], few[..., :1, :1])
    torch.testing.assert_close(SegmentationLoss(0.1, 0.0, (0.0, 1.0))(logits, few), weighted)
    assert weighted <= alone
    with pytest.raises(InputError, match="give one above 0"):
        SegmentConfig(class_weights=[0.0, 0.0])


@pytest.mark.parametrize(
    ("given", "pixels", "expected"),
    [
        ("balanced", (1, 4, 16), (12 / 7, 6 / 7, 3 / 7)),
        ("balanced", (1, 0, 16), (4 / 3, 4 / 3, 1 / 3)),  # no pixel counts as few as the rarest
        ([1, 2, 0.5], (1, 4, 16), (1.0, 2.0, 0.5)),
        (None, (1, 4, 16), None),
    ],
)
def test_classes_weigh_by_the_inverse_root_of_their_pixels_or_as_given(given, pixels, expected):
    data = SimpleNamespace(name="made", class_names=("a", "b", "c"), pixels=pixels)
    config = TrainConfig(task="segment", smoothing=0.1, segment=SegmentConfig(dice=0.25, class_weights=given))
    loss = find_task("segment").loss(data, config)
    assert loss == SegmentationLoss(0.1, 0.25, expected and pytest.approx(expected))


def pair_of(options, size, *, train=True, mean=(0.5,)):
    """The transform of a gray image and its mask."""
    data = SimpleNamespace(mean=mean, std=(1.0,))
    config, masks = (kind(**options.get(name, {})) for name, kind in (("data", DataConfig), ("masks", MaskConfig)))
    return joint_transform(data, config, masks, (1, *size), train=train)


@pytest.mark.parametrize("crop", ["center", "resized"])
@pytest.mark.parametrize("edge", [13, 32, 40])
def test_a_mask_stays_where_its_image_is_when_both_are_scaled(crop, edge):
    step = np.zeros((64, 64), np.uint8)
    step[:, edge:] = 1
    transform = pair_of({"data": {"crop": crop, "hflip": 0.0}}, (8, 8))
    torch.manual_seed(0)
    for _ in range(5):
        image, mask = transform(Image.fromarray(step * 255), step)
        brightness = image[0] + 0.5
        certain = (brightness - 0.5).abs() > 0.2  # the filter blurs the edge, and rings beside it
        assert torch.equal((brightness > 0.5)[certain], (mask == 1)[certain])


def texture(height, width):
    """Random classes 0 and 1, which match themselves in no other place."""
    return np.random.default_rng(0).integers(0, 2, (height, width)).astype(np.uint8)


@pytest.mark.parametrize(
    ("options", "extended"),
    [
        ({"data": {"crop": "center", "hflip": 1.0}}, lambda mask: mask[:, ::-1]),
        ({"data": {"crop": "pad", "hflip": 0.0}}, lambda mask: np.pad(mask, ((2, 2), (1, 1)), constant_values=IGNORED)),
        ({"data": {"crop": "reflect", "hflip": 0.0}}, lambda mask: np.pad(mask, ((2, 2), (1, 1)), "reflect")),
        ({"data": {"hflip": 0.0}, "masks": {"fit": "window"}}, lambda mask: mask),
    ],
    ids=["mirrored", "shifted into black", "shifted into its mirror image", "windows"],
)
def test_a_mask_stays_where_its_image_is_when_both_are_moved(options, extended):
    window = "masks" in options
    classes = texture(*(32, 24) if window else (16, 8))
    transform = pair_of(options, (16, 8))
    parts = np.lib.stride_tricks.sliding_window_view(extended(classes), (16, 8)).reshape(-1, 16, 8)
    torch.manual_seed(0)
    seen = set()
    for _ in range(20):
        image, mask = transform(Image.fromarray(classes * 255), classes)
        assert torch.equal((image[0] + 0.5).long(), mask.where(mask != IGNORED, 0))
        (place,) = np.flatnonzero((parts == mask.numpy()).all((1, 2)))
        seen.add(int(place))
    assert len(seen) > min(5, len(parts) - 1)


def test_jitter_changes_the_brightness_of_an_image_and_nothing_of_its_mask():
    classes = texture(8, 8)
    transform = pair_of({"data": {"crop": "center", "hflip": 0.0}, "masks": {"jitter": 0.5}}, (8, 8))
    pairs = [transform(Image.fromarray(classes * 100 + 50), classes) for _ in range(5)]
    assert all(np.array_equal(mask.numpy(), classes) for _, mask in pairs)
    assert len({float(image.mean()) for image, _ in pairs}) == 5


def test_a_mask_of_the_models_size_is_taken_as_it_is():
    mask = np.random.default_rng(0).integers(0, 3, (8, 12)).astype(np.uint8)
    _, taken = pair_of({}, (8, 12), train=False)(Image.fromarray(mask), mask)
    assert np.array_equal(taken.numpy(), mask)


def test_a_window_over_a_smaller_image_is_filled_as_it_is_afterwards():
    transform = pair_of({"data": {"hflip": 0.0}, "masks": {"fit": "window"}}, (8, 8), mean=(100 / 255,))
    image, mask = transform(Image.new("L", (4, 4), 100), np.zeros((4, 4), np.uint8))
    assert image.abs().max() < 0.01 and (mask == IGNORED).sum() == 48


def test_mean_iou_is_over_the_classes_that_are_there_and_leaves_out_what_is_ignored():
    truth = torch.tensor([[[0, 0, 1, 1], [IGNORED, 0, 1, 1]]])
    predicted = torch.tensor([[[0, 1, 1, 1], [2, 0, 1, 0]]])
    metrics = SegmentationMetrics(4, (2, 4))
    logits = 10 * torch.nn.functional.one_hot(predicted, 4).movedim(-1, 1).float()
    scores = metrics.score(lambda images: logits, [(torch.zeros(1, 3, 2, 4), truth)])
    assert scores["val_miou"] == pytest.approx((2 / 4 + 3 / 5) / 2) and scores["val_acc"] == pytest.approx(5 / 7)
    assert metrics.iou.isnan().tolist() == [False, False, True, True]
    assert (
        best_row([{"epoch": 1, "val_acc": 0.9, "val_miou": 0.2}, {"epoch": 2, "val_acc": 0.8, "val_miou": 0.3}])[
            "epoch"
        ]
        == 2
    )


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("side", [8, 9, 16, 21, 40])
def test_windows_cover_an_image_of_any_size_and_share_what_they_should(side, overlap):
    starts = window_starts(side, 8, overlap)
    covered = {pixel for start in starts for pixel in range(start, start + 8)}
    assert covered == set(range(max(side, 8)))
    assert all(b - a <= 8 * (1 - overlap) for a, b in itertools.pairwise(starts))


def test_sliding_a_map_of_pixels_over_an_image_gives_the_map_of_the_whole():
    weight = torch.randn(5, 3, 1, 1)
    for size in ((8, 8), (13, 21), (5, 8), (5, 30)):
        images = torch.randn(2, 3, *size)
        expected = torch.nn.functional.conv2d(images, weight)
        got = sliding_logits(lambda x: torch.nn.functional.conv2d(x, weight), images, (8, 8), 0.5)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("head", ["linear", "multilevel"])
@pytest.mark.parametrize(
    ("backbone", "args"),
    [
        ("imixer_t4_32", {"num_blocks": 2, "embed_dim": 16}),
        ("imixer_laptop_32", {"embed_dim": [8, 16, 24], "tokens_dim": [8, 8, 8], "num_blocks": [1, 1, 1]}),
        ("resnet10t", {}),
        ("vit_tiny_patch16_224", {"depth": 2}),
        (
            "swin_tiny_patch4_window7_224",  # whose maps are (B, H, W, C)
            {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": 1},
        ),
    ],
)
def test_a_head_gives_logits_of_every_pixel_on_any_backbone_of_timm(head, backbone, args):
    size = {} if backbone == "resnet10t" else {"img_size": 32}
    model = timm.create_model("segmenter", backbone=backbone, backbone_args=args, head=head, num_classes=5, **size)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5, 32, 32)
    assert len(model.norms) == (1 if head == "linear" else len(model.levels))


def test_a_penalty_on_the_inverse_is_part_of_the_gradient_though_the_imixer_is_inside_a_segmenter():
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    images, masks = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))

    def built(**penalty):
        torch.manual_seed(0)
        args = {"num_blocks": 2, "embed_dim": 16} | penalty
        return timm.create_model("segmenter", backbone="imixer_n2_8", backbone_args=args, num_classes=3, img_size=8)

    def gradient(**penalty):
        model = built(**penalty)
        TrainState(fabric, TrainConfig(), model, 5, loss=nn.CrossEntropyLoss()).gradient([(images, masks)], 0)
        return model.backbone.model.blocks[0].mlp_tokens.contraction.fc1.weight.grad

    alone = built(trajectory_penalty=2.0).train()
    alone(images)
    alone.backbone.model.penalty().backward()
    added = alone.backbone.model.blocks[0].mlp_tokens.contraction.fc1.weight.grad
    assert added.abs().max() > 1e-4
    torch.testing.assert_close(gradient(trajectory_penalty=2.0), gradient() + added)


@pytest.mark.parametrize(
    ("backbone", "args", "block"),
    [
        ("imixer_t4_32", {"num_blocks": 2, "embed_dim": 16}, "backbone.model.blocks.0"),
        ("vit_tiny_patch16_224", {"depth": 2, "embed_dim": 12, "num_heads": 1}, "backbone.model.blocks.0"),
    ],
)
def test_a_segmentation_can_recompute_its_blocks_for_the_same_gradient(backbone, args, block):
    model = timm.create_model("segmenter", backbone=backbone, backbone_args=args, num_classes=3, img_size=32)
    images, gradients, computed = torch.randn(2, 3, 32, 32), [], []
    model.get_submodule(block).register_forward_pre_hook(lambda module, given: computed.append(module))
    for recomputed in (False, True):
        model.set_grad_checkpointing(recomputed)
        model.eval().zero_grad()
        model(images).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert len(computed) == 3
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_linear_head_reads_as_many_channels_as_there_are_whatever_head_dim_says():
    args = {"num_blocks": 2, "embed_dim": 16}
    model = timm.create_model(
        "segmenter", backbone="imixer_t4_32", backbone_args=args, head="linear", head_dim=7, num_classes=3, img_size=32
    )
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"head": "multi"}, "head is 'multi'; choose linear or multilevel; did you mean multilevel"),
        ({"head": "liner"}, r"head is 'liner'; choose linear or multilevel; did you mean linear\?$"),
        ({"head_dims": 7}, r"Segmenter has no option 'head_dims'; known: .*; did you mean head_dim\?$"),
    ],
)
def test_a_head_or_an_option_that_there_is_not_is_refused_by_name(options, said):
    with pytest.raises(ValueError, match=said):
        timm.create_model("segmenter", backbone="unet_16", num_classes=3, **options)


@pytest.mark.parametrize("head", ["linear", "multilevel"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_backbone_starts_from_a_mixer(kind, head, tmp_path):
    sizes = {"num_blocks": 2, "embed_dim": 16}
    mixer = timm.create_model("mixer_t4_32", **sizes)
    save_for_hf(mixer, tmp_path, model_args=sizes, safe_serialization=True)
    args = sizes | {"from_mixer": str(tmp_path / "model.safetensors" if kind == "file" else tmp_path)}
    model = timm.create_model("segmenter", backbone="imixer_t4_32", backbone_args=args, head=head, num_classes=3)
    backbone = model.backbone.model
    assert torch.equal(backbone.blocks[1].mlp_tokens.fc_in.weight, mixer.blocks[1].mlp_tokens.fc1.weight)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    assert len({model.group_matcher()(name) for name, _ in model.named_parameters()}) > 2
    plain = timm.create_model("segmenter", backbone="imixer_t4_32", backbone_args=sizes, head=head, num_classes=3)
    assert model.levels == plain.levels


@pytest.mark.parametrize("fit", ["resize", "window"])
def test_a_folder_is_trained_on_evaluated_predicted_and_exported_at_the_size_of_its_images(fit, tmp_path, capsys):
    root, run = squares(tmp_path / "data"), tmp_path / "run"
    assert main(["train", "--data.name", str(root), "--out", str(run), "--masks.fit", fit, *SMALL]) == 0
    assert main(["evaluate", str(run)]) == 0
    assert "mIoU" in capsys.readouterr().out
    scores = json.loads((run / "evaluation.json").read_text())
    last = json.loads((run / "result.json").read_text())["last"]
    if fit == "window":  # where training validates at full size too
        assert scores["miou"] == pytest.approx(last["val_miou"], abs=1e-5)
    assert sum(each["pixels"] for each in scores["per_class"]) == 2 * 24 * 20
    worst_first = [float(line.split(",")[1]) for line in (run / "predictions.csv").read_text().splitlines()[1:]]
    assert worst_first == sorted(worst_first)
    images = [root / "images" / "0.png", tmp_path / "0_overlay.png"]
    images[1].write_bytes((root / "images" / "1.png").read_bytes())
    assert main(["predict", str(run), *map(str, images)]) == 0
    assert sorted(file.name for file in (run / "predictions").glob("*.png")) == ["0.png", "0_overlay.png"]
    assert all(Image.open(file).mode == "P" for file in (run / "predictions").glob("*.png"))
    mask = Image.open(run / "predictions" / "0.png")
    assert mask.mode == "P" and mask.size == (20, 24) and np.asarray(mask).max() < 3
    with Image.open(root / "images" / "0.png") as image:
        assert np.array_equal(np.asarray(mask), MaskPredictor(load_run(str(run))).classes([image.convert("RGB")])[0])
    assert (run / "predictions" / "overlays" / "0.png").is_file()


def test_a_link_makes_no_images_with_masks_a_part_of_both_splits(tmp_path):
    squares(tmp_path / "data" / "train")
    (tmp_path / "data" / "val").symlink_to("train", target_is_directory=True)
    with pytest.raises(InputError, match=r"train.* and val.* share .*, by a link"):
        open_masked(DataConfig(str(tmp_path / "data")), MaskConfig())


@pytest.mark.parametrize("size", [(16, 16), (24, 20)])
def test_logits_that_are_not_finite_are_refused_whatever_the_size_of_the_image(size, tmp_path, monkeypatch):
    root, run = squares(tmp_path / "data"), tmp_path / "run"
    assert main(["train", "--data.name", str(root), "--out", str(run), "--masks.fit", "window", *SMALL]) == 0
    loaded = load_run(str(run))
    monkeypatch.setattr(
        loaded.model, "forward", lambda images: torch.full((len(images), 3, *images.shape[2:]), torch.nan)
    )
    with pytest.raises(InputError, match="finite"):
        MaskPredictor(loaded).logits([Image.new("RGB", size)])


def test_an_exported_segmentation_computes_the_logits_of_pixels(tmp_path):
    pytest.importorskip("onnxruntime")
    root, run = squares(tmp_path / "data"), tmp_path / "run"
    assert main(["train", "--data.name", str(root), "--out", str(run), *SMALL]) == 0
    assert main(["export", str(run)]) == 0
    import onnxruntime

    session = onnxruntime.InferenceSession(str(run / "model.onnx"), providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = load_run(str(run)).model(images)
    got = torch.from_numpy(session.run(None, {"image": images.numpy()})[0])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_stopped_segmentation_ends_as_one_that_was_not_bit_for_bit(tmp_path, monkeypatch):
    from imixer.training.loop import Loop

    root = squares(tmp_path / "data")
    flags = ["--data.name", str(root), "--data.hflip", "0.5", "--masks.jitter", "0.3", "--ema", "0.9", *SMALL]
    assert main(["train", "--out", str(tmp_path / "whole"), *flags]) == 0
    take = Loop._take_step

    def stop(self, micro_batches):
        if self.step == 3:
            raise RuntimeError("killed")
        take(self, micro_batches)

    monkeypatch.setattr(Loop, "_take_step", stop)
    with pytest.raises(RuntimeError, match="killed"):
        main(["train", "--out", str(tmp_path / "cut"), "--checkpoints.every_steps", "1", *flags])
    monkeypatch.setattr(Loop, "_take_step", take)
    assert main(["train", "--resume", str(tmp_path / "cut")]) == 0
    one, other = (load_run(str(tmp_path / name)).model.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    a, b = (json.loads((tmp_path / name / "result.json").read_text())["last"] for name in ("whole", "cut"))
    assert {k: v for k, v in a.items() if k.startswith("val")} == {k: v for k, v in b.items() if k.startswith("val")}


def test_colours_are_classes_by_a_palette_and_other_colours_are_ignored(tmp_path):
    root = squares(tmp_path)
    colours = np.array([[0, 0, 0], [128, 64, 128], [255, 255, 255]])
    for file in (root / "masks").iterdir():
        indices = np.asarray(Image.open(file))
        coloured = colours[indices]
        coloured[0, 0] = (1, 2, 3)
        save(file, coloured)
    masks = MaskConfig(palette={"ground": "#000000", "road": "#804080", "sky": "#ffffff"})
    data = open_masked(DataConfig(name=str(root)), masks)
    _, mask = data.train[0]
    assert data.class_names == ("ground", "road", "sky") and mask[0, 0] == IGNORED and mask.max() == IGNORED
    assert data.palette == ((0, 0, 0), (128, 64, 128), (255, 255, 255))


def other_size(root):
    save(root / "masks" / "3.png", np.zeros((10, 10)))
    return "3.png: its mask has 10x10 pixels, and it has 24x20"


def outside(root):
    (root / "classes.txt").write_text("a\nb\nc\n")
    save(root / "masks" / "3.png", np.full((24, 20), 7))
    return "3.png: its mask has the value 7, and classes are 0 to 2, and 255 is ignored"


def missing(root):
    (root / "masks" / "3.png").unlink()
    return "3.png has no mask 3.png in"


def coloured(root):
    pixels = np.zeros((24, 20, 3))
    pixels[3:, 4:, 0] = 128
    save(root / "masks" / "3.png", pixels)
    return "3.png: its mask stores colours, and nothing says which class each is; pass --masks.palette"


def no_image(root):
    (root / "masks" / "3.png").write_bytes(b"not a picture")
    return "3.png: its mask 3.png: not an image that Pillow can read"


def tiny(root):
    save(root / "images" / "3.png", np.arange(12).reshape(2, 2, 3))
    save(root / "masks" / "3.png", np.zeros((2, 2)))
    return "3.png has 2x2 pixels, less than the model's patch of 4x4"


@pytest.mark.parametrize("spoil", [other_size, outside, missing, coloured, no_image, tiny])
def test_a_pair_that_does_not_fit_is_one_line_and_skip_bad_counts_it(spoil, tmp_path, capsys):
    root = squares(tmp_path / "data")
    message = spoil(root)
    out = ["--out", str(tmp_path / "run"), "--data.name", str(root)]
    assert main(["train", *out, *SMALL]) == 2
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1] and said[-1].startswith("imixer: ") and not (tmp_path / "run").exists()
    assert main(["train", *out, "--data.skip_bad", "true", *SMALL]) == 0
    assert "skipped" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "result.json").read_text())["skipped"] == ["images/3.png"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.mixup", "0.8"], "data.mixup is 0.8, and task segment"),
        (["--data.pipeline", "device"], "data.pipeline is device"),
        (["--data.crop", "resized", "--data.shift", "null", "--data.scale", "[0.9, 0.2]"], "data.scale is [0.9, 0.2]"),
        (["--segment.class_weights", "[1, 2]"], "segment.class_weights has 2 numbers, and data 3 classes"),
        (["--segment.levels", "[9]"], "gives no features to segment by at segment.levels [9]"),
        (["--segment.levels", "[2, 1]"], "levels is [2, 1]; give one or more"),
        (["--segment.levels", "[1, 1]"], "levels is [1, 1]; give one or more"),
        (["--segment.levels", "[]"], "levels is []; give one or more"),
        (["--masks.classes", "[a]"], "masks.classes has 1 names"),
        (["--masks.palette", "{a: red, b: '#000000'}"], "masks.palette gives 'a' the colour 'red'"),
        (["--masks.overlap", "1"], "masks.overlap is 1"),
        (["--model.name", "unet_16", "--grad_checkpointing", "true"], "grad_checkpointing is true, and unet_16 cannot"),
    ],
)
def test_a_setting_that_masks_do_not_allow_is_one_line(flags, message, tmp_path, capsys):
    root = squares(tmp_path / "data")
    assert main(["train", "--out", str(tmp_path / "run"), "--data.name", str(root), *SMALL, *flags]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_binary_masks_of_0_and_255_are_told_how_to_be_two_classes(tmp_path):
    root = squares(tmp_path)
    for file in (root / "masks").iterdir():
        save(file, 255 * (np.asarray(Image.open(file)) > 0))
    with pytest.raises(InputError, match=r"only one class; .* 255, which is ignored, pass --masks.values"):
        open_masked(DataConfig(name=str(root)), MaskConfig())
    assert open_masked(DataConfig(name=str(root)), MaskConfig(values=[0, 255])).class_names == ("0", "255")
    palette = {"background": "#000000", "object": "#ffffff"}
    assert open_masked(DataConfig(name=str(root)), MaskConfig(palette=palette)).class_names == ("background", "object")


@pytest.mark.parametrize(
    ("names", "palette", "listed"),
    [
        (("road", "sky"), ((128, 64, 128), (0, 0, 255)), ["road", "sky"]),
        (("background", "sky"), ((128, 64, 128), (0, 0, 255)), ["sky"]),
        (("ground", "sky"), ((0, 0, 0), (0, 0, 255)), ["sky"]),
    ],
)
def test_the_legend_lists_every_class_that_is_drawn_also_the_first(names, palette, listed, monkeypatch):
    figures = []
    monkeypatch.setattr(mask_figures, "save_figure", lambda figure, path, dpi: figures.append(figure))
    classes = np.array([[0, 1], [IGNORED, 1]], np.uint8)
    panel = mask_figures.MaskPanel(Image.new("RGB", (2, 2), (40, 90, 60)), np.minimum(classes, 1), classes, "a")
    mask_figures.draw_masks([panel], names, palette, Path("drawn.png"))
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == listed
    drawn = np.asarray(figures[0].axes[1].images[0].get_array())
    assert (tuple(drawn[0, 0]) == (40, 90, 60)) == (names[0] not in listed)


def test_a_url_of_images_and_masks_on_this_machine_is_a_folder_and_one_that_is_nearly_one_is_told(tmp_path):
    root = squares(tmp_path / "data")
    assert len(open_masked(DataConfig(name=f"file://{root}"), MaskConfig()).train) > 0
    with pytest.raises(InputError, match="write s3://b/x for a URL"):
        open_masked(DataConfig(name="s3:/b/x"), MaskConfig())


def test_an_image_below_a_patch_of_the_model_that_weights_are_for_is_left_out_if_that_is_asked_for(tmp_path):
    squares(tmp_path / "data")
    save(tmp_path / "data" / "images" / "small.png", np.zeros((1, 1, 3)))
    save(tmp_path / "data" / "masks" / "small.png", np.zeros((1, 1)))
    config = TrainConfig(
        task="segment",
        data=DataConfig(name=str(tmp_path / "data"), skip_bad=True),
        model=ModelConfig(checkpoint="imixer_laptop_32.cifar10"),
    )
    assert [Path(name).name for name in find_task("segment").open(config).skipped] == ["small.png"]


def test_splits_inside_images_and_masks_or_around_them_are_found(tmp_path):
    for layout in ("images/training masks/training images/validation masks/validation", "train val"):
        root = tmp_path / layout[:3]
        for part in layout.split():
            ours = squares(tmp_path / ("train" if "train" in part else "val"), 4)
            if "/" in part:
                (root / part).parent.mkdir(parents=True, exist_ok=True)
                (root / part).symlink_to(ours / part.split("/")[0])
            else:
                root.mkdir(exist_ok=True)
                (root / part).symlink_to(ours)
        data = open_masked(DataConfig(name=str(root)), MaskConfig())
        held_out = layout.split()[-1].removeprefix("masks/")
        assert (len(data.train), len(data.val), data.split, data.left_out) == (4, 4, held_out, ())


def test_analyses_of_classes_of_images_refuse_a_segmentation_in_one_line(tmp_path, capsys):
    root, run = squares(tmp_path / "data"), tmp_path / "run"
    assert main(["train", "--data.name", str(root), "--out", str(run), *SMALL]) == 0
    capsys.readouterr()
    assert main(["analyze", "features", str(run)]) == 2
    assert "is a segmentation" in capsys.readouterr().err.splitlines()[-1]
    assert main(["evaluate", str(run), "--corruptions"]) == 2
    assert find_task("segment") is not find_task("classify")


def test_a_segmentation_goes_on_with_as_many_parts_of_a_batch_and_a_classification_with_any():
    """Since the mean over parts of a batch is not the loss of the whole batch."""
    logits, targets = torch.randn(4, 3, 8, 8), torch.randint(3, (4, 8, 8))
    targets[:2, :6] = IGNORED
    loss = SegmentationLoss()
    parts = (loss(logits[:2], targets[:2]) + loss(logits[2:], targets[2:])) / 2
    assert not torch.allclose(parts, loss(logits, targets))

    begun = TrainConfig(task="segment", accumulate=4)
    check_changes(begun, TrainConfig(task="segment", accumulate=2, devices=2), "run")
    for more in ({"accumulate": 2}, {"accumulate": 4, "devices": 2}):
        with pytest.raises(InputError, match=r"devices x num_nodes x accumulate is [28], but run was begun with 4"):
            check_changes(begun, TrainConfig(task="segment", **more), "run")
    check_changes(TrainConfig(accumulate=4), TrainConfig(accumulate=2), "run")
