"""A params file that is several runs: what a matrix becomes, what is wrong with one, and how its runs are made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import TINY_TRAINING, write_tiny_training

from muse import cli
from muse.params import ParamsError, Row, Settings, load_params, load_rows
from muse.runner import rows as runner
from muse.stages.check import Found, bytes_of_all
from muse.training.parallel import Launcher, Pool, schedule
from muse.training.rows import entries
from muse.training.tuning import Ended, Plan

SMALL = {"throughput_n_tokens": 8, "gradient_n_tokens": 8, "stability_n_tokens": 8, "train_n_seq": None, "n_seq": 16}


def written(tmp_path, text):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    return path


def with_matrix(params, **matrix):
    """The text of a params file with a matrix in place of its values."""
    values = json.loads(Path(params).read_text())
    return json.dumps({key: value for key, value in values.items() if key not in matrix} | {"matrix": matrix})


def test_every_combination_is_a_row_with_its_name_and_settings(tmp_path):
    path = written(tmp_path, "matrix: {n_seq: [2048, 1024], optimizer: [adamw, muon]}\nseeds: [3]\n")
    rows = load_rows(path, ["seed=7"])
    assert [row.name for row in rows] == [
        "n_seq=2048,optimizer=adamw", "n_seq=2048,optimizer=muon",
        "n_seq=1024,optimizer=adamw", "n_seq=1024,optimizer=muon",
    ]  # fmt: skip
    assert rows[1].settings == Settings(n_seq=2048, optimizer="muon", seeds=[3], seed=7)
    for row in rows:
        options = ["seed=7", *row.overrides[1::2]]
        assert load_params(path, options) == row.settings, "the overrides of a row are its run"


def test_a_file_without_a_matrix_is_one_row_without_a_name(tmp_path):
    for text in ("seed: 2", "{seed: 2, matrix: {}}", "{seed: 2, matrix: null}"):
        (row,) = load_rows(written(tmp_path, text))
        assert (row.name, row.overrides, row.settings) == ("", [], Settings(seed=2))


def test_what_an_override_sets_is_no_longer_a_key_of_the_matrix(tmp_path):
    path = written(tmp_path, "matrix: {n_seq: [1024, 2048], seed: [0, 1]}")
    assert [row.name for row in load_rows(path, ["n_seq=4096"])] == ["seed=0", "seed=1"]
    assert load_params(path, ["n_seq=4096", "seed=5"]) == Settings(n_seq=4096, seed=5)
    assert [row.name for row in load_rows(path, ["matrix={d_model: [8, 16]}"])] == ["d_model=8", "d_model=16"]
    with pytest.raises(ParamsError, match="matrix: got 4 runs, expected one here, such as that of -p n_seq=1024 -p se"):
        load_params(path)


def test_values_of_every_kind_have_names_that_folders_can_have(tmp_path):
    path = written(tmp_path, "matrix: {corpus: [./a b/c, wikitext-2], muon_learning_rate: [1e-5, 0.02], "
                   "recompute: [null, true], tokenizer: [gpt2]}")  # fmt: skip
    rows = load_rows(path)
    assert len(rows) == 8
    assert rows[1].name == "corpus=.-a-b-c,muon_learning_rate=1e-05,recompute=true,tokenizer=gpt2"
    for row in rows:
        assert load_params(path, row.overrides[1::2]) == row.settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{n_sec: [1024]}", "unknown key n_sec: did you mean n_seq?"),
        ("{weight_decay: [1.0]}", "unknown key weight_decay: it is weight_decays now"),
        ("{7: [1]}", "key 7 (int), expected the name of a setting"),
        ("{n_seq: []}", "n_seq: got 0 values, expected a list of 1 to 100"),
        ("{n_seq: 1024}", "n_seq: got 1024 (int), expected a list of 1 to 100"),
        ("{n_seq: [1024, 1024]}", "n_seq names one value twice: 1024, expected each once"),
        ("{muon_learning_rate: [1, 1.0]}", "muon_learning_rate names one value twice: 1.0"),
        ("{corpus: [./a/b, ./a-b]}", "corpus names one value twice: './a-b'"),
        ("{n_seq: [1024, '2048']}", "n_seq: got '2048' (str), expected integer"),
        ("{optimizer: [muon, sgd]}", "optimizer: got 'sgd' (str), expected 'adamw' or 'muon'"),
        ("{dropouts: [[0.1], [0.2]]}", "dropouts: got a setting that is a list by itself, expected one of a single"),
        ("{bench_training_batches: [[1]]}", "bench_training_batches: got a setting that is a list by itself"),
        ("{checkpoint_dir: [a, b]}", "checkpoint_dir: got a setting of the whole run, expected one that changes"),
        ("{d_model: [8, 16]}", "d_model: got it beside it too ("),
        ("[n_seq]", "got ['n_seq'] (list), expected a mapping of setting to list"),
        (f"{{seed: {[*range(100)]}, n_seq: {[*range(2, 102)]}, n_layers: [1, 2]}}",
         "got 20,000 combinations, expected at most 10,000"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_matrix_is_one_line(tmp_path, text, said):
    path = written(tmp_path, f"d_model: 8\nmatrix: {text}\n")
    with pytest.raises(ParamsError) as error:
        load_rows(path)
    (line,) = str(error.value).split("\n")
    assert line.startswith(f"{path}: matrix: {said}")


def test_what_one_row_contradicts_is_told_with_its_name_and_what_all_do_once(tmp_path):
    path = written(tmp_path, "train_tokens: 100000\nmatrix: {n_seq: [1024, 32768]}\n")
    with pytest.raises(ParamsError) as error:
        load_rows(path)
    assert str(error.value) == f"{path}: n_seq=32768: batch_tokens[0] = 16384 holds no sequence of 32768 tokens"
    with pytest.raises(ParamsError) as error:
        load_rows(path, ["batch_tokens=[8]"])
    assert str(error.value).split("\n")[0].startswith(f"{path}: n_seq=1024: batch_tokens[0] = 8 holds")
    with pytest.raises(ParamsError) as error:
        load_rows(path, ["matrix={n_layers: [1, 2]}", "n_seq=32768"])
    assert str(error.value) == f"{path}: batch_tokens[0] = 16384 holds no sequence of 32768 tokens"


# Trainings


def rows_of(**matrix):
    base = TINY_TRAINING | SMALL | {"models": ["stage1"], "corpus": "text", "seeds": [0, 1]}
    found = [{}]
    for key, values in matrix.items():
        found = [own | {key: value} for own in found for value in values]
    return [Row(own, Settings(**base | own)) for own in found]


def pool(rows):
    return Pool(tuple(Plan(row.settings, tuple(row.settings.models), row=row) for row in rows))


def test_trainings_of_all_rows_are_one_schedule_and_what_rows_share_is_trained_once(capsys):
    rows = rows_of(optimizer=["adamw", "muon"], ppl_batch_size=[1, 2])
    started, most = [], []

    def launch(job, device):
        started.append(job)
        most.append(len(started))
        return lambda: Ended(1.0)

    ended = schedule(pool(rows), (None,), 3, launch, tick=lambda: None)
    assert [job.name for job in started] == [
        f"optimizer={name},ppl_batch_size=1-stage1-s{seed}-512" for name in ("adamw", "muon") for seed in (0, 1)
    ]
    assert len(ended) == 4
    assert "optimizer=muon,ppl_batch_size=1 stage1 seed 0, 512 tokens: starts" in capsys.readouterr().out
    for plan in pool(rows).plans:
        assert all(job in ended for job in plan.wanted(ended)), "each row finds its own"


@pytest.mark.parametrize(("key", "values"), [("n_seq", [8, 16]), ("d_model", [2, 4]), ("corpus", ["text", "other"]),
                                         ("gradient_clip", [1.0, 2.0]), ("recompute", [True, False])])  # fmt: skip
def test_what_decides_a_training_tells_it_apart(key, values):
    given = rows_of(**{key: values})
    rows = [Row(row.values, row.settings.model_copy(update={"train_d_model": None})) for row in given]
    assert len(pool(rows).wanted({})) == 4


def test_a_row_is_started_with_its_values_before_those_of_the_training(tmp_path):
    job = pool(rows_of(n_seq=[8, 16])).wanted({})[-1]
    command = Launcher(["p.yaml", "-p", "seed=0"], tmp_path, 1).command(job, tmp_path / "o.json")
    assert command[4:10] == ["p.yaml", "-p", "seed=0", "-p", "n_seq=16", "-p"]
    assert command[10] == 'models=["stage1"]'


def test_the_list_of_an_array_has_all_rows_and_those_that_tries_decide_last():
    rows = rows_of(optimizer=["adamw", "muon"], ppl_batch_size=[1, 2])
    assert [(e.row.name, e.seed) for e in entries(rows)] == [
        (f"optimizer={name},ppl_batch_size=1", seed) for name in ("adamw", "muon") for seed in (0, 1)
    ]
    tried = [Row(row.values, row.settings.model_copy(update={"dropouts": [0.1, 0.2]})) for row in rows]
    assert [entry.job is None for entry in entries(tried)] == [False] * 4 + [True] * 2
    alone = entries(tried)[-1].alone()
    assert (alone.name, alone.settings.optimizer) == ("optimizer=muon,ppl_batch_size=1", "muon")


def test_what_rows_share_is_written_once():
    every = [row.settings for row in rows_of(n_seq=[8, 16], ppl_batch_size=[1, 2])]
    assert bytes_of_all(every, [Found([], 5)] * 4) == 10


def test_one_command_an_array_and_plain_runs_train_the_same(tmp_path, monkeypatch, capsys):
    """Keys know nothing of a matrix: what it has trained, a file without one finds, and the other way round."""
    params = write_tiny_training(tmp_path, models=["stage1"], seeds=[0], **SMALL | {"n_seq": 8})
    matrix = tmp_path / "m.yaml"
    matrix.write_text(with_matrix(params, n_seq=[8, 16], ppl_batch_size=[1, 2]))
    monkeypatch.chdir(tmp_path)
    trainings = lambda folder: {path.name for path in (tmp_path / folder).glob("stage1-*")}  # noqa: E731
    assert cli.main(["train", params]) == 0
    capsys.readouterr()
    assert cli.main(["train", str(matrix), "--json", "told.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == [f"n_seq={n},ppl_batch_size={m}:" for n in (8, 16) for m in (1, 2)]
    assert ["found finished" in line for line in lines[1::2]] == [True, True, False, True]
    assert len(json.loads((tmp_path / "told.json").read_text())["trainings"]) == 4
    assert cli.main(["train", params, "-p", "n_seq=16"]) == 0
    assert "found finished" in capsys.readouterr().out
    for index in (0, 1):
        assert cli.main(["train", str(matrix), "--index", str(index), "-p", "checkpoint_dir=array"]) == 0
    assert trainings("array") == trainings("checkpoints")
    assert len(trainings("array")) == 2
    assert cli.main(["train", str(matrix), "--index", "2"]) == 2
    assert "--index: got 2, expected 0 to 1" in capsys.readouterr().err


def test_a_matrix_side_by_side_by_processes(tmp_path, monkeypatch, capsys):
    params = write_tiny_training(tmp_path, models=["stage1"], seeds=[0], matrix={"optimizer": ["adamw", "muon"]})
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", params, "--processes", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.endswith(":")] == ["optimizer=adamw:", "optimizer=muon:"]
    assert len(list(tmp_path.glob("checkpoints/stage1-*/result.json"))) == 2
    logs = {path.name for path in tmp_path.glob("checkpoints/logs/*.log")}
    assert logs == {f"optimizer={name}-stage1-s0-512.log" for name in ("adamw", "muon")}


def test_a_row_that_diverges_keeps_the_next_from_nothing(tmp_path, monkeypatch, capsys):
    params = write_tiny_training(tmp_path, models=["phase2"], seeds=[0], optimizer="muon", learning_rates=[1e-3],
                                 matrix={"muon_learning_rate": [1e30, 0.02]})  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", params]) == 4
    said = capsys.readouterr()
    assert "\nmuse: muon_learning_rate=1e+30: phase2 seed 0" in said.err
    assert said.out.splitlines()[-1].startswith("phase2 seed 0: validation loss ")


# Runs


def run_with(monkeypatch, codes, rows, out="out", checked=lambda rows, out: None):
    """The exit code of `run_rows` where single runs end with these codes, and which were made."""
    made, codes = [], iter(codes)

    def run(settings, *, out, **given):
        made.append((out.as_posix(), settings.n_seq))
        code = next(codes)
        if isinstance(code, Exception):
            raise code
        return code

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(runner, "check", checked)
    monkeypatch.setattr(runner, "find_notebooks", lambda *given: None)
    return runner.run_rows(rows, out=out), made


@pytest.mark.parametrize(
    ("codes", "worst"),
    [((0, 0, 0), 0), ((0, 3, 0), 3), ((1, 3, 0), 1), ((1, 4, 3), 4), ((0, 130), 130), ((ParamsError("x"), 0, 1), 4)],
)
def test_each_row_is_a_run_of_its_own_and_the_worst_exit_code_is_that_of_all(monkeypatch, codes, worst, capsys):
    rows = rows_of(n_seq=[8, 16, 32])
    code, made = run_with(monkeypatch, codes, rows)
    assert code == worst
    assert made == [(f"out/n_seq={n}", n) for n in (8, 16, 32)][: len(codes)]
    assert capsys.readouterr().out.splitlines()[0] == "n_seq=8, 1 of 3"


def test_what_is_wrong_with_any_row_starts_none(monkeypatch):
    def refuses(rows, out):
        raise ParamsError("no disk")

    with pytest.raises(ParamsError, match="no disk"):
        run_with(monkeypatch, (), rows_of(n_seq=[8, 16]), checked=refuses)


def test_the_check_asks_one_process_about_all_rows(tmp_path, monkeypatch, capsys):
    params = write_tiny_training(tmp_path, models=["stage1"], stages=["train"], **SMALL | {"n_seq": 8})
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, with_matrix(params, n_seq=[8, 16]))
    assert cli.main(["check", str(path)]) == 0
    assert "no problem found; 2 runs; stages: train" in capsys.readouterr().out
    (tmp_path / "text" / "train.txt").write_text("the sun and the moon go \n")
    assert cli.main(["check", str(path)]) == 2
    assert capsys.readouterr().err.startswith("muse: n_seq=8: n_seq: got 8, expected less than the 7 tokens of the tr")
    (tmp_path / "text" / "train.txt").unlink()
    assert cli.main(["check", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("muse: corpus, tokenizer: ")
    (tmp_path / "reports" / "custom").mkdir(parents=True)
    (tmp_path / "reports" / "custom" / "run.json").write_text("{}")
    assert cli.main(["run", str(path)]) == 2
    assert "reports/custom holds a run, expected a folder for the runs of a matrix" in capsys.readouterr().err


def test_commands_of_one_run_refuse_a_matrix(tmp_path, capsys):
    path = str(written(tmp_path, "matrix: {n_seq: [1024, 2048]}"))
    for command in (["params", path, "train"], ["bench", path, "--out", str(tmp_path / "b")]):
        assert cli.main(command) == 2
        assert "matrix: got 2 runs, expected one here" in capsys.readouterr().err


def test_a_plan_of_a_matrix_tells_each_row_and_all(tmp_path, capsys):
    tiny = TINY_TRAINING | SMALL | {"models": ["stage1"], "stages": ["train"], "d_model": 16, "n_layers": 1}
    tiny |= {"checkpoint_dir": str(tmp_path), "seeds": [0, 1]}
    tiny.pop("n_seq")
    path = str(written(tmp_path, json.dumps(tiny | {"matrix": {"n_seq": [8, 16], "ppl_batch_size": [1, 2]}})))
    assert cli.main(["plan", path, "--price", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [f"n_seq={n},ppl_batch_size={m}" for n in (8, 16) for m in (1, 2)]
    assert [line for line in lines if line.startswith("n_seq=")] == names
    left = [line for line in lines if line.startswith("Trainings left: ")]
    assert [line.split(";")[0] for line in left] == [f"Trainings left: {n} of {n}" for n in (2, 2, 2, 2, 4)]
    assert lines[-2] == "4 runs; what several of them share counts once."


def test_plain_runs_go_as_ever(monkeypatch):
    settings = Settings()
    asked = []
    monkeypatch.setattr(runner, "run", lambda *given, **more: asked.append((given, more)) or 3)
    assert runner.run_rows([Row({}, settings)], out=None, notebooks=None, gate=True, command="muse run x") == 3
    assert asked == [((settings,), {"out": None, "notebooks": None, "gate": True, "command": "muse run x"})]
