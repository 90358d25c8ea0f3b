"""A model handed over: the folder for the hub, and a push to a hub of this machine's own. No network."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from PIL import Image

from imixer.cli import main
from imixer.data.config import DataConfig
from imixer.data.sources.image_files import load_image
from imixer.training.finished_run import load_run
from imixer.training.hub import _about_range, push
from imixer.training.run.checkpoints import Checkpoints
from imixer.training.run.config import TrainConfig


@pytest.fixture(scope="module")
def evaluated_once(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    shutil.copytree(run, folder / "run")
    test, val = folder / "secret" / "new photos", load_run(str(run)).data().val
    for place, (image, label) in enumerate(val[i] for i in range(12)):
        (test / f"{label}").mkdir(parents=True, exist_ok=True)
        image.save(test / f"{label}" / f"{place}.png")
    assert main(["evaluate", str(folder / "run"), "--test", str(test)]) == 0
    return folder / "run"


@pytest.fixture
def evaluated(evaluated_once, tmp_path):
    return shutil.copytree(evaluated_once, tmp_path / "run")


def logits_of(model):
    return model.eval()(torch.linspace(-1, 1, 2 * 64).reshape(2, 1, 8, 8))


def test_no_folder_of_this_machine_is_in_a_portable_configuration(evaluated):
    run = load_run(str(evaluated), "cpu")
    places = {"name": "/srv/alice/shards", "root": "/srv/alice/data", "cache_dir": "/srv/alice/cache"}
    for start in ({"checkpoint": "alice/run"}, {"from_mixer": "../alice/mixer.pth"}):
        model = replace(run.config.model, **start)
        config = replace(run.config, data=replace(run.config.data, **places), model=model, out="/srv/alice/run")
        portable = replace(run, config=config).portable_config()
        assert "alice" not in str(portable) and (portable.model.from_mixer or "mixer.pth") == "mixer.pth"
    for start in ("hf-hub:timm/mixer_b16_224", "mixer_b16_224.goog_in21k_ft_in1k"):
        named = replace(run.config, model=replace(run.config.model, from_mixer=start))
        assert replace(run, config=named).portable_config().model.from_mixer == start


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ({"from_mixer": "local-dir:/srv/alice/mixer"}, "hfds//srv/alice/pets"),
        ({"checkpoint": "hf-hub:ada/digits"}, "hfds/~alice/pets"),
        ({"checkpoint": "local-dir:alice/x"}, "hfds/../alice/pets"),
    ],
)
def test_no_folder_stands_behind_a_prefix_of_a_portable_configuration_either(evaluated, model, data):
    run = load_run(str(evaluated), "cpu")
    config = replace(run.config, data=replace(run.config.data, name=data), model=replace(run.config.model, **model))
    portable = replace(run, config=config).portable_config()
    assert "alice" not in str(portable) and portable.data.name == "hfds/pets"
    assert portable.model.checkpoint in (None, "hf-hub:ada/digits", "local-dir:x")
    hub = replace(config, data=replace(config.data, name="hfds/some/pets"))
    assert replace(run, config=hub).portable_config().data.name == "hfds/some/pets"


def test_the_folder_loads_in_timm_and_its_card_tells_all(evaluated, capsys):
    assert main(["export", str(evaluated), "--format", "hub"]) == 0
    folder = evaluated / "hub"
    assert f"written: {folder}: README.md, config.json" in capsys.readouterr().out
    there = {file.name for file in folder.iterdir()}
    figures = {"learning_curves.png", "confusion_matrix.png", "test_confusion_matrix.png"}
    assert there == {"README.md", "config.json", "model.safetensors", "training.json", *figures}
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    torch.testing.assert_close(logits_of(loaded), logits_of(load_run(str(evaluated), "cpu").model), rtol=0, atol=0)
    card = (folder / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    metadata, result = yaml.safe_load(front), json.loads((evaluated / "result.json").read_text())
    tested = json.loads((evaluated / "test_evaluation.json").read_text())
    values = [entry["metrics"][0]["value"] for entry in metadata["model-index"][0]["results"]]
    assert values == pytest.approx([result["last"]["val_acc"], tested["top1"]], abs=1e-5)
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("timm", "image-classification")
    assert f"| held-out images, after epoch 2 of 2 | {values[0]:.2%} | 360 |" in text
    assert f"| test set new photos | {tested['top1']:.2%} | 12 |" in text
    for part in ("hf-hub:USER/NAME", "local-dir:", "import imixer.models", *figures):
        assert part in text
    assert re.search(r"\| model.num\\_blocks \| 1 \|", text)


def test_no_path_of_this_machine_is_handed_over(evaluated, tmp_path):
    assert main(["export", str(evaluated), "--format", "hub", "--out", str(tmp_path / "handed")]) == 0
    for file in (tmp_path / "handed").iterdir():
        written = file.read_bytes()  # nor the folder of all folders here, the test set's among them
        assert str(tmp_path.parent).encode() not in written and b"secret" not in written, file


def test_the_snippet_of_the_card_runs(evaluated, tmp_path, monkeypatch, capsys):
    assert main(["export", str(evaluated), "--format", "hub", "--out", str(tmp_path / "m")]) == 0
    code = (tmp_path / "m" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    run = load_run(str(evaluated), "cpu")
    upright = run.data().val[0][0].transpose(Image.Transpose.ROTATE_90)
    turned = Image.Exif()
    turned[274] = 6  # as phones say how to turn what they stored
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "image.png", exif=turned)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    seen = {}
    exec(code.replace("hf-hub:USER/NAME", f"local-dir:{tmp_path / 'm'}"), seen)
    assert capsys.readouterr().out.strip() in map(str, range(10))
    expected = run.model(run.transform(load_image("image.png", 1))[None])
    torch.testing.assert_close(seen["logits"], expected.detach(), rtol=1e-4, atol=1e-5)


def test_the_best_weights_are_handed_over_if_asked_for(evaluated):
    assert main(["export", str(evaluated), "--format", "hub", "--checkpoint", "best"]) == 0
    loaded = timm.create_model(f"local-dir:{evaluated / 'best' / 'hub'}", pretrained=True)
    best = Checkpoints(evaluated / "checkpoints").best()["model"]
    assert all(torch.equal(value, best[name]) for name, value in loaded.state_dict().items())


class FakeHub(BaseHTTPRequestHandler):
    """As much of the hub as `huggingface_hub` needs to make a repository, commit to it and read from it."""

    files: dict[str, dict[str, bytes]]
    refuse: int

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.refuse:
            return self.answer({"error": "who are you?"}, self.refuse)
        if self.path.startswith("/api/repos/create"):
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.files.setdefault(repo, {})
            return self.answer({"url": f"http://{self.headers['Host']}/{repo}", "private": asked.get("private")})
        if "/preupload/" in self.path:
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": modes})
        if "/commit/" in self.path:
            repo = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer(
                {"commitUrl": f"http://{self.headers['Host']}/{repo}/commit/1", "commitOid": "1" * 40, "hookOutput": ""}
            )
        return self.answer({"errors": [], "warnings": []})  # of the card

    def do_GET(self):
        match = re.fullmatch(r"/(.+/.+)/resolve/main/(.+)", self.path)
        if match is None or match[2] not in self.files.get(match[1], {}):
            return self.answer({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        return self.answer(self.files[match[1]][match[2]], 200, {"ETag": f'"{match[2]}"', "X-Repo-Commit": "1" * 40})

    do_HEAD = do_GET

    def answer(self, content, status=200, headers=None):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    handler = type("Handler", (FakeHub,), {"files": {}, "refuse": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)  # for the processes that are started
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    yield handler
    server.shutdown()
    server.server_close()


def test_a_pushed_model_loads_from_the_hub_in_another_process(evaluated, hub, tmp_path, capsys):
    from huggingface_hub import constants

    assert main(["push", str(evaluated), "ada/digits"]) == 0
    shown = capsys.readouterr().out
    assert "pushed: http" in shown and 'timm.create_model("hf-hub:ada/digits", pretrained=True)' in shown
    files = hub.files["ada/digits"]
    assert {"README.md", "config.json", "model.safetensors", "training.json"} <= files.keys()
    assert b"hf-hub:ada/digits" in files["README.md"]
    code = (
        "import imixer.models, timm, torch, sys;"
        "m = timm.create_model('hf-hub:ada/digits', pretrained=True).eval();"
        "torch.save(m(torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)).detach(), sys.argv[1])"
    )
    elsewhere = {"HF_ENDPOINT": constants.ENDPOINT, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "logits.pt")], env=os.environ | elsewhere, check=True)
    expected = logits_of(load_run(str(evaluated), "cpu").model)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=0, atol=1e-6)


def test_a_hub_that_refuses_or_is_away_is_told_in_a_line(run, hub, capsys):
    hub.refuse = 401
    assert main(["push", str(run), "ada/digits"]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("imixer: ada/digits could not be pushed") and "hf auth login" in line
    with pytest.raises(ValueError, match="could not be pushed"):
        push(str(run), "ada/digits", endpoint="http://127.0.0.1:1")


@pytest.mark.parametrize("name", ["digits", "a/b/c", "ada/", "/x", "a b/c", "--", "ada/x.git"])
def test_what_is_no_name_of_the_hub_is_refused(run, hub, capsys, name):
    assert main(["push", str(run), name]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("imixer: ") and hub.files == {}


def test_a_folder_that_is_there_is_not_overwritten(run, tmp_path, capsys):
    for words, part in (
        (["--out", str(tmp_path)], "exists"),
        (["--out", str(tmp_path / "no" / "m")], "no folder"),
        (["--batch_size", "3"], "batch_size is 3"),
    ):
        assert main(["export", str(run), "--format", "hub", *words]) == 2
        *_, line = capsys.readouterr().err.splitlines()
        assert line.startswith("imixer: ") and part in line


def test_a_card_says_which_stored_values_were_black_and_white():
    def about(**data):
        return "".join(_about_range(SimpleNamespace(config=TrainConfig(data=DataConfig(**data)))))

    assert about() == ""
    assert "0 is black and 4095 is white" in about(value_range=(0.0, 4095.0))
