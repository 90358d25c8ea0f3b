"""Fine-tuning trains what it says, leaves the rest as it was, and starts from a run, a file, timm or a Mixer."""

import json
import re
import shutil
from dataclasses import asdict, replace

import huggingface_hub
import pytest
import timm
import torch
import yaml
from lightning.fabric import Fabric
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import nn

from imixer.cli import main
from imixer.data.config import DataConfig
from imixer.errors import InputError
from imixer.models import read_mixer
from imixer.recipes import finetune_settings
from imixer.training import initial_weights
from imixer.training.finetune import describe_parameters, freeze
from imixer.training.initial_weights import find_start, load_weights
from imixer.training.model import BuiltModel, build_model
from imixer.training.optimizer import build_optimizer, build_scheduler, step_scheduler
from imixer.training.run.config import ModelConfig, OptimConfig, ScheduleConfig, TrainConfig
from imixer.training.run.directory import RunDirectory
from imixer.training.run.parsing import build_config, expand_config_flags, flatten, load_config, parse, train_parser
from imixer.training.same_data import check_same_start
from imixer.training.tasks.segmentation import with_head
from imixer.training.train_state import TrainState
from imixer.weights import find_packaged

SIZES = {"num_blocks": 2, "embed_dim": 16, "num_classes": 5, "in_chans": 1}


@pytest.fixture(scope="module")
def mixer_run(train_quick, tmp_path_factory):
    """A finished run of a Mixer of one block and 16 channels."""
    return train_quick(tmp_path_factory.mktemp("mixer") / "run", "--model.name", "mixer_t2_8")


def configured(*words):
    return build_config(parse(train_parser(), expand_config_flags(words)))


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def trained_parameters(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_each_part_is_what_its_name_says():
    for part in ("head", "last", "all"):
        model = timm.create_model("imixer_t2_8", **SIZES)
        freeze(model, part, "imixer_t2_8")
        names = {name for name, _ in model.named_parameters()}
        begins = {"head": ("head.",), "last": ("head.", "norm.", "blocks.1."), "all": ("",)}[part]
        assert trained_parameters(model) == {name for name in names if name.startswith(begins)}


@pytest.mark.parametrize(
    ("name", "args", "part"),
    [
        ("convnext_atto", {"depths": (1, 1, 1, 2), "dims": (8, 8, 8, 8)}, "stages.3.blocks.1."),
        ("vit_tiny_patch16_224", {"depth": 2, "embed_dim": 48, "global_pool": "avg", "img_size": 32}, "blocks.1."),
    ],
)
def test_the_last_block_is_trained_where_a_norm_stands_before_the_classifier(name, args, part):
    model = timm.create_model(name, num_classes=3, **args)
    freeze(model, "last", name)
    trained = trained_parameters(model)
    assert any(each.startswith(part) for each in trained)
    assert {each for each in trained if not each.startswith(part)} == {
        each for each, _ in model.named_parameters() if each.startswith(("head.", "fc_norm."))
    }


def test_other_models_of_timm_can_be_frozen_too():
    model = timm.create_model("resnet18", num_classes=3)
    freeze(model, "last", "resnet18")
    assert {name.split(".")[0] for name in trained_parameters(model)} == {"layer4", "fc"}
    with pytest.raises(InputError, match="does not know the classifier"):
        freeze(nn.Linear(2, 2), "head", "linear")


def segmenter(backbone="imixer_t2_8", args=None, **more):
    args = {"num_blocks": 2, "embed_dim": 16} if args is None else args
    return timm.create_model("segmenter", backbone=backbone, backbone_args=args, num_classes=5, **more)


@pytest.mark.parametrize("head", ["linear", "multilevel"])
def test_all_that_follows_the_backbone_of_a_segmentation_is_its_head_and_no_new_weight_is_frozen(head):
    for part, more in (("head", ()), ("last", ("backbone.model.blocks.1.",))):
        model = segmenter(head=head, in_chans=1)
        freeze(model, part, "imixer_t2_8")
        names = {name for name, _ in model.named_parameters()}
        assert trained_parameters(model) == {n for n in names if not n.startswith("backbone.") or n.startswith(more)}


def stepped(model, steps=3, **config):
    config = TrainConfig(model=ModelConfig(pretrained=True), **config)
    state = TrainState(Fabric(accelerator="cpu", devices=1), config, model, steps_per_epoch=5)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        batch = torch.rand(8, *([1, 8, 8]), generator=generator), torch.arange(8) % 5
        state.gradient([batch], step)
        state.optimizer_step(step)
    return state


@pytest.mark.parametrize("opt", ["adamw", "muon"])
@pytest.mark.parametrize("options", [{}, {"legacy": True}, {"norm": "batch"}], ids=str)
def test_what_is_frozen_stays_bit_for_bit_buffers_included(options, opt):
    model = timm.create_model("imixer_t2_8", **SIZES, **options)
    freeze(model, "last", "imixer_t2_8")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = stepped(
        model, optim=OptimConfig(opt=opt, weight_decay=0.5), schedule=ScheduleConfig(warmup_epochs=0), ema=0.9
    )
    for name, value in model.state_dict().items():
        frozen = name.startswith(("stem.", "blocks.0."))
        assert torch.equal(value, before[name]) == (frozen or value.numel() == 0), name
    for name, value in state.eval_model.named_parameters():
        if name.startswith(("stem.", "blocks.0.")):
            assert torch.equal(value, before[name]), name


def test_power_iterations_of_trained_weights_still_run():
    model = timm.create_model("imixer_t2_8", **SIZES)
    freeze(model, "last", "imixer_t2_8")
    layers = [block.mlp_tokens.contraction.fc1 for block in model.blocks]
    v = [layer.v.clone() for layer in layers]
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.randn(16, 8))
    model.train()(torch.rand(2, 1, 8, 8))
    moved = [not torch.equal(layer.v, old) for layer, old in zip(layers, v, strict=True)]
    assert moved == [False, True]


def scales(model, config):
    optimizer = build_optimizer(model, config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scheduler, _ = build_scheduler(optimizer, ScheduleConfig(warmup_epochs=0), 2, 5)
    step_scheduler(scheduler, 3, 5)
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    plain = build_optimizer(nn.Linear(2, 2), OptimConfig(lr=config.lr))
    scheduler, _ = build_scheduler(plain, ScheduleConfig(warmup_epochs=0), 2, 5)
    step_scheduler(scheduler, 3, 5)
    assert rates.keys() == trained_parameters(model)
    return {name: rate / plain.param_groups[0]["lr"] for name, rate in rates.items()}


@pytest.mark.parametrize("opt", ["adamw", "muon"])
def test_F_and_early_blocks_have_learning_rates_of_their_own_along_the_schedule(opt):
    model = timm.create_model("imixer_t2_8", **SIZES)
    found = scales(model, OptimConfig(opt=opt, layer_decay=0.5, contraction_lr_scale=4.0))
    depth = {"head": 0, "norm": 1, "blocks.1": 1, "blocks.0": 2, "stem": 3}
    for name, scale in found.items():
        layer = next(each for each in depth if name.startswith(each))
        assert scale == pytest.approx(0.5 ** depth[layer] * (4 if ".contraction." in name else 1)), name


CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}


@pytest.mark.parametrize(
    ("backbone", "args", "from_the_end"),
    [
        ("imixer_t2_8", None, ["model.blocks.1.", "model.blocks.0.", "model.stem."]),
        ("resnet10t", {}, ["layer4.", "layer3.", "layer2.", "layer1.", ("conv1.", "bn1.")]),
        ("convnext_atto", CONVNEXT, ["stages_3.", "stages_2.", "stages_1.", "stages_0.", "stem_"]),
        ("unet_16", {"widths": (4, 6)}, ["model.up.0.", "model.down.1.", "model.down.0."]),
    ],
)
def test_early_blocks_of_a_segmentation_move_less_and_its_head_does_not(backbone, args, from_the_end):
    found = scales(segmenter(backbone, args), OptimConfig(layer_decay=0.5))
    for name, scale in found.items():
        inner = name.removeprefix("backbone.")
        depth = next((i for i, begin in enumerate(from_the_end, 1) if inner.startswith(begin)), 0)
        assert (depth > 0) == name.startswith("backbone.") and scale == pytest.approx(0.5**depth), name


def test_what_a_backbone_exempts_from_weight_decay_is_exempt_in_a_segmentation():
    model = segmenter("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 12, "num_heads": 1}, img_size=32)
    assert model.no_weight_decay() == {"backbone.model.pos_embed", "backbone.model.cls_token"}


def test_a_backbone_whose_parts_timm_renames_starts_from_its_weights():
    plain = timm.create_model("convnext_atto", num_classes=3, **CONVNEXT)
    built = BuiltModel(plain, "convnext_atto", {**CONVNEXT, "num_classes": 3, "in_chans": 3}, (3, 32, 32))
    model = with_head(built, TrainConfig(task="segment", model=ModelConfig(pretrained=True))).model
    ours, theirs = model.backbone.state_dict(), plain.state_dict()
    for here, there in (("stem_0.weight", "stem.0.weight"), ("stages_1.blocks.0.conv_dw.weight",) * 2):
        assert torch.equal(ours[here], theirs[there.replace("stages_1", "stages.1")])


def test_biases_do_not_decay_beside_scaled_learning_rates():
    model = timm.create_model("imixer_t2_8", **SIZES)
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.1, contraction_lr_scale=2.0))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.0 if parameter.ndim < 2 else 0.1), name


def test_the_learning_rate_that_is_shown_is_not_that_of_a_scaled_group():
    model = timm.create_model("imixer_t2_8", **SIZES)
    optim = OptimConfig(lr=1e-3, layer_decay=0.5)
    state = stepped(model, steps=0, optim=optim, schedule=ScheduleConfig(warmup_epochs=0))
    assert state.lr == pytest.approx(1e-3)


@pytest.mark.parametrize("part", ["head", "last", "all"])
def test_the_flag_brings_its_settings_under_all_others(part, tmp_path):
    words = ["--finetune", part, "--model.checkpoint", "w.pt"]
    brought = flatten(finetune_settings(part))
    assert brought["finetune"] == part and flatten(asdict(configured(*words))).items() >= brought.items()
    assert configured(*words, "--optim.lr", "0.5").optim.lr == 0.5
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"finetune": part, "optim": {"weight_decay": 0.25}}))
    own = configured("--recipe", "digits", "--config", str(file), "--model.checkpoint", "w.pt")
    assert (own.finetune, own.optim.weight_decay, own.optim.lr) == (part, 0.25, configured(*words).optim.lr)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--finetune last", "finetune is last, but there are no weights to start from"),
        ("--finetune middle", "finetune is 'middle'; give one of head, last, all"),
        ("--finetune head --model.from_mixer m", "finetune is head, and F of model.from_mixer m starts as zero"),
        ("--model.from_mixer m --model.pretrained true", "weights can start from one place only"),
        ("--model.from_mixer m --model.checkpoint w", "weights can start from one place only"),
        ("--model.from_mixer mixer_b16", "model.from_mixer: there is no file, directory or timm model 'mixer_b16'"),
        ("--model.from_mixer {run} --model.name mixer_t2_8", "give an imixer_* as model.name"),
        ("--model.from_mixer {run}", "give model.name, such as imixer_s16_224, with model.num_blocks 1"),
        ("--model.from_mixer {run} --model.name imixer_t2_8", "give model.num_blocks 1 and model.embed_dim 16"),
        ("--model.checkpoint .", "is a folder; name a file in it"),
        ("--model.checkpoint nothing.pt", "no file nothing.pt; correct the path"),
        (
            "--model.checkpoint imixer_n2_8.digit",
            "packaged model 'imixer_n2_8.digit'; did you mean imixer_n2_8.digits?",
        ),
        ("--optim.layer_decay 0", "optim.layer_decay is 0.0"),
        ("--optim.contraction_lr_scale 0", "optim.contraction_lr_scale is 0.0"),
    ],
)
def test_what_cannot_be_fine_tuned_is_refused_in_one_line(words, said, mixer_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words.format(run=mixer_run).split()]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("imixer: ") and said in line
    assert not list(tmp_path.iterdir())


def test_a_mixer_with_stages_that_no_imixer_has_by_name_is_refused_with_the_sizes_of_each(tmp_path, monkeypatch):
    sizes = {"num_blocks": [1, 2], "embed_dim": [8, 16], "stem": "whitened", "patch_size": 2, "tokens_dim": [6, 5]}
    file = str(tmp_path / "w.safetensors")
    save_file(timm.create_model("mixer_t2_8", **sizes).state_dict(), file)
    monkeypatch.setattr(initial_weights, "matching_variant", lambda mixer: None)
    said = " and ".join(f"model.{name} {value}" for name, value in sizes.items())
    with pytest.raises(InputError, match=re.escape(f"such as imixer_s16_224, with {said}")):
        find_start(ModelConfig(from_mixer=file))
    named = ModelConfig(name="imixer_s16_224", from_mixer=file, **sizes)
    built = build_model(named, DataConfig(), native_size=(8, 8), in_chans=3, num_classes=2)
    assert torch.equal(built.model.blocks[1].conv.weight, load_file(file)["blocks.1.conv.weight"])


def test_weights_for_images_of_other_channels_are_refused_with_what_to_do():
    model = timm.create_model("imixer_n2_8", in_chans=3, num_classes=10)
    path = find_packaged("imixer_n2_8.digits") / "model" / "model.safetensors"
    with pytest.raises(InputError, match=r"channels: 1, and the data's 3: convert them, or take other weights$"):
        load_weights(model, str(path))


def test_a_run_brings_its_sizes_and_its_preparation_of_images(mixer_run):
    built = build_model(
        ModelConfig(checkpoint=str(mixer_run)), DataConfig(), native_size=(8, 8), in_chans=1, num_classes=3
    )
    assert (built.name, built.args["embed_dim"], built.args["num_blocks"]) == ("mixer_t2_8", 16, 1)
    assert built.model.head.out_features == 3
    assert len(built.preparation["mean"]) == 1
    theirs = weights(mixer_run)
    assert torch.equal(built.model.stem.proj.weight, theirs["stem.proj.weight"])


def directory_of(folder, name, size, **args):
    """A model's directory as a run or a push leaves it, for images of a size, and the model."""
    model = timm.create_model(name, img_size=size, num_classes=4, **args)
    save_for_hf(model, folder, model_args={**args, "img_size": size, "num_classes": 4}, safe_serialization=True)
    return model


@pytest.mark.parametrize("option", ["checkpoint", "from_mixer"])
def test_training_goes_on_at_the_image_size_of_the_weights_unless_another_is_given(tmp_path, option):
    name = "mixer_t2_8" if option == "from_mixer" else "imixer_t2_8"
    theirs = directory_of(tmp_path / "model", name, 16).eval()
    config = ModelConfig(**{option: str(tmp_path / "model")})
    numbers = {"native_size": (8, 8), "in_chans": 3, "num_classes": 4}
    built = build_model(config, DataConfig(), **numbers)
    assert built.input_size == (3, 16, 16)
    images = torch.randn(2, 3, 16, 16)
    assert torch.allclose(built.model.eval()(images), theirs(images), atol=1e-5)
    assert build_model(config, DataConfig(image_size=8), **numbers).input_size == (3, 8, 8)


def test_another_model_of_timm_goes_on_at_the_image_size_of_its_weights_too(tmp_path):
    theirs = timm.create_model("resnet18", num_classes=4)
    theirs.pretrained_cfg["input_size"] = (3, 64, 64)
    save_for_hf(theirs, tmp_path, model_args={"num_classes": 4}, safe_serialization=True)
    built = build_model(
        ModelConfig(checkpoint=str(tmp_path)), DataConfig(), native_size=(32, 32), in_chans=3, num_classes=4
    )
    assert built.input_size == (3, 64, 64)


def test_it_is_said_that_token_mixing_is_resampled_and_between_which_grids(tmp_path):
    directory_of(tmp_path / "model", "imixer_t2_8", 16)
    start = find_start(ModelConfig(checkpoint=str(tmp_path / "model")))
    report = start.load_into(timm.create_model("imixer_t2_8", num_classes=4))
    assert "token mixing resampled from 8x8 to 4x4 tokens" in report


def test_a_folder_of_timms_hub_without_arguments_of_the_model_is_one(tmp_path):
    theirs = timm.create_model("resnet18", num_classes=4)
    save_for_hf(theirs, tmp_path, safe_serialization=True)
    packed = json.loads((tmp_path / "config.json").read_text())
    packed.pop("model_args", None)
    (tmp_path / "config.json").write_text(json.dumps(packed))
    start = find_start(ModelConfig(checkpoint=str(tmp_path)))
    assert (start.name, start.args) == ("resnet18", {})


def test_the_weights_in_a_models_folder_bring_what_the_folder_says(mixer_run):
    file, folder = mixer_run / "model" / "model.safetensors", mixer_run / "model"
    assert find_start(ModelConfig(checkpoint=str(file))) == find_start(ModelConfig(checkpoint=str(folder)))
    assert read_mixer(str(file)).preparation == read_mixer(str(folder)).preparation


def test_the_record_of_another_library_beside_weights_is_not_read(mixer_run, tmp_path):
    save_file(weights(mixer_run), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architectures": ["Other"]}')
    start = find_start(ModelConfig(checkpoint=str(tmp_path / "model.safetensors")))
    assert (start.name, start.path) == (None, str(tmp_path / "model.safetensors"))


def test_a_model_of_the_hub_is_fetched_by_its_id(mixer_run, monkeypatch):
    asked = []

    def fetch(repository, **options):
        asked.append((repository, options["revision"]))
        return str(mixer_run / "model")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert find_start(ModelConfig(checkpoint="hf-hub:ada/digits")).name == "mixer_t2_8"
    find_start(ModelConfig(checkpoint="hf-hub:ada/digits@v2"))
    assert asked == [("ada/digits", None), ("ada/digits", "v2")]


@pytest.mark.parametrize("name", ["hf-hub:ada/digits", "hf-hub:a/b/c", "hf-hub:"])
def test_a_model_that_the_hub_does_not_give_is_refused_in_one_line(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"could not be fetched \(.*\); check the name and the network"):
        find_start(ModelConfig(checkpoint=name))


def test_a_model_of_the_hub_as_the_models_name_is_told_its_option():
    with pytest.raises(InputError, match=r"give hf-hub:ada/digits as model\.checkpoint"):
        build_model(ModelConfig(name="hf-hub:ada/digits"), DataConfig(), native_size=(8, 8), in_chans=1, num_classes=3)


@pytest.mark.usefixtures("undrawn")
def test_a_packaged_model_is_fine_tuned_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    flags = ["--model.checkpoint", "imixer_n2_8.digits", "--finetune", "head", "--data.batch_size", "256"]
    assert main(["train", "--epochs", "1", "--out", str(run), *flags]) == 0
    packaged, after = weights(find_packaged("imixer_n2_8.digits")), weights(run)
    changed = {name for name, value in after.items() if not torch.equal(value, packaged[name].to(value.dtype))}
    assert changed == {"head.weight", "head.bias"}
    config = load_config(run / "config.yaml")
    assert (config.model.name, config.model.checkpoint) == ("imixer_n2_8", "imixer_n2_8.digits")
    (run / "model" / "model.safetensors").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert all(torch.equal(after[name], value) for name, value in weights(run).items())


def test_an_imixer_run_starts_from_a_mixer_run_and_resumes(mixer_run, tmp_path, train_quick, capsys):
    flags = ["--model.name", "imixer_t2_8", "--model.from_mixer", str(mixer_run), "--finetune", "last"]
    run = train_quick(tmp_path / "run", *flags, "--data.batch_size", "256")
    shown = capsys.readouterr().err
    assert f"weights taken from the Mixer {mixer_run}, F starts as zero" in shown
    assert re.search(r"[\d,]+ of [\d,]+ parameters are trained: the last block and the head", shown)
    assert "normalised as for the weights to start from" in shown
    before, after = weights(mixer_run), weights(run)
    assert torch.equal(before["stem.proj.weight"], after["stem.proj.weight"])
    assert after["blocks.0.mlp_tokens.contraction.fc2.weight"].any()
    (run / "model" / "model.safetensors").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert all(torch.equal(after[name], value) for name, value in weights(run).items())


def test_a_run_goes_on_wherever_the_weights_it_began_with_lie_by_now(mixer_run, tmp_path, train_quick, capsys):
    start, moved, other = (tmp_path / name for name in ("start", "moved", "other"))
    shutil.copytree(mixer_run, start)
    flags = ["--model.checkpoint", str(start), "--data.batch_size", "256"]
    run = train_quick(tmp_path / "run", *flags, "--epochs", "1", "--schedule.warmup_epochs", "0")
    whole = weights(run)
    (run / "model" / "model.safetensors").unlink()
    start.rename(moved)
    resume = ["train", "--resume", str(run)]
    assert main(resume) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{start}, which {run} began with, is gone; say with --model.checkpoint where it lies now" in line
    shutil.copytree(moved, other)
    record = json.loads((other / "model" / "config.json").read_text())
    record["pretrained_cfg"]["mean"] = [0.25]
    (other / "model" / "config.json").write_text(json.dumps(record))
    assert main([*resume, "--model.checkpoint", str(other)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"the weights of {other} are of another model, or for images prepared otherwise" in line
    assert main([*resume, "--model.checkpoint", str(moved)]) == 0
    assert all(torch.equal(whole[name], value) for name, value in weights(run).items())
    assert load_config(run / "config.yaml").model.checkpoint == str(moved)


def test_gray_images_are_normalised_as_colours_that_are_all_normalised_alike(tmp_path, train_quick, capsys):
    mixer = timm.create_model("mixer_t2_8", num_blocks=1, embed_dim=16, num_classes=4)
    mixer.pretrained_cfg.update(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    args = {"num_blocks": 1, "embed_dim": 16, "num_classes": 4}
    save_for_hf(mixer, tmp_path / "model", model_args=args, safe_serialization=True)
    train_quick(tmp_path / "run", "--model.name", "imixer_t2_8", "--model.from_mixer", str(tmp_path / "model"))
    assert "normalised as for the weights to start from: mean 0.5, std 0.25" in capsys.readouterr().err


def test_the_head_alone_of_a_file_is_fine_tuned(mixer_run, tmp_path, train_quick, capsys):
    path = tmp_path / "w.safetensors"
    save_file(weights(mixer_run), path)
    run = train_quick(
        tmp_path / "head", "--model.name", "mixer_t2_8", "--model.checkpoint", str(path), "--finetune", "head",
        "--data.batch_size", "256",
    )  # fmt: skip
    said = "normalised by their own mean and deviation, as the weights to start from do not say how theirs were"
    assert said in " ".join(capsys.readouterr().err.split())
    changed = {name for name, value in weights(run).items() if not torch.equal(value, weights(mixer_run)[name])}
    assert changed == {"head.weight", "head.bias"}


def test_the_panel_counts_what_is_trained():
    model = timm.create_model("mixer_t2_8", **SIZES)
    total = sum(p.numel() for p in model.parameters())
    assert describe_parameters(model, None) == f"{total:,} parameters"
    freeze(model, "head", "mixer_t2_8")
    assert describe_parameters(model, "head") == f"85 of {total:,} parameters are trained: the head"


def test_a_checkpoint_that_does_not_say_what_it_began_with_takes_no_other_weights(tmp_path):
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(InputError, match=r"do not say which weights it was begun with, and other may be others; put"):
        check_same_start({"step": 1}, "a", "other", run)
    check_same_start({"built": "a"}, "a", "other", run)


@pytest.mark.parametrize("name", ["max_steps", "on_failure"])
def test_what_may_change_on_a_resumption_is_no_part_of_what_a_model_is_with_a_head_of_its_own_either(name):
    plain = BuiltModel(nn.Identity(), "imixer_t2_8", {"n_iter": 2}, (1, 8, 8))
    headed = BuiltModel(nn.Identity(), "segmenter", {"backbone": "x", "backbone_args": {"n_iter": 2}}, (1, 8, 8))
    assert replace(plain, args={**plain.args, name: 3}).identity == plain.identity
    inner = {**headed.args["backbone_args"], name: 3}
    assert replace(headed, args={**headed.args, "backbone_args": inner}).identity == headed.identity
    inner = {"n_iter": 3}
    assert replace(headed, args={**headed.args, "backbone_args": inner}).identity != headed.identity
