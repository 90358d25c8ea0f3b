"""What the page of `imixer explore` shows is what the model and the memory compute; no server is needed to ask."""

import io
import json
import math
import socket
import sys
from dataclasses import asdict
from itertools import pairwise

import pytest
import torch
from PIL import Image

from imixer.analysis.energy import energy_along_depth
from imixer.analysis.explore.digit_recall import recall_digit, spoil_digit, stored_digits
from imixer.analysis.explore.explorer import Explorer
from imixer.analysis.explore.inspection import inspect_image, most_iterations
from imixer.analysis.explore.loopback import is_local_name, listen, url_of
from imixer.analysis.explore.stored_images import BETA, store_images
from imixer.analysis.features import features_at
from imixer.cli import main
from imixer.errors import InputError
from imixer.hopfield.memory import AssociativeMemory
from imixer.hopfield.memory_kinds import BINARY
from imixer.models import IMLP
from imixer.training.finished_run import load_run
from imixer.training.predict import predict


@pytest.fixture(scope="module")
def finished(run):
    return load_run(str(run), "cpu")


@pytest.fixture(scope="module")
def image(finished):
    return finished.transform(finished.data().val[0][0])


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def state_of(model):
    imlps = [module for module in model.modules() if isinstance(module, IMLP)]
    return [(imlp.n_iter, imlp.inversion) for imlp in imlps]


def png(image, kind="PNG"):
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


# A run


def test_the_classes_are_those_that_predict_tells(finished, run, image):
    (first, *_), _ = predict(str(run), device="cpu")
    shown = dict(inspect_image(finished, image).classes)
    assert list(shown) == list(first.classes)
    assert list(shown.values()) == pytest.approx(first.probabilities, abs=1e-6)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_n_iterations_are_those_of_a_model_that_is_set_to_n(finished, run, image, n):
    other = load_run(str(run), "cpu")
    other.model.n_iter = n
    logits = other.model(image[None])[0].detach()
    found = inspect_image(finished, image, n_iter=n)
    name, chance = found.classes[0]
    assert name == finished.class_names[int(logits.argmax())]
    assert chance == pytest.approx(float(logits.softmax(0).max()), abs=1e-6)
    assert [block.evaluations for block in found.blocks] == [n] * len(found.blocks)
    # a network of the same n, for the energy; and the maps after that many iterations
    for step, expected in zip(found.energies, energy_along_depth(other.model, image[None]), strict=True):
        assert (step.block, step.mixing, step.verdict) == (expected.block, expected.mixing, expected.verdict)
        assert (step.before, step.after) == pytest.approx((float(expected.before), float(expected.after)), rel=1e-4)
    assert found.features.iterations[-1] == max(1, n)


def test_the_residuals_are_those_of_the_plain_iteration_in_float64(finished, image):
    imlp = next(module for module in finished.model.modules() if isinstance(module, IMLP))
    seen = []
    hook = imlp.fc_in.register_forward_hook(lambda module, args, output: seen.append(output))
    found = inspect_image(finished, image, n_iter=12)
    hook.remove()
    z, x = seen[0].double(), seen[0].double()
    for residual in found.blocks[0].residuals:
        moved = z + imlp.contraction(x.float(), imlp.contraction.weights(), 2).double()
        expected = ((moved - x).norm() / moved.norm()).item()
        assert residual == pytest.approx(expected, rel=2e-2, abs=1e-7)
        x = moved
    assert len(found.blocks[0].residuals) == 12
    # what n iterations leave is what iteration n + 1 would change, measured beside it
    assert inspect_image(finished, image, n_iter=3).blocks[0].left == pytest.approx(
        found.blocks[0].residuals[3], rel=1e-2
    )


def test_a_tolerance_is_met_and_the_first_step_that_meets_it_is_named(finished, image):
    for tolerance in (1e-1, 1e-4):
        for block in inspect_image(finished, image, tolerance=tolerance).blocks:
            assert block.met
            steps = block.evaluations
            assert block.residuals[steps - 1] <= tolerance * 1.01
            assert steps == 1 or block.residuals[steps - 2] > tolerance * 0.99


def test_the_feature_maps_are_those_of_analyze_features(finished, image):
    found = inspect_image(finished, image, n_iter=30).features
    expected = features_at(finished.model, image, n_iter=30)
    assert found.channels == expected.channels(6)
    assert found.iterations[0] == 0 and found.iterations[-1] == 30 and len(found.iterations) == 8
    ours = torch.tensor(found.maps)[:, -1]
    assert torch.allclose(ours, expected.maps[30, list(found.channels)].float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("chosen", [{"n_iter": 7}, {"tolerance": 1e-3}, {}])
def test_the_model_is_left_as_it_was_and_the_answer_is_json(finished, image, chosen):
    before = state_of(finished.model)
    json.dumps(asdict(inspect_image(finished, image, **chosen)), allow_nan=False)
    assert state_of(finished.model) == before


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"n_iter": -1}, "n_iter is -1; give 0 to 100"),
        ({"n_iter": 101}, "n_iter is 101; give 0 to 100"),
        ({"tolerance": 0.0}, "tolerance is 0"),
        ({"tolerance": 1.0}, "tolerance is 1"),
        ({"tolerance": math.nan}, "tolerance is nan"),
        ({"n_iter": 2, "tolerance": 0.1}, "leave one of them out"),
        ({"block": 9}, "block is 9"),
        ({"top": 0}, "top is 0"),
    ],
)
def test_what_is_out_of_range_is_named(finished, image, chosen, message):
    with pytest.raises(InputError, match=message):
        inspect_image(finished, image, **chosen)


def test_a_mixer_has_classes_and_energies_and_a_sentence_in_place_of_iterations(mixer_run):
    mixer = load_run(str(mixer_run), "cpu")
    image = mixer.transform(mixer.data().val[0][0])
    found = inspect_image(mixer, image)
    assert len(found.classes) == 5 and len(found.energies) == 2 and found.blocks == () and found.features is None
    assert "no block with an inverse" in found.notes["blocks"]
    with pytest.raises(InputError, match="does not iterate; leave it out"):
        inspect_image(mixer, image, n_iter=2)


def test_nested_inverses_are_given_fewer_iterations(train_quick, tmp_path):
    nested = load_run(str(train_quick(tmp_path / "deep", "--model.num_layers", "5")), "cpu")
    assert most_iterations(nested.model) == 21  # 21^3 < 10,000 < 22^3
    image = nested.transform(nested.data().val[0][0])
    found = inspect_image(nested, image, n_iter=3)
    assert found.blocks[0].evaluations == 3 and found.energies
    with pytest.raises(InputError, match="give 0 to 21"):
        inspect_image(nested, image, n_iter=22)


def test_a_model_that_solves_to_a_tolerance_is_shown_so_and_may_be_cut_off(train_quick, tmp_path):
    solving = load_run(str(train_quick(tmp_path / "solved", "--model.solver", "anderson")), "cpu")
    image = solving.transform(solving.data().val[0][0])
    own, cut = inspect_image(solving, image), inspect_image(solving, image, n_iter=1)
    assert own.setting == "solved by anderson to a tolerance of 0.0001, as trained"
    assert own.blocks[0].evaluations is None and own.blocks[0].left <= 1e-3
    assert cut.blocks[0].evaluations == 1 and cut.blocks[0].left > own.blocks[0].left


# Its images


def test_a_stored_image_is_nearest_to_itself_and_shares_are_a_softmax_of_cosines(finished):
    data = finished.data()
    stored = store_images(finished, data, 50)
    place = stored.places[7]
    near = stored.nearest(finished.model, finished.transform(data.train[place][0]), count=50)
    assert near[0].place == place and near[0].cosine == pytest.approx(1, abs=1e-5)
    assert near[0].class_name == data.class_names[data.train[place][1]]
    assert [each.cosine for each in near] == sorted((each.cosine for each in near), reverse=True)
    expected = torch.tensor([each.cosine for each in near]).mul(BETA).softmax(0)
    assert [each.share for each in near] == pytest.approx(expected.tolist(), abs=1e-4)


def test_an_image_that_is_given_is_treated_like_a_held_out_one_and_nothing_is_written(finished, run, elsewhere):
    before = contents(run)
    explorer = Explorer(finished, patterns=20)
    digit = finished.data().val[3][0]
    given = explorer.inspect(png(digit), None, 4, None, None)
    own = explorer.inspect(None, 3, 4, None, None)
    assert given["truth"] is None and own["truth"] is not None
    assert {**given, "truth": None} == {**own, "truth": None}
    assert explorer.nearest(png(digit.convert("RGB")), None)["stored"] == 20
    with Image.open(io.BytesIO(explorer.thumbnail("training", 5))) as picture:
        assert picture.tobytes() == finished.data().train[5][0].tobytes()
    assert contents(run) == before and list(elsewhere.iterdir()) == []


LARGE, BOMB = png(Image.new("1", (8_000, 8_000))), png(Image.new("1", (20_000, 20_000)))


@pytest.mark.parametrize(
    ("upload", "held_out", "message"),
    [
        (b"", None, "it is empty"),
        (b"GIF89a nonsense", None, "not an image that Pillow can read; give a complete image file"),
        (png(Image.new("L", (64, 64), 9))[:60], None, "cannot read the image"),
        (LARGE, None, "8000 x 8000 pixels, more than 50,000,000"),
        (BOMB, None, "exceeds limit"),
        (b"x" * (2**24 + 1), None, "larger than 16 MB"),
        (None, None, "drop a file or choose a held-out image"),
        (None, -1, "there is no held-out image -1; give 0 to 359"),
        (None, 360, "there is no held-out image 360"),
    ],
)
def test_an_image_that_is_none_is_named_in_a_line(finished, upload, held_out, message):
    with pytest.raises(InputError, match=message) as caught:
        Explorer(finished).inspect(upload, held_out, None, None, None)
    assert "\n" not in str(caught.value)


def test_without_its_data_a_run_looks_at_files_and_says_why(finished, monkeypatch):
    digit = finished.data().val[0][0]

    def gone(self, path=None):
        raise InputError("no data folder x; give --data")

    monkeypatch.setattr("imixer.training.finished_run.FinishedRun.data", gone)
    explorer = Explorer(finished)
    assert explorer.facts["held_out"] == 0 and "no data folder x" in explorer.facts["without_data"]
    assert explorer.inspect(png(digit), None, None, None, None)["classes"]
    for ask in (lambda: explorer.nearest(png(digit), None), lambda: explorer.thumbnail("held-out", 0)):
        with pytest.raises(InputError, match="not at hand: no data folder x"):
            ask()
    with pytest.raises(InputError, match="no data folder x"):
        Explorer(finished, data_path="x")


# A memory of digits


@pytest.mark.parametrize("kind", ["classical", "polynomial", "exponential", "modern", "hierarchical"])
@pytest.mark.parametrize("motion", ["steps", "slow"])
def test_the_energy_falls_until_a_digit_is_back(kind, motion):
    digits = stored_digits(kind, 3)
    spoilt = spoil_digit(digits.pictures[2], kind=kind, noise=0.1)
    found = recall_digit(spoilt.picture, kind=kind, stored=3, motion=motion)
    assert found.converged and found.name == digits.names[found.nearest]
    assert found.nearest == 2 or kind == "classical"  # which takes one 0 for another
    assert found.frames[0] == pytest.approx(spoilt.picture, abs=1e-3)
    assert all(after <= before + 1e-9 * abs(before) for before, after in pairwise(found.energies))
    guaranteed = motion == "steps" and kind != "hierarchical"
    assert found.verdict == ("guaranteed" if guaranteed else "observed")
    assert digits.binary == (kind in BINARY)


def test_whole_steps_are_those_of_the_memory():
    digits = stored_digits("modern", 20)
    spoilt = spoil_digit(digits.pictures[2], noise=0.6, seed=3)
    found = recall_digit(spoilt.picture, motion="steps")
    memory = AssociativeMemory(torch.tensor(digits.pictures, dtype=torch.float64).view(-1, 8, 8), "modern")
    path = memory.retrieve(torch.tensor(spoilt.picture, dtype=torch.float64).view(1, 8, 8), until=1e-3)
    assert len(found.frames) == int(path.steps[0])  # the last of which changes nothing more
    for i, (frame, energy) in enumerate(zip(found.frames, found.energies, strict=True)):
        assert frame == pytest.approx(path.states[i].flatten().tolist(), abs=2e-3)
        assert energy == pytest.approx(float(path.energies[i]), rel=1e-3)


def test_slow_steps_go_a_fifth_of_the_way():
    digits = stored_digits("modern", 20)
    spoilt = spoil_digit(digits.pictures[2], noise=0.3)
    whole, slow = (recall_digit(spoilt.picture, motion=motion).frames for motion in ("steps", "slow"))
    expected = [0.8 * start + 0.2 * end for start, end in zip(whole[0], whole[1], strict=True)]
    assert slow[1] == pytest.approx(expected, abs=2e-3)


def test_hidden_pixels_come_back_while_the_others_are_held():
    digits = stored_digits("modern", 20)
    spoilt = spoil_digit(digits.pictures[4], noise=0.0, mask="top")
    assert spoilt.known == [False] * 32 + [True] * 32 and spoilt.picture[:32] == [0.0] * 32
    found = recall_digit(spoilt.picture, spoilt.known)
    assert found.retrieved and found.nearest == 4
    assert all(frame[32:] == found.frames[0][32:] for frame in found.frames)


def test_noise_flips_as_many_pixels_as_it_says_where_there_are_two_values():
    digit = stored_digits("classical", 3).pictures[1]
    spoilt = spoil_digit(digit, kind="classical", noise=0.25).picture
    assert sum(a != b for a, b in zip(digit, spoilt, strict=True)) == 16
    assert spoil_digit(digit, kind="classical", noise=0.25).picture == spoilt
    assert spoil_digit(digit, kind="classical", noise=0.25, seed=1).picture != spoilt


PICTURE = [0.0] * 64


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: recall_digit(PICTURE[1:]), "63 pixels; give 64"),
        (lambda: recall_digit(["x", *PICTURE[1:]]), "a pixel is x"),
        (lambda: recall_digit([math.inf, *PICTURE[1:]]), "a pixel is inf"),
        (lambda: recall_digit([True, *PICTURE[1:]]), "a pixel is True"),
        (lambda: recall_digit(PICTURE, [True] * 64), "every pixel"),
        (lambda: recall_digit(PICTURE, [1] * 64), "known holds 64 values"),
        (lambda: recall_digit(PICTURE, kind="moderm"), "did you mean modern"),
        (lambda: recall_digit(PICTURE, stored=0), "stored is 0; give 1 to 200"),
        (lambda: recall_digit(PICTURE, stored=201), "stored is 201"),
        (lambda: recall_digit(PICTURE, motion="fast"), "choose steps or slow"),
        (lambda: spoil_digit(PICTURE, noise=1.5), "noise is 1.5"),
        (lambda: spoil_digit(PICTURE, noise=math.nan), "noise is nan"),
        (lambda: spoil_digit(PICTURE, mask="half"), "mask is 'half'"),
        (lambda: spoil_digit(PICTURE, seed=-1), "seed is -1"),
    ],
)
def test_what_no_memory_takes_is_named(ask, message):
    with pytest.raises(InputError, match=message):
        ask()


# The command, before it serves


def test_only_this_machine_is_listened_to():
    for host in ("127.0.0.1", "localhost", "127.8.8.8"):
        with listen(host, 0) as opened:
            assert opened.getsockname()[0].startswith("127.")
            assert url_of(opened) == f"http://{opened.getsockname()[0]}:{opened.getsockname()[1]}/"
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org", "", "localhost.example.org", "127.0.0.1.example.org"):
        assert not is_local_name(host)
        with pytest.raises(InputError, match=r"this machine alone; give 127\.0\.0\.1"):
            listen(host, 0)


@pytest.mark.parametrize("port", [-1, 65536, 10**9])
def test_a_port_that_is_none_is_refused(port):
    with pytest.raises(InputError, match=f"port is {port}; give 1 to 65535, or 0"):
        listen("127.0.0.1", port)


def refused(capsys, *words):
    capsys.readouterr()
    assert main(["explore", *words]) == 2
    captured = capsys.readouterr()
    *before, line = captured.err.splitlines()
    assert captured.out == "" and not [text for text in before if text.startswith("imixer: ")]
    return line


@pytest.fixture
def served(monkeypatch):
    """Pass for an installed server, where it is not: what is refused here is refused before it is imported."""
    monkeypatch.setattr("imixer.cli.explore.require_extra", lambda extra, purpose: None)
    if "imixer.analysis.explore.server" not in sys.modules:
        monkeypatch.setitem(sys.modules, "imixer.analysis.explore.server", type(sys)("server"))
        monkeypatch.setattr(sys.modules["imixer.analysis.explore.server"], "serve", None, raising=False)


def test_a_port_in_use_is_named_with_what_to_do(served, run, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        line = refused(capsys, str(run), "--port", str(port))
    assert line == (
        f"imixer: port {port} of 127.0.0.1 is in use; give another with --port, or --port 0 for any that is free"
    )


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["nowhere", "--port", "0"], "no run at nowhere"),
        (["RUN", "--port", "x"], "port is 'x'"),
        (["RUN", "--port", "70000"], "port is 70000; give 1 to 65535"),
        (["RUN", "--port", "0", "--host", "0.0.0.0"], "host is 0.0.0.0, and the page is for this machine alone"),
        (["RUN", "--port", "0", "--patterns", "1"], "patterns is 1"),
        (["RUN", "--port", "0", "--data", "nowhere"], "nowhere"),
        (["RUN", "--port", "0", "--checkpoint", "first"], "checkpoint"),
        (["RUN", "--model", "imixer_n2_8.digits"], "leave one of them out"),
        (["--model", "imixer_n3"], "imixer_n3"),
        ([], "RUN"),
    ],
)
def test_what_cannot_be_explored_is_named_in_a_line(served, run, elsewhere, capsys, words, part):
    assert part in refused(capsys, *(str(run) if word == "RUN" else word for word in words))
    assert list(elsewhere.iterdir()) == []


def test_a_run_without_weights_is_named(served, run, tmp_path, capsys):
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    assert "is not a finished run" in refused(capsys, str(unfinished), "--port", "0")


def test_a_missing_server_is_named_with_what_installs_it(run, without, capsys):
    without("starlette", "uvicorn")
    assert refused(capsys, str(run), "--port", "0") == (
        'imixer: imixer explore needs starlette, uvicorn, not installed here; pip install "imixer[explore]"'
    )
