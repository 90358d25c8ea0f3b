"""The recipe `photos` chooses for a folder of photos and this device, says so, and yields to what is given."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from imixer.cli import main
from imixer.data.config import DataConfig
from imixer.data.image_data import ImageData, training_labels
from imixer.data.kept import keep_images
from imixer.data.names import TORCHVISION
from imixer.data.sampler import BatchShard
from imixer.data.sources.digits import ArrayImages
from imixer.data.sources.folder import open_folder
from imixer.data.sources.torchvision_sets import SETS
from imixer.data.transforms import eval_transform
from imixer.errors import InputError
from imixer.progress import clock
from imixer.training import photo_settings
from imixer.training.budget import duration
from imixer.training.model import build_model_for
from imixer.training.photo_settings import choose_settings
from imixer.training.run.config import ModelConfig, TrainConfig
from imixer.training.run.parsing import (
    build_config,
    default_recipe,
    expand_config_flags,
    load_config,
    parse,
    save_config,
    train_parser,
)
from imixer.training.tasks.classification import Classification, inverse_class_sizes
from imixer.training.time_estimate import StepTime

CPU = torch.device("cpu")


def configured(*words):
    return build_config(parse(train_parser(), expand_config_flags(words)))


def photos(tmp_path, sizes, classes=("cat", "dog"), per_class=4, mode="RGB"):
    rng = np.random.default_rng(0)
    for label, name in enumerate(classes):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(per_class):
            width, height = sizes[number % len(sizes)]
            pixels = rng.integers(0, 100, (height, width, 3)) + 70 * label
            Image.fromarray(pixels.astype("uint8")).convert(mode).save(folder / f"{number}.png")
    return tmp_path / "photos"


def memory_data(images, side=40, classes=3, channels=1):
    labels = np.arange(images) % classes
    items = ArrayImages(np.zeros((images, side, side), np.uint8), labels)
    held_out = ArrayImages(np.zeros((classes, side, side), np.uint8), np.arange(classes))
    names = tuple(f"class {number}" for number in range(classes))
    return ImageData("pets", items, held_out, names, channels, (side, side), (0.5,), (0.5,))


@pytest.fixture
def fast(monkeypatch):
    """A device on which every model takes no time."""
    monkeypatch.setattr(photo_settings, "measure_step", lambda *_: StepTime(1e-6, 1e-6))


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setattr(photo_settings, "measure_step", lambda *_: StepTime(1.0, 0.0))


RECIPE = ("--recipe", "photos")


def test_a_folder_of_photos_gets_the_recipe_unless_a_model_or_weights_are_named(tmp_path):
    folder = str(photos(tmp_path, [(20, 20)]))
    assert configured("--data.name", folder) == configured("--data.name", folder, *RECIPE)
    assert configured("--data.name", folder).choose == ["model", "batch_size", "steps", "loading"]
    assert configured("--data.name", folder, "--model.name", "imixer_t4_32").choose == []
    assert configured("--data.name", folder, "--model.checkpoint", "x").data.hflip == 0.0
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({"data": {"name": folder}, "optim": {"lr": 0.5}}))
    assert (configured("--config", str(file)).optim.opt, configured("--config", str(file)).optim.lr) == ("muon", 0.5)


def test_a_configuration_that_is_printed_chooses_what_it_chose(tmp_path):
    folder = str(photos(tmp_path, [(20, 20)]))
    assert configured("--data.name", folder, "--model.pretrained", "false") == configured("--data.name", folder)
    whole = configured("--data.name", folder)
    save_config(whole, tmp_path / "whole.yaml")
    assert configured("--config", str(tmp_path / "whole.yaml")) == whole


def test_a_file_that_chooses_nothing_wins_over_the_recipe(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({"choose": [], "steps": 500}))
    assert configured(*RECIPE, "--config", str(file)).choose == []


def test_other_data_get_no_recipe_for_photos(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "train.parquet").touch()
    for name in ("cifar10", "torch/mnist", str(tmp_path / "shards"), str(tmp_path / "missing"), "s3://bucket/pets"):
        assert configured("--data.name", name).choose == []


@pytest.mark.parametrize("start", [("model.checkpoint", "x"), ("model.from_mixer", "x"), ("model.pretrained", "true")])
def test_weights_to_start_from_take_no_recipe_by_themselves(start):
    name, value = start
    assert default_recipe({name: value}) is default_recipe({name: value, "data.name": "digits"}) is None
    assert default_recipe({"model.pretrained": True}) is None
    assert default_recipe({"model.pretrained": "false"}) == default_recipe({"model.pretrained": False}) == "digits"


def test_finetuning_wins_over_a_recipe_and_flags_over_both():
    words = ("--recipe", "cifar10/imixer_quick", "--model.checkpoint", "x", "--finetune", "all")
    config = configured(*words, "--epochs", "7")
    assert (config.optim.lr, config.data.batch_size, config.epochs) == (5e-4, 32, 7)


def test_the_digits_get_their_recipe_whether_they_are_named_or_not():
    assert configured("--data.name", "digits") == configured() == configured("--recipe", "digits")


def test_the_names_of_torchvision_are_those_that_are_opened():
    assert set(TORCHVISION) == set(SETS)


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (("--data.batch_size", "16"), ["model", "steps", "loading"]),
        (("--data.batch_size=16",), ["model", "steps", "loading"]),
        (("--epochs", "3"), ["model", "batch_size", "loading"]),
        (("--budget", "1T"), ["model", "batch_size", "loading"]),
        (("--steps", "30"), ["model", "batch_size", "loading"]),
        (("--model.name", "mixer_t4_32"), ["batch_size", "steps", "loading"]),
        (("--data.workers", "2"), ["model", "batch_size", "steps"]),
        (("--model.checkpoint", "x", "--finetune", "all"), ["loading"]),
        (("--choose", "[steps]"), ["steps"]),
        (("--choose", "[model, batch_size, steps]", "--model.name", "x", "--steps", "3"), ["batch_size"]),
        (("--choose=[loading]", "--data.workers", "2"), []),
        (("--model.pretrained", "false"), ["model", "batch_size", "steps", "loading"]),
    ],
)
def test_what_is_given_is_not_chosen(given, left):
    assert configured(*RECIPE, *given).choose == left


def test_finetuning_over_the_recipe_brings_length_and_learning_rate_and_keeps_the_augmentation():
    config = configured(*RECIPE, "--model.checkpoint", "x", "--finetune", "all")
    assert (config.epochs, config.steps, config.data.batch_size, config.optim.opt) == (30, None, 32, "adamw")
    assert (config.data.crop, config.data.hflip, config.data.last_batch) == ("resized", 0.5, "fill")


def test_steps_epochs_and_budget_replace_each_other():
    config = configured(*RECIPE, "--steps", "30")
    assert (config.steps, config.budget) == (30, None)
    assert configured("--recipe", "laptop/imixer_cifar10", "--steps", "9").budget is None
    with pytest.raises(InputError, match="--budget is 1T and --steps is 3"):
        configured("--steps", "3", "--budget", "1T")


@pytest.mark.parametrize(
    ("images", "batch", "passes"), [(4, 4, 200), (20, 8, 200), (110, 32, 193), (1_000, 64, 80), (20_000, 128, 24)]
)
def test_batch_and_steps_follow_the_number_of_images(images, batch, passes, fast):
    config, said = choose_settings(configured(*RECIPE), memory_data(images), CPU)
    assert config.data.batch_size == batch
    assert config.steps == passes * -(-images // batch)
    assert config.choose == []
    assert any(f"steps {config.steps:,}, by which each image is seen {passes:,} times" in each for each in said)


def test_a_batch_divides_into_the_parts_of_a_step(fast):
    config = configured(*RECIPE, "--accumulate", "3")
    assert choose_settings(config, memory_data(110), CPU)[0].data.batch_size == 30


@pytest.mark.parametrize(("side", "seen", "patch"), [(5, 32, 2), (40, 32, 2), (60, 48, 4), (80, 64, 4), (600, 64, 4)])
def test_the_image_size_follows_the_photos(side, seen, patch, fast):
    config, said = choose_settings(configured(*RECIPE), memory_data(8, side), CPU)
    assert (config.data.image_size, config.model.patch_size) == (seen, patch)
    assert any(f"image_size {seen}" in each and f"{side} pixels" in each for each in said)


def test_more_images_and_a_faster_device_get_a_larger_model(fast):
    few, many = (choose_settings(configured(*RECIPE), memory_data(n, 130), CPU)[0] for n in (100, 4_000))
    assert (few.data.image_size, few.model.embed_dim) == (64, [64, 128, 192])
    assert (many.data.image_size, many.model.embed_dim) == (128, [96, 192, 384])


def test_a_slow_device_gets_the_smallest_model_and_fewer_steps_and_is_told(slow):
    config, said = choose_settings(configured(*RECIPE, "--minutes", "10"), memory_data(110, 130), CPU)
    assert (config.data.image_size, config.model.embed_dim, config.steps) == (32, [32, 64, 128], 4 * 75)
    assert any("instead of 193; this will take longer than minutes 10" in each for each in said)
    config, said = choose_settings(configured(*RECIPE, "--minutes", "200"), memory_data(110, 130), CPU)
    assert config.steps == 4 * int(200 * 60 / (4 * 32 + 1))
    assert any("instead of 193; to stay within minutes 200" in each for each in said)


def measured_as(monkeypatch, *times):
    """Let the first models take these times, and what follows none that could be measured."""
    left, asked = list(times), []

    def measure(config, *_):
        asked.append(config)
        return left.pop(0) if left else None

    monkeypatch.setattr(photo_settings, "measure_step", measure)
    return asked


def test_with_a_budget_the_model_is_chosen_for_the_time_that_this_takes(monkeypatch):
    monkeypatch.setattr(photo_settings, "measure_step", lambda *_: StepTime(0.001, 0.0))
    asked = TrainConfig(choose=["model"], budget="100T")
    config, said = choose_settings(asked, memory_data(1_000), CPU)
    built = build_model_for(config, memory_data(1_000))
    steps = duration(config, built, each := 1_000 // config.data.batch_size).steps
    seconds = photo_settings._Length(each, steps / each, 3).seconds(config, StepTime(0.001, 0.0))
    assert seconds == pytest.approx(0.001 * steps * config.data.batch_size, rel=0.01)
    (words,) = (text for text in said if text.startswith("model "))
    assert f"about {clock(seconds)} of computing" in words


@pytest.mark.usefixtures("slow")
def test_steps_of_a_model_that_is_given_stay_within_the_minutes_too():
    asked = TrainConfig(choose=["steps"], minutes=10, model=ModelConfig("mixer_t4_32"), data=DataConfig(batch_size=32))
    config, said = choose_settings(asked, memory_data(110), CPU)
    (words,) = (text for text in said if text.startswith("steps "))
    assert "instead of 193" in words and config.steps < 193 * 3


def test_photos_are_kept_decoded_for_a_model_that_is_given(monkeypatch):
    asked = TrainConfig(choose=["loading"], model=ModelConfig("mixer_t4_32"))
    config, _ = choose_settings(asked, memory_data(110), CPU)
    assert config.data.keep_decoded


def test_a_model_that_could_not_be_measured_replaces_none_that_trains_in_time(monkeypatch):
    asked = measured_as(monkeypatch, StepTime(1e-6, 1e-6))
    config, said = choose_settings(configured(*RECIPE), memory_data(100, 130), CPU)
    assert (config.data.image_size, config.model.embed_dim) == (32, [32, 64, 128])
    assert len(asked) == 2 and any("of computing on this device" in each for each in said)


def test_where_nothing_can_be_measured_the_smallest_model_is_taken_and_that_is_said(monkeypatch):
    measured_as(monkeypatch)
    config, said = choose_settings(configured(*RECIPE), memory_data(100, 130), CPU)
    assert config.data.image_size == 32
    assert any(each.endswith(": the smallest, as the time of a step could not be measured") for each in said)


def test_several_devices_and_compiling_are_measured_on_one_that_does_not_and_share_the_work(monkeypatch):
    asked = measured_as(monkeypatch, *[StepTime(0.01, 0.0)] * 9)
    given = configured(*RECIPE, "--devices", "4", "--compile", "true", "--minutes", "5")
    config, said = choose_settings(given, memory_data(110, 32), CPU)
    assert (config.devices, config.compile, config.data.batch_size) == (4, True, 32)
    assert all((each.devices, each.compile, each.micro_batch) == (1, False, 8) for each in asked)
    assert any("about 1:02 of computing on 4 such devices" in each for each in said)  # 193 passes of 4 steps of 8


def test_sizes_and_shapes_that_are_given_are_kept(fast):
    given = ("--data.image_size", "[32, 64]", "--model.embed_dim", "[8, 16, 24]", "--model.n_iter", "3")
    config, _ = choose_settings(configured(*RECIPE, *given), memory_data(20), CPU)
    assert (config.data.image_size, config.model.patch_size) == ((32, 64), 4)
    assert (config.model.embed_dim, config.model.n_iter, config.model.num_blocks) == ([8, 16, 24], 3, [2, 4, 2])


def test_a_size_that_no_model_here_cuts_is_refused_with_a_remedy(fast):
    with pytest.raises(InputError, match=r"data.image_size is 99, .* give a multiple of 8 pixels, or model.name"):
        choose_settings(configured(*RECIPE, "--data.image_size", "99"), memory_data(20), CPU)


def test_choosing_leaves_the_random_generators_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    small = ("--precision", "32", "--model.embed_dim", "[8,16,24]")
    choose_settings(configured(*RECIPE, *small), memory_data(8), CPU)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("per_class", [1, 2])
def test_too_few_photos_are_refused_in_one_line_with_the_remedy(tmp_path, capsys, per_class):
    folder = photos(tmp_path, [(20, 20)], per_class=per_class)
    assert main(["train", "--data.name", str(folder)]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("imixer: ") and ("add images" in line or "give a share" in line)


def test_two_photos_that_are_split_already_are_refused_too(tmp_path, capsys):
    for part in ("train", "val"):
        photos(tmp_path / part, [(20, 20)], per_class=1).rename(tmp_path / part / "x")
        (tmp_path / "all").mkdir(exist_ok=True)
        (tmp_path / part / "x").rename(tmp_path / "all" / part)
    assert main(["train", "--data.name", str(tmp_path / "all")]) == 2
    assert "2 training images of 2 classes, too few to learn from; add images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sizes", "mode"), [([(50, 40), (300, 20), (9, 12)], "RGB"), ([(700, 900)], "L"), ([(4, 4)], "RGB")]
)
def test_photos_of_any_size_train_and_the_run_has_what_was_chosen(tmp_path, capsys, sizes, mode):
    folder = photos(tmp_path, sizes, ("a", "b", "c"), 5, mode)
    out = tmp_path / "run"
    assert main(["train", "--data.name", str(folder), "--steps", "3", "--logger", "csv", "--out", str(out)]) == 0
    panel = capsys.readouterr().err
    for word in ("batch_size 8, for 12 training images", "image_size ", "model imixer_laptop_32", "keep_decoded true"):
        assert word in panel
    assert "2 of 8 images per epoch; the last one takes 4 images of the one before again" in panel
    config = load_config(out / "config.yaml")
    assert (config.choose, config.steps, config.data.batch_size, config.data.keep_decoded) == ([], 3, 8, True)
    assert config.model.name == "imixer_laptop_32"
    assert main(["train", "--resume", str(out)]) == 0


@pytest.mark.parametrize("balance", ["sampling", "loss"])
def test_classes_of_unequal_size_train_balanced_on_request(tmp_path, monkeypatch, balance):
    built, loss = [], Classification.loss

    def watch(self, data, config):
        built.append(loss(self, data, config))
        labels = training_labels(data, "balance")
        assert np.bincount(labels).tolist() == [6, 2]
        expected = inverse_class_sizes(labels, 2) if balance == "loss" else None
        assert built[-1].weights == expected
        return built[-1]

    monkeypatch.setattr(Classification, "loss", watch)
    folder = photos(tmp_path, [(20, 20)], per_class=8)
    for number in range(5):
        (folder / "dog" / f"{number}.png").unlink()
    words = ["--data.balance", balance, "--steps", "2", "--logger", "csv", "--out", str(tmp_path / "run")]
    assert main(["train", "--data.name", str(folder), *words]) == 0
    assert built


def test_held_out_images_that_are_kept_look_as_if_they_were_read_anew(tmp_path):
    config = DataConfig(crop="resized", scale=(0.25, 1.0), crop_pct=0.9)
    data = open_folder(photos(tmp_path, [(500, 300), (20, 33), (64, 64)], per_class=8), config)
    kept = keep_images(data, config, (3, 64, 64))
    transform = eval_transform((3, 64, 64), data.mean, data.std, config.crop_pct, config.interpolation)
    for number in range(len(data.val)):
        assert torch.equal(transform(data.val[number][0]), transform(kept.val[number][0]))
        assert data.val[number][1] == kept.val[number][1]
    assert {min(kept.train[number][0].size) for number in range(len(kept.train))} == {128, 20, 64}  # never enlarged


def test_the_pipeline_device_takes_the_images_as_they_are_and_not_those_that_would_be_kept():
    config = TrainConfig(data=DataConfig(keep_decoded=True, pipeline="device", crop="resized", batch_size=6))
    built = Classification().build_batches(memory_data(12), config, (1, 16, 16), device=CPU, shard=BatchShard())
    assert [len(batches) for batches in built] == [2, 1]
    assert built[0].resident.images.shape == (12, 1, 40, 40)


def test_images_that_do_not_fit_into_memory_are_not_kept(monkeypatch, fast):
    monkeypatch.setattr(photo_settings, "free_memory", lambda device: 1000)
    assert not choose_settings(configured(*RECIPE), memory_data(20), CPU)[0].data.keep_decoded


def test_a_sweep_over_the_recipe_is_refused(tmp_path, capsys):
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"recipe": "photos", "set": {"data.name": "x"}, "grid": {"optim.lr": [1.0, 2.0]}}))
    assert main(["sweep", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "start from the config.yaml of a finished run" in capsys.readouterr().err


def test_steps_shorten_a_warm_up_in_epochs_to_the_run():
    from imixer.training.budget import for_steps

    config = for_steps(TrainConfig(steps=5), 5, 3)
    assert (config.epochs, config.schedule.warmup_epochs) == (2, 1)
