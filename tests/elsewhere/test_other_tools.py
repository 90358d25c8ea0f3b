"""The page "With other tools" runs, and each tool gives of an iMixer what it gives of a timm Mixer."""

import copy
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.multiprocessing
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from imixer.implicit import SpectralLinear, fold
from imixer.models.export import export_onnx, quantize_onnx

PAGE = Path(__file__).parents[2] / "docs/other_tools.md"
SNIPPETS = re.findall(r"```python( title=\"\S+\")?\n(.*?)```", PAGE.read_text(), re.DOTALL)
NAMES = ["mixer_t2_8", "imixer_t2_8"]


def of_both(test):
    return pytest.mark.parametrize("name", NAMES)(test)


def images(count=2):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def make(name="imixer_t2_8", **options):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, num_blocks=2, embed_dim=32, **options)
    nn.init.normal_(model.head.weight, std=0.1)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, SpectralLinear):
                layer.weight.mul_(4)
                layer.warm_up()
    return model.eval()


def for_inference(model):
    return fold(model) if hasattr(model, "n_iter") else copy.deepcopy(model)


def installed(code):
    names = {line.split()[1].split(".")[0] for line in code.splitlines() if re.match(r"(import|from) ", line)}
    return all(importlib.util.find_spec(name.rstrip(",")) for name in names)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(1, len(SNIPPETS)))
def test_a_snippet_of_the_page_runs(number, tmp_path, monkeypatch):
    title, code = SNIPPETS[number]
    if title:
        pytest.skip("a script, run below")
    if not installed(code):
        pytest.skip("its tool is not installed")
    monkeypatch.chdir(tmp_path)
    exec(SNIPPETS[0][1] + code, {})


def test_the_script_without_imixer_gives_the_models_probabilities(tmp_path):
    pytest.importorskip("onnxruntime")
    (script,) = [code for title, code in SNIPPETS if title]
    assert "imixer" not in script
    assert len(script.splitlines()) <= 20
    model = make()
    model.pretrained_cfg |= {"label_names": ["cat", "dog", "owl"], "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    export_onnx(model, tmp_path / "model.onnx", background=0)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    pixels[..., 3] = 255 * (pixels[..., 3] < 128)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    pixels = pixels[..., :3] * (pixels[..., 3:] == 255)  # the black that it is laid on
    (tmp_path / "predict.py").write_text(script)
    command = [sys.executable, "predict.py", "model.onnx", "image.png"]
    printed = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.splitlines()
    x = (torch.from_numpy(pixels) / 255 - torch.tensor([0.4, 0.5, 0.6])) / torch.tensor([0.2, 0.3, 0.4])
    expected = model(x.permute(2, 0, 1)[None]).softmax(1)[0]
    assert printed == [
        f"{['cat', 'dog', 'owl'][i]}: {float(expected[i]):.1%}" for i in expected.argsort(descending=True)
    ]


def test_a_quantised_file_keeps_its_metadata_and_says_how_far_it_agrees(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, path = make(), tmp_path / "model.onnx"
    export_onnx(model, path)
    checked = quantize_onnx(path, images(20))
    session = onnxruntime.InferenceSession(str(path))
    got = torch.cat([torch.from_numpy(session.run(None, {"image": x[None].numpy()})[0]) for x in images(20)])
    with torch.no_grad():
        expected = model(images(20))
    assert checked["max_abs_diff"] == pytest.approx(float((got - expected).abs().max()), abs=1e-4)
    assert checked["same_class"] == pytest.approx(float((got.argmax(1) == expected.argmax(1)).float().mean()))
    assert 0 < checked["max_abs_diff"] < 0.1 * checked["largest_logit"]
    facts = session.get_modelmeta().custom_metadata_map
    assert (json.loads(facts["input_size"]), json.loads(facts["architecture"])) == ([3, 8, 8], "imixer_t2_8")
    onnx = pytest.importorskip("onnx")
    kinds = {node.op_type for node in onnx.load(str(path)).graph.node}
    assert {"MatMulInteger", "DynamicQuantizeLinear"} <= kinds


def multiply_adds_of(model):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images(1))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("options", [{}, {"n_iter": 5}, {"tied": True}], ids=str)
@pytest.mark.parametrize("tool", ["fvcore", "calflops", "ptflops"])
@pytest.mark.filterwarnings("ignore")
def test_a_counter_sees_every_iteration_of_F(tool, options):
    library = pytest.importorskip(tool)

    def count(model):
        if tool == "fvcore":
            analysis = importlib.import_module("fvcore.nn").FlopCountAnalysis(model, images(1))
            return analysis.unsupported_ops_warnings(False).total()
        if tool == "calflops":
            return library.calculate_flops(
                model, input_shape=(1, 3, 8, 8), print_results=False, output_as_string=False
            )[1]
        return library.get_model_complexity_info(
            for_inference(model), (3, 8, 8), as_strings=False, print_per_layer_stat=False, backend="pytorch"
        )[0]

    more, less = make(**options), make(**options | {"n_iter": 1})
    steps = more.n_iter - 1
    per_step = (multiply_adds_of(more) - multiply_adds_of(less)) / steps
    assert per_step == 2 * 2 * 32 * 16 * 32  # blocks, matrices, channels, D_S, N_h
    assert per_step <= (count(more) - count(less)) / steps <= 1.2 * per_step  # some count biases and activations


@of_both
@pytest.mark.parametrize("folded", [False, True])
def test_torchao_gives_integers_that_give_nearly_the_logits(name, folded):
    quantization = pytest.importorskip("torchao.quantization")
    model = make(name)
    small = for_inference(model) if folded else make(name)
    quantization.quantize_(small, quantization.Int8WeightOnlyConfig())
    expected = model(images())
    assert 0 < (small(images()) - expected).abs().max() < 0.05 * expected.abs().max()


@of_both
def test_openvino_gives_the_logits(name):
    openvino = pytest.importorskip("openvino")
    model = make(name)
    converted = openvino.convert_model(for_inference(model), example_input=images())
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    logits = openvino.compile_model(converted, "CPU", settings)(images().numpy())[0]
    torch.testing.assert_close(torch.from_numpy(logits), model(images()), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@of_both
def test_aotinductor_gives_the_logits(name, tmp_path):
    model = make(name)
    program = torch.export.export(for_inference(model), (images(),))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    torch.testing.assert_close(torch._inductor.aoti_load_package(package)(images()), model(images()))


@of_both
def test_integrated_gradients_sum_to_the_logit(name):
    attr = pytest.importorskip("captum.attr")
    method = attr.IntegratedGradients(make(name).double())
    x = images().double()  # from one to the other: from an empty image LayerNorm has no slope
    _, left = method.attribute(x, x.flip(0), target=1, n_steps=100, return_convergence_delta=True)
    assert left.abs().max() < 0.02


def shard_and_train(rank, world, store):
    from torch.distributed import barrier, destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    scope = {}
    exec(next(code for _, code in SNIPPETS if "def shard" in code), scope)
    mesh = init_device_mesh("cpu", (world,))
    x = images(4)
    for name, options in (("mixer_t2_8", {}), ("imixer_t2_8", {}), ("imixer_t2_8", {"tied": True})):
        whole, sharded = make(name, **options).train(), scope["shard"](make(name, **options).train(), mesh)
        for model, batch in ((whole, x), (sharded, x.chunk(world)[rank])):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(2):
                optimizer.zero_grad()
                model(batch).square().mean().backward()
                optimizer.step()
        for (key, expected), got in zip(whole.named_parameters(), sharded.parameters(), strict=True):
            torch.testing.assert_close(got.full_tensor(), expected, rtol=1e-4, atol=1e-5, msg=f"{name} {key}")
        for (key, expected), got in zip(whole.named_buffers(), sharded.buffers(), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5, msg=f"{name} {key}")
    barrier()  # a process that leaves while another still talks to it may abort
    destroy_process_group()


def test_blocks_sharded_by_hand_train_as_a_whole_model_does(tmp_path):
    torch.multiprocessing.spawn(shard_and_train, (2, tmp_path / "store"), nprocs=2)


def test_a_script_of_timm_knows_our_models(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import argparse, sys, timm, helper\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.add_argument('--model')\n"
        "assert __name__ == '__main__'\n"
        "print(type(timm.create_model(parser.parse_args().model)).__name__, helper.NAME)\n"
    )
    (tmp_path / "helper.py").write_text("NAME = 'beside'")
    command = [sys.executable, "-m", "imixer.timm", str(script), "--model", "imixer_t2_8"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "IMixer beside\n"


def test_a_script_that_is_not_there_is_one_line_and_2():
    done = subprocess.run([sys.executable, "-m", "imixer.timm", "nowhere.py"], capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "no script nowhere.py" in done.stderr


@pytest.fixture
def local_ray(monkeypatch):
    """A Ray of this machine alone, without a dashboard, that waits for its workers where the machine is busy."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
    try:
        ray.init("local", include_dashboard=False, num_cpus=2, object_store_memory=100 * 2**20, logging_level="ERROR")
    except Exception as error:
        if "timed out during startup" not in str(error):  # after 30 s, which nothing sets
            raise
        pytest.skip("this machine is too busy for Ray to start")
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_ray_train_takes_an_imixer(tmp_path):
    torch_of_ray = pytest.importorskip("ray.train.torch", exc_type=ImportError)  # Ray without its extra train
    train = pytest.importorskip("ray.train", exc_type=ImportError)

    told = tmp_path / "told"

    def loop():
        import timm

        import imixer  # noqa: F401

        model = torch_of_ray.prepare_model(timm.create_model("imixer_t2_8", num_classes=3))
        model(torch.randn(2, 3, 8, 8)).sum().backward()
        told.write_text(str(all(bool(p.grad.isfinite().all()) for p in model.parameters())))
        train.report({"done": 1})

    trainer = torch_of_ray.TorchTrainer(
        loop,
        scaling_config=train.ScalingConfig(num_workers=1),
        run_config=train.RunConfig(storage_path=str(tmp_path)),
    )
    trainer.fit()
    assert told.read_text() == "True"
