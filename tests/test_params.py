"""Params files: what is accepted, what is refused and how that is said."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from muse.catalog import CANDIDATES, COMPARED, STAGE_NAMES
from muse.params import ModelName, ParamsError, Settings, load_params, load_rows, validate
from muse.records.scale import PUBLISHED, in_words, reductions_of
from muse.records.schema import Reduction
from muse.report.texts import texts

REPOSITORY = Path(__file__).resolve().parent.parent


def load(tmp_path, text="", *overrides):
    path = tmp_path / "p.yaml"
    path.write_text(text or "{}", encoding="utf-8")
    return load_params(path, overrides)


def test_the_defaults_are_the_published_protocol():
    settings = Settings()
    assert {name: getattr(settings, name) for name in PUBLISHED} == PUBLISHED
    assert reductions_of(settings.model_dump() | {"corpus": "wikitext-2"}) == []
    assert in_words(reductions_of(settings.model_dump()), texts("en")) == "synthetic corpus (published: WikiText-2)"


def test_an_empty_mapping_gives_the_defaults(tmp_path):
    assert load(tmp_path) == Settings()


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones(tmp_path):
    settings = load(tmp_path, "seed: 1\nd_model: 8\n", "seed=2", "seed=3")
    assert (settings.seed, settings.d_model) == (3, 8)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("warmup_share=1e-3", "warmup_share", 1e-3),
        ("learning_rates=[1e-3, 2]", "learning_rates", [1e-3, 2.0]),
        ("seed=010", "seed", 10),
        ("max_ppl_batches=null", "max_ppl_batches", None),
        ("corpus=yes", "corpus", "yes"),
        ("corpus=a=b", "corpus", "a=b"),
        ("skip_phase2=true", "skip_phase2", True),
        ("corpus='2024_01'", "corpus", "2024_01"),
        ("gradient_clip=1", "gradient_clip", 1.0),
    ],
)
def test_values_are_yaml_1_2(tmp_path, override, key, value):
    found = getattr(load(tmp_path, "", override), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("d_modell=64", ["-p d_modell=64", "unknown key d_modell", "did you mean d_model?"]),
        ("zzz=1", ["unknown key zzz", "expected one of"]),
        ("d_model=64.0", ["d_model: got 64.0 (float)", "integer"]),
        ("d_model='64'", ["d_model: got '64' (str)"]),
        ("d_model=63", ["d_model: got 63", "multiple of 2"]),
        ("d_model=0", ["d_model: got 0"]),
        ("seed=-1", ["seed: got -1", "greater than or equal to 0"]),
        ("seed=true", ["seed: got True (bool)"]),
        ("skip_phase2=yes", ["skip_phase2: got 'yes' (str)"]),
        ("warmup_share=nan", ["warmup_share"]),
        ("warmup_share=.nan", ["warmup_share: got nan"]),
        ("weight_decays=[0.1, .nan]", ["weight_decays[1]: got nan"]),
        ("weight_decays=[-0.1]", ["weight_decays[0]: got -0.1", "greater than or equal to 0"]),
        ("batch_tokens=[]", ["batch_tokens: got []"]),
        ("batch_tokens=2048", ["batch_tokens: got 2048 (int), expected list"]),
        ("batch_tokens=[0]", ["batch_tokens[0]: got 0"]),
        ("gradient_clip=.inf", ["gradient_clip: got inf"]),
        ("stage_timeout_minutes=.inf", ["stage_timeout_minutes: got inf"]),
        ("dropouts=[0.1, 1.0]", ["dropouts[1]: got 1.0"]),
        ("seeds=[]", ["seeds: got []"]),
        ("seeds=[0, -1]", ["seeds[1]: got -1"]),
        ("stages=[memory, memory]", ["names one stage twice"]),
        ("stages=[report]", ["stages[0]: got 'report'"]),
        ("models=[stage7]", ["models[0]: got 'stage7'"]),
        ("profile='../up'", ["profile: got '../up'"]),
        ("device=tpu", ["device: got 'tpu'", "'auto', 'cpu' or 'cuda'"]),
        ("language=fr", ["language: got 'fr'"]),
        ("seed", ["-p seed: expected key=value"]),
        ("=1", ["expected key=value"]),
        ("seed=[", ["-p seed=[", "not YAML"]),
        ("n_seq=64", ["gradient_n_tokens = 128 is more than n_seq = 64"]),
        ("muon_weight_decays=[0.1, 0.2]", ["muon_weight_decays = [0.1, 0.2]", "optimizer = adamw"]),
        ("test_corpus=wikitext-2", ["test_corpus = 'wikitext-2'", "corpus = 'synthetic'", "expected two texts"]),
        ("test_corpus=wikitext-2", ["is for trained models, but train_tokens = 0"]),
        ("counting_moduli=[3, 1]", ["counting_moduli[1]: got 1", "greater than or equal to 2"]),
        ("counting_moduli=[3, 3]", ["names one value twice: 3"]),
        ("counting_lengths=[60, 0]", ["counting_lengths[1]: got 0", "greater than or equal to 1"]),
        ("counting_length=0", ["counting_length: got 0"]),
        ("counting_arms=[gru, lstm]", ["counting_arms[1]: got 'lstm'", "or another of 13"]),
        ("counting_groups=[s4]", ["counting_groups[0]: got 's4'", "'s3' or 'a5'"]),
        ("counting_width=12", ["counting_width: got 12", "multiple of 8"]),
        ("counting_learning_rates=[0.0]", ["counting_learning_rates[0]: got 0.0"]),
        ("counting_processes=0", ["counting_processes: got 0"]),
    ],
)
def test_bad_values_are_explained(tmp_path, override, words):
    with pytest.raises(ParamsError) as error:
        load(tmp_path, "", override)
    for word in words:
        assert word in str(error.value)


def test_a_batch_has_to_hold_a_sequence_where_something_is_trained(tmp_path):
    """A bench of long texts trains nothing and says nothing of batches."""
    for wrong, words in (("batch_tokens=[2048, 100]", "batch_tokens[1] = 100 holds no sequence of 1024"),
                         ("train_n_seq=32768", "batch_tokens[0] = 16384 holds no sequence of 32768")):  # fmt: skip
        with pytest.raises(ParamsError, match=re.escape(words)):
            load(tmp_path, "", wrong, "train_tokens=100000")
        load(tmp_path, "", wrong)


def test_every_problem_is_named_with_its_place(tmp_path):
    with pytest.raises(ParamsError) as error:
        load(tmp_path, "seed: x\nzzz: 1\n", "d_model=1")
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert any(line.startswith(f"{tmp_path / 'p.yaml'}: seed: got 'x'") for line in lines)
    assert any(line.startswith("-p d_model=1: d_model: got 1") for line in lines)


def test_a_counting_bench_that_has_nothing_to_count_is_refused(tmp_path):
    empty = "counting_moduli: []\n"
    with pytest.raises(ParamsError, match="counting_moduli and counting_groups are both empty"):
        load(tmp_path, empty + "stages: [counting]\n")
    assert load(tmp_path, empty).stages == Settings().stages
    assert load(tmp_path, "counting_moduli: [3]\n").stages == [*Settings().stages, "counting"]
    assert load(tmp_path, empty + "stages: [counting]\ncounting_groups: [s3]\n").counting_groups == ["s3"]


@pytest.mark.parametrize("text", ["- 1\n", "just words", "a: [", "a: 1\na: 2\n", "3"])
def test_files_that_are_no_mapping_are_refused(tmp_path, text):
    with pytest.raises(ParamsError, match=r"p\.yaml"):
        load(tmp_path, text)


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(ParamsError, match="cannot be read"):
        load_params(tmp_path / "missing.yaml")
    with pytest.raises(ParamsError, match="cannot be read"):
        load_params(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ParamsError, match="not YAML"):
        load_params(tmp_path / "binary.yaml")


def test_a_setting_below_the_published_one_is_reduced():
    assert reductions_of({"d_model": 64, "n_layers": 6}) == [Reduction(setting="d_model", value=64, published=512)]
    assert reductions_of({"max_ppl_batches": 10}) == [Reduction(setting="max_ppl_batches", value=10, published=None)]
    assert reductions_of({"d_model": 1024, "stability_trials": 1000, "seed": 0}) == []
    assert [smaller.setting for smaller in reductions_of({"d_model": 64, "n_seq": 128})] == ["d_model", "n_seq"]


def test_any_text_but_wikitext_is_reduced():
    sizes = {"corpus": "folder", "n_seq": 1024}
    (found,) = reductions_of(sizes, "another text with <unk>")
    assert (found.setting, found.value, found.published) == ("corpus", "another text with <unk>", "wikitext-2")
    assert in_words([found], texts("en")) == "another text (published: WikiText-2)"
    assert "別のテキスト" in in_words([found], texts("ja"))
    for text in ("wikitext-2-v1", "wikitext-2-raw-v1", ""):
        assert reductions_of(sizes, text) == []
    assert [smaller.value for smaller in reductions_of({"corpus": "synthetic"}, "synthetic")] == ["synthetic"]


def test_reductions_are_said_in_each_language():
    smaller = reductions_of({"corpus": "synthetic", "max_ppl_batches": 10, "n_seq": 8}) * 2
    assert in_words(smaller, texts("en")) == (
        "synthetic corpus (published: WikiText-2), n_seq 8 (published: 1024), max_ppl_batches 10 (published: all)"
    )
    assert "合成コーパス" in in_words(smaller, texts("ja"))
    assert in_words([], texts("ja")) == ""


def test_every_setting_is_described_and_the_stages_are_known():
    assert all(field.description for field in Settings.model_fields.values())
    assert [*Settings().stages, "dynamics", "counting"] == list(STAGE_NAMES)


def test_a_memory_is_watched_where_there_is_one(tmp_path):
    assert load(tmp_path, "models: [gpt2, stage1_memory_untied]\n").stages == [*Settings().stages, "dynamics"]
    assert load(tmp_path, "models: [real_twin]\n").stages == Settings().stages
    assert load(tmp_path, "models: [stage1_memory]\nstages: [train]\n").stages == ["train"]
    with pytest.raises(ParamsError, match="stages names dynamics, but none of models has a complex memory"):
        load(tmp_path, "stages: [train, dynamics]\n")
    with pytest.raises(ParamsError, match=r"models\[0\]: got 'stage2'"):
        load(tmp_path, "models: [stage2]\n")


def test_the_criteria_are_asked_of_models_that_take_part(tmp_path):
    assert load(tmp_path, "models: [stage1, stage1_memory]\n").candidates == ["stage1"]
    assert load(tmp_path, "models: [phase2, stage1_memory]\n").candidates == ["stage1_memory"]
    both = "models: [stage1, stage1_memory]\ncandidates: [stage1_memory, stage1]\n"
    assert load(tmp_path, both).candidates == ["stage1_memory", "stage1"]
    assert load(tmp_path, "candidates: [stage1]\nmodels: [gpt2]\n").models == ["gpt2"], "to train one at a time"
    with pytest.raises(ParamsError, match="candidates names one model twice"):
        load(tmp_path, "candidates: [stage1, stage1]\n")
    with pytest.raises(ParamsError, match=r"candidates\[0\]: got 'gpt2'"):
        load(tmp_path, "candidates: [gpt2]\n")


def test_settings_survive_their_own_dump():
    settings = Settings(seeds=[3, 4], learning_rates=[1e-5], max_ppl_batches=2)
    assert validate(settings.model_dump()) == settings


@pytest.mark.parametrize("path", sorted((REPOSITORY / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_params_files_of_the_repository_are_valid(path):
    assert {row.settings.profile for row in load_rows(path)} == {path.stem}


RECIPE = (
    "train_tokens", "batch_tokens", "learning_rates", "dropouts", "evaluations", "weight_decays", "compile",
    "recompute", "optimizer", "muon_learning_rate", "muon_weight_decays", "warmup_share", "gradient_clip", "corpus",
    "tokenizer", "device", "d_model", "n_layers",
)  # fmt: skip


def test_the_ablations_and_lengths_are_trained_as_the_comparison_is_but_for_what_it_tries():
    found = (load_rows(REPOSITORY / "params" / f"gpu{n}.yaml")[0].settings for n in ("", "-ablations", "-length"))
    main, *others = found
    for other in others:
        same = [key for key in RECIPE if key not in ("batch_tokens", "dropouts", "weight_decays")]
        assert {key: getattr(main, key) for key in same} == {key: getattr(other, key) for key in same}
        assert set(other.seeds) <= set(main.seeds)
        assert (main.n_seq, main.train_n_seq) == (other.n_seq, other.train_n_seq)


@pytest.mark.parametrize("name", ["gpu-ablations", "gpu-length"])
def test_the_companions_of_a_profile_take_one_combination_of_its_grid(name):
    profile, companion = (load_rows(REPOSITORY / "params" / f"{n}.yaml")[0].settings for n in ("gpu", name))
    different = {key for key in RECIPE if getattr(companion, key) != getattr(profile, key)}
    assert different == {"batch_tokens", "dropouts", "weight_decays"}
    for key in different:
        (value,) = getattr(companion, key)
        assert value in getattr(profile, key)


def test_every_ablation_is_trained_beside_the_whole():
    models = load_params(REPOSITORY / "params" / "gpu-ablations.yaml").models
    assert models[0] == "stage1_compact"
    assert set(models) == {name for name in ModelName.__args__ if name.startswith("stage1_compact")}


def test_the_comparison_is_of_every_model_and_of_every_candidate():
    settings = load_params(REPOSITORY / "params" / "gpu.yaml")
    assert set(settings.models) == set(COMPARED)
    assert set(settings.candidates) == set(CANDIDATES)
    assert len(settings.seeds) == 5


def test_the_length_study_is_valid_and_published_at_every_length():
    rows = load_rows(REPOSITORY / "params" / "gpu-length.yaml")
    assert [row.settings.n_seq for row in rows] == [1024, 2048, 4096, 8192]
    for row in rows:
        assert reductions_of(row.settings.model_dump()) == []
        assert all(tokens % row.settings.n_seq == 0 for tokens in row.settings.batch_tokens)


def refusal(load) -> list[str]:
    """The lines of a refusal, each of them short and printable."""
    with pytest.raises(ParamsError) as error:
        load()
    lines = str(error.value).split("\n")
    assert all(len(line) <= 300 and line.isprintable() for line in lines), lines
    assert "Pydantic" not in str(error.value)
    return lines


def test_keys_that_are_no_text_are_refused_beside_all_else(tmp_path):
    lines = refusal(lambda: load(tmp_path, "7: 2\ntrue: 2\n[a, b]: 1\nnull: 3\n3.5: x\nseed: -1\nmodels: [stage1]\n"))
    assert len(lines) == 6
    assert "key 7 (int), expected the name of a setting" in lines[0]
    assert "key True (bool)" in lines[1]


BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{this}: &{this} [{','.join(['*' + before] * 9)}]\n" for before, this in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: " + "9" * 4301, "4301 digits"),
        ("seed: 0x" + "f" * 5000, "bits"),
        ("seed: 1" + "0" * 1200, "seed: got"),
        ("bench_seconds: 1" + "0" * 1000, "bench_seconds: got"),
        ("seeds: " + "[" * 500 + "]" * 500, "levels"),
        ("[" * 100_000, "levels"),
        (BOMB, "values"),
        ("seeds: &a [*a]", "not defined before it"),
        ("".join(f"k{i}: 1\n" for i in range(100_000)), "larger than"),
        ("".join(f"k{i}: 1\n" for i in range(20_000)), "values"),
        ("# " + "x" * 2**20, "larger than"),
        ("seed: !!bool 7", "not YAML"),
        ("seed: 2001-99-99", "not YAML"),
        ("seed: !!python/object/apply:os.system [true]", "not YAML"),
        ("%YAML 1.1\n---\nskip_phase2: yes\n", "directive"),
        ('corpus: "a\\0b"', "corpus: got 'a\\x00b' (str), expected text in UTF-8 without control characters"),
        ('corpus: "a\\ud800b"', "corpus: got"),
        ("corpus: " + "x" * 5000, "corpus: got"),
        ('profile: "a\\n"', "profile: got"),
        ("profile: " + "x" * 5000, "profile: got"),
        ('"\\e[31m\\u202Ekey": 1', "unknown key \\x1b[31m\\u202ekey"),
        ('device: "\\e[2J"', "device: got '\\x1b[2J'"),
        ("x" * 900 + ": 1", "unknown key"),
        ("seed: " + "{a: " * 9 + "1" + "}" * 9, "seed: got"),
    ],
    ids=lambda value: value[:24].strip() if isinstance(value, str) else None,
)
def test_hostile_texts_are_refused_at_once_and_in_short(tmp_path, text, words):
    lines = refusal(lambda: load(tmp_path, text))
    assert any(words in line for line in lines), lines
    assert len(lines) <= 21
    if "\n" not in text and ": " in text:
        key, _, value = text.partition(": ")
        refusal(lambda: load(tmp_path, "", f"{key}={value}"))


def test_only_small_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero", "/dev/null", "a\0b", "x" * 5000):
        assert "cannot be read" in refusal(lambda path=path: load_params(path))[0]
    (tmp_path / "aliases.yaml").write_text("models: &m [stage1, phase2]\nbench_groups: [memory]\nformats: []\n")
    assert load_params(tmp_path / "aliases.yaml").models == ["stage1", "phase2"]


def test_every_number_has_an_upper_limit():
    """Asked of the schema, so that a new setting needs one too: no number, alone or in a list, goes without."""

    def numbers(kind):
        for inner in (kind, *kind.get("anyOf", ()), kind.get("items", {})):
            if inner.get("type") in ("integer", "number"):
                yield inner

    def nested(kind):
        return (inner for other in kind.get("anyOf", ()) for inner in numbers(other))

    schema = Settings.model_json_schema()["properties"]
    found = [(key, inner) for key, kind in schema.items() for inner in (*numbers(kind), *nested(kind))]
    without = [key for key, inner in found if not {"maximum", "exclusiveMaximum"} & set(inner)]
    assert without == []
    assert sum(bool([*numbers(kind)]) for kind in schema.values()) > 35


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train_n_layers=1000000000", "less than or equal to 1024"),
        ("batch_tokens=[1000000000]", "less than or equal to 67108864"),
        ("learning_rates=[1e308]", "expected less than or equal to 1"),
        ("seeds=[18446744073709551616]", "less than or equal to 9223372036854775807"),
        ("seed=18446744073709551616", "less than or equal to 9223372036854775807"),
        ("seeds=[0, 0]", "seeds names one value twice: 0 in [0, 0], expected each once"),
        ("models=[stage1, phase2, stage1]", "models names one model twice: 'stage1'"),
        ("learning_rates=[1e-3, 0.001]", "learning_rates names one value twice: 0.001"),
        ("dropouts=[0, 0.0]", "dropouts names one value twice"),
        ("formats=[float32, float32]", "formats names one value twice"),
        ("bench_groups=[head, head]", "bench_groups names one value twice"),
        ("bench_forward_batches=[4, 4]", "bench_forward_batches names one value twice"),
        (f"seeds={list(range(101))}", "at most 100 values, not 101"),
        ("models=[stage_1]", "did you mean stage1? Expected one of"),
        ("models=[stage7]", "did you mean stage1?"),
        ("models=[zzz]", "expected stage1, "),
        ("formats=[flaot32]", "did you mean float32?"),
        ("bench_groups=[gradient]", "did you mean gradients?"),
        ("optimizer=adam", "did you mean adamw?"),
        ("optimizer=MUON", "did you mean muon?"),
        ("stages=[trian]", "did you mean train?"),
    ],
)
def test_limits_repetitions_and_near_matches_are_said(tmp_path, override, words):
    assert words in refusal(lambda: load(tmp_path, "", override))[0]


def test_one_wrong_setting_is_one_line(tmp_path):
    """The default of `candidates` follows from the settings before it; where one of those is wrong it is not asked."""
    assert len(refusal(lambda: load(tmp_path, "models: [stage7]\n"))) == 1
    assert len(refusal(lambda: load(tmp_path, "profile: A B\n"))) == 1


@pytest.mark.parametrize(
    "text", ["data/run #3", "007", "null", "~", ": ", "a: b", "[x]", "{", "1e3", "true", "- a", "&x", "'", "a'b'"]
)
def test_the_text_of_an_override_is_meant(tmp_path, text):
    assert load(tmp_path, "", f"corpus={text}").corpus == text
    assert load(tmp_path, "", f"checkpoint_dir={text}").checkpoint_dir == text
    assert load(tmp_path, "", f"cache_dir={text}").cache_dir == (None if text == "null" else text)


def test_quotes_around_a_text_are_yaml(tmp_path):
    assert load(tmp_path, "", "corpus='null'", 'cache_dir="null"').cache_dir == "null"
    assert load(tmp_path, "", "corpus=''''").corpus == "'"
    refusal(lambda: load(tmp_path, "", "checkpoint_dir="))
    refusal(lambda: load(tmp_path, "", 'corpus="a\\0"'))
