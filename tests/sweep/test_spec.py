"""A specification is either a list of valid trials, or refused in one line."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from imixer.cli import main
from imixer.errors import InputError
from imixer.sweep.spec import build_sweep, read_sweep, select_share
from imixer.training.run.config import TrainConfig
from imixer.training.run.parsing import (
    build_config,
    expand_config_flags,
    load_config,
    parse,
    save_config,
    train_parser,
)


def sweep(text, **given):
    return build_sweep(yaml.safe_load(text), **given)


def names(text):
    return [cell.name for cell in sweep(text).cells]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        # the fields
        ("", ["mapping", "grid"]),
        ("- 3", ["mapping", "grid"]),
        ("seed: 3", ["unknown field seed", "did you mean seeds?"]),
        ("name: a/b", ["name is 'a/b'"]),
        ("name: 3", ["name is 3"]),
        ("recipe: digit", ["'digit'", "digits"]),
        ("recipe: [digits]", ["recipe is ['digits']"]),
        ("config: nowhere.yaml", ["nowhere.yaml", "does not exist"]),
        ("config: tiny.yaml", ["config cannot be set in the file"]),
        ("set: 3", ["set is 3", "mapping"]),
        ("grid: {}", ["grid is empty"]),
        ("grid: [3]", ["grid is [3]", "mapping"]),
        ("grid: {epochs: 3}", ["grid.epochs is 3", "list"]),
        ("grid: {epochs: []}", ["grid.epochs is []", "list"]),
        ("grid: {model.kwargs: [{a: 1}]}", ["grid.model.kwargs", "cases"]),
        ("cases: {}", ["cases is {}"]),
        ("cases: [a]", ["cases is ['a']"]),
        ("cases: {a: 3}", ["cases.a is 3", "mapping"]),
        ("cases: {a/b: {}}", ["'a/b'"]),
        ("cases: {..: {}}", ["'..'"]),
        ("cases: {3: {}}", ["cases: 3", "quotes"]),
        ("cases: {Results.csv: {}}", ["cell Results.csv", "results.csv"]),
        ("seeds: 0", ["seeds is 0"]),
        ("seeds: []", ["seeds is []"]),
        ("seeds: true", ["seeds is True"]),
        ("seeds: [1, x]", ["seeds is [1, 'x']"]),
        ("seeds: [1, 1]", ["seeds: 1 stands there twice"]),
        ("seeds: [-1]", ["seed is -1"]),
        ("seeds: [4294967296]", ["seed is 4294967296"]),
        ("case_seeds: 3", ["case_seeds is 3", "mapping"]),
        ("cases: {dog: {}}\ncase_seeds: {dig: 1}", ["no case 'dig'", "did you mean dog?"]),
        ("cases: {a: {}}\ncase_seeds: {a: 0}", ["case_seeds.a is 0"]),
        ("a: [1\nb: }", ["YAML", "line 2"]),
        # the settings
        ("set: {model.n_itr: 3}", ["model.n_itr", "did you mean model.n_iter"]),
        ("grid: {lr: [0.1]}", ["cell lr=0.1", "did you mean optim.lr?"]),
        ("set: {print_config: full}", ["unknown setting print_config"]),
        ("set: {epochs: many}", ["epochs is 'many'", "whole number"]),
        ("grid: {epochs: [9, many]}", ["cell epochs=many", "whole number"]),
        ("cases: {a: {model: {norm: spectrum}}}", ["cell a", "model.norm", "spectral"]),
        ("set: {seed: 3}", ["seed cannot be set in set", "under seeds"]),
        ("grid: {seed: [3, 4]}", ["seed cannot be set in grid", "under seeds"]),
        ("cases: {a: {out: x}}", ["out cannot be set in cases.a", "--out"]),
        ("set: {recipe: digits}", ["recipe cannot be set in set", "beside"]),
        # combinations
        ("grid: {schedule.warmup_epochs: [1, 40]}", ["cell warmup_epochs=40", "epochs is 40"]),
        ("set: {epochs: 5}\ngrid: {epochs: [5, 7]}", ["epochs stands in set and in grid"]),
        ("cases: {a: {epochs: 5}}\ngrid: {epochs: [7]}", ["epochs stands in cases.a and in grid"]),
        ("set: {model: 3, model.n_iter: 3}", ["model is 3", "model.n_iter"]),
        ("set: {model.n_iter: 3, model: 3}", ["model is 3"]),
        ("set: {model.n_iter: 3, model: {n_iter: 4}}", ["set: model.n_iter stands there twice"]),
        ("set: {epochs: 5, epochs: 6}", ["epochs stands twice"]),
        ("grid: {epochs: [5, 5]}", ["epochs=5 and epochs=5 would share a folder"]),
        ("grid: {data.auto_augment: [rand/m9, rand_m9]}", ["auto_augment=rand_m9", "share a folder"]),
        ("grid: {optim.lr: [0.001, 1e-3]}", ["lr=0.001 and lr=1e-3 are the same"]),
        ("cases: {a: {epochs: 30}, b: }", ["cells a and b are the same"]),
        ("grid: {data.name: [%s]}" % ("x" * 200), ["too long", "cases"]),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(capsys, elsewhere, tiny, text, parts):
    assert main(["sweep", tiny(text)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("imixer: tiny.yaml: ")
    for part in parts:
        assert part in line
    assert [path.name for path in elsewhere.iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("nowhere.yaml", ["nowhere.yaml", "does not exist"]),
        (".", ["cannot be read"]),
        ("tiny.yaml --executor slurm", ["slurm", "'local', 'ray'"]),
        ("tiny.yaml --cpus 2", ["cpus", "--executor ray"]),
        ("tiny.yaml --address auto", ["address", "--executor ray"]),
        ("tiny.yaml --executor ray --cpus 0", ["cpus is 0"]),
        ("tiny.yaml --executor ray --gpus 1.5", ["gpus is 1.5"]),
        ("tiny.yaml --executor ray --gpus .nan", ["gpus is nan"]),
        ("tiny.yaml --executor ray --retries -1", ["retries is -1"]),
        ("tiny.yaml --share 2/2", ["share is '2/2'"]),
        ("tiny.yaml --share one", ["share is 'one'"]),
        ("tiny.yaml --out tiny.yaml", ["tiny.yaml exists"]),
        ("tiny.yaml --out tiny.yaml/deeper", ["tiny.yaml is a file"]),
        ("tiny.yaml --out full", ["full exists"]),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(capsys, elsewhere, tiny, words, parts):
    tiny()
    (elsewhere / "full").mkdir()
    (elsewhere / "full" / "file").touch()
    assert main(["sweep", *words.split()]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    for part in parts:
        assert part in line
    assert sorted(path.name for path in elsewhere.rglob("*")) == ["file", "full", "tiny.yaml"]


def test_without_ray_the_remedy_is_named(capsys, elsewhere, tiny, monkeypatch, without):
    monkeypatch.setitem(sys.modules, "ray", None)
    without("ray")
    assert main(["sweep", tiny(), "--executor", "ray"]) == 2
    assert 'pip install "imixer[cluster]"' in capsys.readouterr().err
    assert not (elsewhere / "sweeps").exists()


def test_cells_are_called_by_what_sets_them_apart():
    assert names("{}") == ["base"]
    assert names("grid: {model.n_iter: [1, 2], model.hidden_ratio: [0.25, 2]}") == [
        "n_iter=1,hidden_ratio=0.25",
        "n_iter=1,hidden_ratio=2",
        "n_iter=2,hidden_ratio=0.25",
        "n_iter=2,hidden_ratio=2",
    ]
    assert names("cases: {mixer: {model.name: mixer_t2_8}, imixer: }") == ["mixer", "imixer"]
    assert names("cases: {a: {smoothing: 0}, b: }\ngrid: {epochs: [5, 6]}") == [
        "a,epochs=5",
        "a,epochs=6",
        "b,epochs=5",
        "b,epochs=6",
    ]
    # as short as it is clear, and safe in a file system
    assert names("grid: {data.name: [a/b], model: {name: [null], tied: [true]}}") == [
        "data.name=a_b,model.name=null,tied=true"
    ]
    assert names("grid: {model.hidden_ratio: [[1, 2]], data.scale: [[0.1, 1]]}") == ["hidden_ratio=1_2,scale=0.1_1"]


def test_settings_are_dotted_or_nested_and_the_more_particular_wins(elsewhere):
    (elsewhere / "mine.yaml").write_text("epochs: 7\nseed: 5\nout: null\ndata: {hflip: 0.25}\n")
    found = sweep(
        "recipe: cifar10/mixer_quick\nconfig: mine.yaml\n"
        "set: {data: {batch_size: 32}, optim.lr: 1e-3, smoothing: 0.2}\n"
        "cases: {a: {smoothing: 0.3, model.kwargs: {mlp_ratio: [0.5, 2.0]}}, b: }\n"
        "grid: {model: {num_blocks: [3]}}\nseeds: [4]",
        folder=elsewhere,
    )
    a, b = (cell.config for cell in found.cells)
    assert a.model.name == b.model.name == "mixer_t4_32"  # the recipe's
    assert a.epochs == 7 and a.data.hflip == 0.25  # the file's, over the recipe's 10 and 0.5
    assert a.data.batch_size == 32 and a.optim.lr == 1e-3
    assert (a.smoothing, b.smoothing) == (0.3, 0.2)
    assert a.model.kwargs == {"mlp_ratio": [0.5, 2.0]}
    assert a.model.num_blocks == 3
    assert found.cells[1].settings == {"model.num_blocks": 3}
    (trial, _) = found.trials
    assert trial.config(Path("dir")).seed == 4
    assert trial.config(Path("dir")).out == str(Path("dir/a,num_blocks=3/seed-4"))


FINETUNED = "set: {model.checkpoint: weights.pt, data.name: pets%s}\n"


def test_a_sweep_that_fine_tunes_has_what_the_part_brings_as_training_has_it(elsewhere):
    words = ["--data.name", "pets", "--model.checkpoint", "weights.pt", "--finetune", "all", "--epochs", "5"]
    trained = build_config(parse(train_parser(), expand_config_flags(words)))
    (cell,) = sweep(FINETUNED % ", finetune: all, epochs: 5").cells
    assert cell.config == trained and trained.optim.layer_decay is not None


def test_each_case_has_what_its_own_part_brings_and_no_more(elsewhere):
    cases = "cases: {head: {finetune: head}, all: {finetune: all, epochs: 5}, none: }"
    found = sweep(FINETUNED % ", optim.lr: 3e-4" + cases)
    head, every, none = (cell.config for cell in found.cells)
    alone = [sweep(FINETUNED % f", optim.lr: 3e-4, finetune: {part}").cells[0].config for part in ("head", "all")]
    assert head == alone[0] and every == replace(alone[1], epochs=5)
    assert none == sweep(FINETUNED % ", optim.lr: 3e-4").cells[0].config
    (elsewhere / "again.yaml").write_text(yaml.safe_dump(found.spec, sort_keys=False))
    assert [cell.config for cell in read_sweep("again.yaml").cells] == [head, every, none]
    with pytest.raises(InputError, match=r"grid\.finetune: each part brings settings of its own; spell them out under"):
        sweep(FINETUNED % "" + "grid: {finetune: [head, all]}")


def test_a_palette_is_one_value(elsewhere):
    (elsewhere / "mine.yaml").write_text("task: segment\nmasks: {palette: {road: '#000000', sky: '#ffffff'}}\n")
    found = sweep("config: mine.yaml\nset: {masks.palette: {car: '#112233', st. wall.: '#445566'}}", folder=elsewhere)
    (cell,) = found.cells
    assert list(cell.config.masks.palette) == ["car", "st. wall."]


def test_a_runs_own_configuration_is_a_base(elsewhere):
    config = TrainConfig(epochs=5, seed=3, out="x")
    save_config(config, elsewhere / "config.yaml")
    (cell,) = sweep("config: config.yaml", folder=elsewhere).cells
    save_config(cell.config, elsewhere / "again.yaml")
    assert load_config(elsewhere / "again.yaml") == TrainConfig(epochs=5)


def test_every_cell_has_its_first_seed_before_any_has_its_second():
    found = sweep("grid: {epochs: [5, 6]}\nseeds: [7, 3]")
    assert [trial.name for trial in found.trials] == [
        "epochs=5/seed-7",
        "epochs=6/seed-7",
        "epochs=5/seed-3",
        "epochs=6/seed-3",
    ]


def test_shares_are_all_trials_once():
    found = sweep("grid: {epochs: [5, 6, 7]}\nseeds: 3")
    shares = [select_share(found, f"{i}/4") for i in range(4)]
    assert sorted(t.name for s in shares for t in s) == sorted(t.name for t in found.trials)
    assert {len(s) for s in shares} == {2, 3}


def test_the_resolved_specification_stands_alone(elsewhere):
    (elsewhere / "mine.yaml").write_text("optim: {lr: 1e-3}\nepochs: 7\n")
    first = sweep(
        "name: x\nrecipe: digits\nconfig: mine.yaml\nset: {smoothing: 0}\nseeds: 2\n"
        "cases: {b: {data.hflip: 0.5}, a: }\ngrid: {model.tied: [true, null], epochs: [8, 9]}",
        folder=elsewhere,
    )
    (elsewhere / "mine.yaml").unlink()
    (elsewhere / "spec.yaml").write_text(yaml.safe_dump(first.spec, sort_keys=False))
    assert read_sweep("spec.yaml") == first


def test_a_sweep_is_called_like_its_file_or_as_it_says(tiny):
    assert read_sweep(tiny()).name == "tiny"
    assert read_sweep(tiny("name: other")).name == "other"
    with pytest.raises(InputError, match=r"tiny\.yaml: name"):
        read_sweep(tiny("name: ''"))


def test_the_guides_examples_are_sweeps():
    page = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text()
    first, second = (sweep(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    assert (first.cells[0].name, first.cells[-1].name) == ("n_iter=1,hidden_ratio=0.25", "n_iter=4,hidden_ratio=2")
    assert [cell.name for cell in second.cells] == [
        "mixer,lr=0.001",
        "mixer,lr=0.002",
        "tied,lr=0.001",
        "tied,lr=0.002",
    ]


def test_validation_imports_no_torch(tiny):
    code = (
        "import sys, imixer.cli as c; c.main(['sweep', '--help']); assert c.main(['sweep', %r]) == 2;"
        "print([m for m in ('torch', 'timm', 'lightning', 'numpy', 'ray') if m in sys.modules])"
    )
    path = tiny("grid: {epochs: [9, many]}")
    done = subprocess.run([sys.executable, "-c", code % path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "cell epochs=many" in done.stderr


def test_a_case_may_have_seeds_of_its_own():
    found = sweep("cases: {a: {epochs: 5}, b: {epochs: 6}}\nseeds: 3\ncase_seeds: {b: 1}")
    assert [trial.name for trial in found.trials] == ["a/seed-0", "b/seed-0", "a/seed-1", "a/seed-2"]
    assert build_sweep(found.spec) == found


def test_a_sweep_that_names_no_data_starts_from_the_recipe_that_training_does():
    unnamed, named = (build_sweep(spec).cells[0].config for spec in ({}, {"recipe": "digits"}))
    assert unnamed == named
    general = build_sweep({"cases": {"a": {"data.name": "digits"}}}).cells[0].config
    assert general == TrainConfig()


def test_epochs_of_a_cell_win_over_the_budget_of_its_recipe():
    sweep = build_sweep({"recipe": "laptop/imixer_cifar10", "grid": {"epochs": [3, 4]}})
    assert [(cell.config.epochs, cell.config.budget) for cell in sweep.cells] == [(3, None), (4, None)]
    assert build_sweep(sweep.spec).cells == sweep.cells
