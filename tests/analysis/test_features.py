"""Feature maps are those of the model, of the image, block and iterations asked for."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import imixer  # noqa: F401
from imixer.analysis.analyze import analyze
from imixer.analysis.explore.explorer import Explorer
from imixer.analysis.features import features_at
from imixer.analysis.views import attribution, features
from imixer.analysis.views.features import ANALYSIS
from imixer.cli import main
from imixer.errors import InputError
from imixer.models.probe import number_ranges
from imixer.plotting import save_print_figure
from imixer.training.finished_run import load_run
from imixer.training.predict import predict

IMAGE = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0))


def create(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("imixer_t2_8", img_size=(8, 12), num_blocks=3, embed_dim=16, **kwargs).eval()


@pytest.mark.parametrize(
    ("numbers", "said"), [((0,), "0"), ((0, 1, 2), "0 to 2"), ((0, 2, 3, 4, 7), "0, 2 to 4, 7")], ids=str
)
def test_numbers_of_blocks_with_gaps_are_written_as_ranges(numbers, said):
    assert number_ranges(numbers) == said


@pytest.mark.parametrize("kwargs", [dict(), dict(tied=True), dict(num_layers=4)], ids=str)
def test_the_maps_are_what_the_block_would_add_after_each_number_of_iterations(kwargs):
    model = create(n_iter=4, **kwargs)
    found = features_at(model, IMAGE, block=1)
    assert found.x.shape == (5, 16, 8) and found.maps.shape == (5, 16, 4, 6)
    seen = {}
    model.blocks[1].mlp_tokens.register_forward_hook(lambda mlp, args, output: seen.update(v=args[0], output=output))
    model(IMAGE[None])
    torch.testing.assert_close(found.maps[-1].float(), seen["output"][0].unflatten(-1, (4, 6)))
    if "num_layers" not in kwargs:  # where n_iter would change F itself
        for a in range(5):
            model.blocks[1].mlp_tokens.n_iter = a
            output = model.blocks[1].mlp_tokens(seen["v"])[0]
            torch.testing.assert_close(found.maps[a].float(), output.unflatten(-1, (4, 6)))


def test_changes_are_relative_to_the_last():
    found = features_at(create(n_iter=2), IMAGE)
    assert found.block == 2
    for a in range(2):
        for changes, values in ((found.changes_of_x, found.x), (found.changes_of_maps, found.maps)):
            torch.testing.assert_close(changes[a], (values[a + 1] - values[a]).norm() / values[2].norm())


def test_the_most_varied_channels_come_first():
    found = features_at(create(), IMAGE)
    spreads = [float(found.maps[-1, channel].std()) for channel in found.channels(99)]
    assert len(spreads) == 16 and spreads == sorted(spreads, reverse=True)


@pytest.mark.parametrize(
    ("kwargs", "options", "named"),
    [
        (dict(), dict(block=3), "block is 3.* 0 to 2"),
        (dict(), dict(block=-1), "block is -1"),
        (dict(n_iter=0), dict(), "n_iter is 0"),
        (dict(num_layers=2), dict(), "nothing to draw"),
    ],
)
def test_what_is_not_there_is_refused(kwargs, options, named):
    with pytest.raises(InputError, match=named):
        features_at(create(**kwargs), IMAGE, **options)


@pytest.mark.parametrize(("embed_dim", "layout"), [(32, (4, 4)), (16, (1, 8))])
def test_inner_states_are_squares_or_rows(embed_dim, layout):
    torch.manual_seed(0)
    found = features_at(timm.create_model("imixer_t2_8", img_size=(8, 12), embed_dim=embed_dim).eval(), IMAGE)
    assert found.states.shape == (3, embed_dim, *layout)
    torch.testing.assert_close(found.states.flatten(2), found.x)
    states, maps = found.explanations
    assert f"the {embed_dim // 2} numbers" in states and ("4 x 4" in states or "one row" in states)
    assert "H(x^a)" in maps and "4 x 6 tokens" in maps


@pytest.mark.usefixtures("unsaved")
@pytest.mark.parametrize("embed_dim", [32, 16])
def test_states_and_maps_are_drawn_in_rows_of_their_own(embed_dim):
    torch.manual_seed(0)
    found = features_at(timm.create_model("imixer_t2_8", img_size=(8, 12), embed_dim=embed_dim).eval(), IMAGE)
    figure = features.draw(found, channels=2)
    picture, *axes = figure.axes
    assert picture.images[0].get_array().shape == (8, 12, 3)
    expected = []
    for channel in found.channels(2):
        for values in (found.states[:, channel], found.maps[:, channel]):
            expected += [*values, *values.diff(dim=0)]
    for each, values in zip(axes, expected, strict=True):
        assert np.asarray(each.images[0].get_array()) == pytest.approx(values.numpy())
    labels = [each.get_ylabel() for each in axes if each.get_ylabel()]
    assert ["H(x^a)" in label for label in labels] == [False, True] * 2
    assert all("x^a" in label and "channel" in label for label in labels)
    said = figure._supxlabel.get_text()
    assert all(f"${name}$: " in said for name in ("x^a", "H(x^a)"))


@pytest.mark.parametrize("n", [1, 9])
def test_the_figure_holds_any_number_of_iterations(n, tmp_path, is_print_pair):
    figure = features.draw(features_at(create(), IMAGE, n_iter=n), channels=1)
    save_print_figure(figure, tmp_path / "features.png")
    is_print_pair(tmp_path / "features.png")


def test_maps_of_zeros_are_drawn(tmp_path):
    model = create()
    for parameter in model.blocks[2].mlp_tokens.fc_out.parameters():
        parameter.data.zero_()
    found = features_at(model, IMAGE, name="an image whose name is long.png")
    assert (found.maps == 0).all()
    save_print_figure(features.draw(found), tmp_path / "features.png")


@pytest.mark.usefixtures("unsaved")
def test_an_image_may_be_held_out_or_a_file(run, tmp_path):
    finished = load_run(str(run))
    image, _ = finished.data().val[7]
    image.save(tmp_path / "seven.png")
    number, file = (analyze(ANALYSIS, str(run), image=image)[0] for image in (7, str(tmp_path / "seven.png")))
    torch.testing.assert_close(number.maps, file.maps)
    assert (number.name, file.name) == ("held-out 7", "seven.png")
    shown = Image.fromarray((number.picture[..., 0] * 255).round().byte().numpy())
    torch.testing.assert_close(finished.transform(shown), finished.transform(image))  # what the model sees


@pytest.mark.parametrize("stored", ["12 bits", "transparent"])
def test_a_file_is_read_as_the_runs_own_images_are(stored, run, tmp_path):
    finished = load_run(str(run), "cpu")
    values = np.random.default_rng(0).integers(0, 1000, (8, 8)).astype(np.uint16)
    shown = (values / 4095 * 255).round().astype(np.uint8)
    if stored == "transparent":
        shown, seen = (values % 256).astype(np.uint8), np.repeat([[0, 255]], 4, 1).repeat(8, 0).astype(np.uint8)
        Image.fromarray(np.stack([shown, seen], 2)).save(tmp_path / "one.png")
        shown = np.where(seen == 0, 0, shown).astype(np.uint8)
    else:
        Image.fromarray(values).save(tmp_path / "one.png")
    data = replace(finished.config.data, value_range=[0, 4095], background="black")
    read = replace(finished, config=replace(finished.config, data=data))
    _, pixels = features.load_one(read, str(tmp_path / "one.png"), None)
    torch.testing.assert_close(pixels, finished.transform(Image.fromarray(shown)), rtol=0, atol=0.02)


@pytest.mark.parametrize(("task", "named"), [("segment", "a segmentation"), ("anomaly", "a detector of anomalies")])
def test_a_run_without_a_class_for_each_image_is_refused_an_image_file_too(task, named, run, tmp_path, monkeypatch):
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    finished = load_run(str(run), "cpu")
    other = replace(finished, config=replace(finished.config, task=task))
    monkeypatch.setattr("imixer.training.predict.load_run", lambda *args: other)
    file = str(tmp_path / "one.png")
    for ask in (
        lambda: features.measure(other, image=file),
        lambda: attribution.measure(other, image=file),
        lambda: Explorer(other),
        lambda: predict("run", [file]),
    ):
        with pytest.raises(InputError, match=named):
            ask()


def test_analyze_features_writes_numbers_and_figures(run, capsys, is_print_pair, request):
    assert main(["analyze", "features", str(run), "--image", "3", "--n_iter", "4"]) == 0
    written = json.loads((run / "analysis" / "features.json").read_text())
    assert (written["image"], written["block"], written["n_iter"]) == ("held-out 3", 0, 4)
    is_print_pair(run / "analysis" / "features.png")
    assert "3 -> 4" in capsys.readouterr().out
    request.getfixturevalue("unsaved")
    found, _ = analyze(ANALYSIS, str(run), image=3, n_iter=4)
    assert written["changes_of_x"] == pytest.approx(found.changes_of_x.tolist())
    assert written["changes_of_maps"] == pytest.approx(found.changes_of_maps.tolist())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--image", "360"], "image is 360; give 0 to 359"),
        (["--image", "-1"], "image is -1"),
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--image", "one.png", "--data", "there"], "data is there, which is not looked at where image is a file"),
        (["--block", "5"], "block is 5"),
        (["--n_iter", "0"], "n_iter is 0"),
        (["--images", "3"], "images is 3"),
    ],
)
def test_bad_input_is_refused_in_one_line(words, named, run, capsys):
    assert main(["analyze", "features", str(run), *words]) == 2
    error = capsys.readouterr().err
    assert named in error and "Traceback" not in error
