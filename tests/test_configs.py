import ast
import dataclasses
import pathlib

import pytest

from selftrain_jax.cli.config import load_config
from selftrain_jax.core.errors import InputError
from selftrain_jax.models.files import hf_config
from selftrain_jax.report.study_data import CONTROLS, RELATIONS
from selftrain_jax.run.pipeline import Pipeline
from selftrain_jax.study.checks import check_study
from selftrain_jax.study.expand import Study
from tests.shapes import NARROW

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
STUDIES = [path for path in CONFIGS if path.name in ("lab.py", "lab_gpu.py", "map.py", "paper.py", "real.py")]
RUNS = [path for path in CONFIGS if path not in STUDIES]


def test_there_are_configs():
    assert {"quickstart.py", "smoke.py"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", [*RUNS, ROOT / "tests" / "e2e" / "tiny.py"], ids=lambda path: path.name)
def test_a_config_builds_and_its_stages_fit_together(path, tmp_path):
    """Every stage reads only what an earlier one has written."""
    pipeline = Pipeline(load_config(str(path)), tmp_path)
    before = set()
    for stage in pipeline.stages():
        assert set(stage.after) <= before
        before.add(stage.name)
    assert "report" in before and "self" in pipeline.arms
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [*STUDIES, ROOT / "tests" / "e2e" / "tiny_study.py"], ids=lambda path: path.name)
def test_the_units_of_a_study_fit_together(path, tmp_path):
    study = Study(load_config(str(path), study=True), tmp_path)
    before = set()
    for unit in study.units:
        assert set(unit.needs) <= before and unit.stages
        before.add(unit.name)
    assert len(before) == len(study.units) and {f"{run.name}: report" for run in study.runs} <= before
    for run in study.runs:
        assert run.arms[0].relation == "self" and list(run.pipeline.arms)[1:] == [arm.key for arm in run.arms[1:]]
    assert list(tmp_path.iterdir()) == []


def test_the_map_trains_on_own_text_at_every_temperature_and_on_real_text_once(tmp_path):
    study = Study(load_config(str(ROOT / "configs" / "map.py"), study=True), tmp_path)
    assert len(study.runs) == 2 * 3 * 4
    for run in study.runs:
        assert [arm.relation for arm in run.arms] == ["self"] * 4 + ["real text"]
        assert [arm.temperature for arm in run.arms] == [0.5, 0.7, 1.0, 1.25, None]
    assert not [unit.name for unit in study.units if unit.name.startswith(("proxies", "generations", "shuffled"))]
    full, quarter = (study.config.lab.models[name] for name in ("full", "quarter"))
    assert full == dataclasses.replace(quarter, num_documents=4 * quarter.num_documents)


def test_each_student_has_a_control_with_fresh_sequences_of_its_own(tmp_path):
    tiny = str(ROOT / "tests" / "e2e" / "tiny_study.py")
    study = Study(load_config(tiny, ["--config.fresh=True", "--config.students=('A_small','B')"], study=True), tmp_path)
    units = {unit.name: unit for unit in study.units}
    for run in study.runs:
        (arm,) = [arm for arm in run.arms if arm.relation == CONTROLS[2]]
        made = f"fresh/{run.student}-0"
        assert arm.needs == (made,) and units[made].needs == ("lab/0/world", f"corpora/0/{run.student}")
        assert run.pipeline.config.controls["real_fresh"].texts == str(tmp_path / made / "texts.jsonl")
    other = ["--config.fresh=True", "--config.sources=('B',)", "--config.generations.students=()"]
    with pytest.raises(InputError, match="name 'A_small' in sources"):
        load_config(tiny, other, study=True)


def test_later_generations_have_the_first_condition(tmp_path):
    lists = ["--config.learning_rates=(0.002,0.004)", "--config.budgets=(513,1025)"]
    study = Study(load_config(str(ROOT / "tests" / "e2e" / "tiny_study.py"), lists, study=True), tmp_path)
    assert study.generations
    for g in study.generations:
        config, first = g.pipeline.config, study.first_runs[g.student, g.seed].pipeline.config
        assert config.train == first.train and config.train.optimizer.learning_rate == 0.002
        assert config.subset.num_tokens == first.subset.num_tokens == 513
    longer = Study(
        load_config(str(ROOT / "tests" / "e2e" / "tiny_study.py"), [lists[0], "--config.budgets=(99,513)"], study=True),
        tmp_path,
    )
    assert {run.name for run in longer.runs} & {run.name for run in study.runs} == {
        run.name for run in study.runs if run.condition.num_tokens == 513
    }


def test_the_papers_matrix():
    config = load_config(str(ROOT / "configs" / "paper.py"), study=True)
    assert {config.models[name].path for name in config.students} == {"Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.2-1B"}
    relations = {
        student: {config.models[source].path: config.relation(source, student) for source in config.sources}
        for student in config.students
    }
    own, lineage, recipe, family = RELATIONS
    assert relations == {
        "qwen2p5_0p5b": {
            "Qwen/Qwen2.5-0.5B": own,
            "Qwen/Qwen2.5-7B": lineage,
            "Qwen/Qwen3-8B-Base": recipe,
            "meta-llama/Llama-3.2-1B": family,
        },
        "llama_3p2_1b": {
            "meta-llama/Llama-3.2-1B": own,
            "Qwen/Qwen2.5-7B": family,
            "Qwen/Qwen3-8B-Base": family,
            "Qwen/Qwen2.5-0.5B": family,
        },
    }
    assert (config.train.batch_size, config.train.sequence_length, config.subset.num_subsets) == (64, 2048, 1)
    assert (config.sample.temperature, config.sample.num_samples, config.audit.join_fields) == (1.25, 20_000, True)
    assert len(config.audit.benchmarks) == 7 and config.tasks.names == ("paper-zero-shot", "paper-few-shot")
    assert {model.start for model in config.models.values()} == {""}


def test_the_papers_corpora_are_one_of_each_source_and_begin_where_a_model_says(tmp_path):
    study = Study(load_config(f"{ROOT / 'configs' / 'paper.py'}:authors", study=True), tmp_path)
    corpora = {unit.name: unit.stages[0].settings["start"] for unit in study.units if unit.name.startswith("corpora/")}
    starts = {"qwen2p5_0p5b": ("\n",), "qwen2p5_7b": ("\n",), "qwen3_8b": ("\n",), "llama_3p2_1b": "auto"}
    assert corpora == {f"corpora/0/{name}": start for name, start in starts.items()}
    seeds = {run.seed: run.pipeline.config for run in study.runs if run.student == "qwen2p5_0p5b"}
    assert {seed: config.subset.seed for seed, config in seeds.items()} == {0: 0, 1: 1, 2: 2}
    assert len({config.corpus for config in seeds.values()}) == 1


def test_real_models_are_named_by_hub_name_or_directory(tmp_path):
    for name in ("a/model", "b/model"):
        (tmp_path / name).mkdir(parents=True)
        hf_config.write_config(tmp_path / name, dataclasses.replace(NARROW, max_position=96), "float32")
        (tmp_path / name / "tokenizer.json").write_text(name)
    hub = "EleutherAI/pythia-160m,EleutherAI/pythia-70m@step1000,HuggingFaceTB/SmolLM2-135M"
    names = f"{tmp_path}/a/model,{tmp_path}/b/model/,{hub}"
    config = load_config(f"{ROOT / 'configs' / 'real.py'}:{names}", study=True)
    assert config.models.keys() == {"model", "model_1", "pythia_160m", "pythia_70m_step1000", "SmolLM2_135M"}
    assert config.models["pythia_70m_step1000"].revision == "step1000"
    own, lineage, recipe, family = RELATIONS
    assert config.relation("pythia_160m", "pythia_70m_step1000") == recipe
    assert config.relation("model", "model_1") == config.relation("pythia_160m", "SmolLM2_135M") == family
    assert config.train.sequence_length == config.sample.max_new_tokens == 96
    small = load_config(f"{ROOT / 'configs' / 'real.py'}:{hub}:small", study=True)
    assert len(small.students) == 1 and len(Study(small, tmp_path / "study").runs[0].arms) == 4
    alone = load_config(f"{ROOT / 'configs' / 'real.py'}:EleutherAI/pythia-70m:small", study=True)
    assert [arm.key for arm in Study(alone, tmp_path / "study").runs[0].arms] == ["pythia_70m", "real", "shuffled"]


def test_files_of_the_data_folder_are_named_before_any_work(tmp_path):
    config = load_config(f"{ROOT / 'configs' / 'real.py'}", [f"--config.data={tmp_path}"], study=True)
    with pytest.raises(InputError, match=rf"'data:.*file not found: {tmp_path}/.*name the folder .* --config.data=DIR"):
        check_study(Study(config, tmp_path / "study"))


# Model -> rows per device step and their length, of what is known; the rest as for the largest.
FAMILY = {
    "Qwen/Qwen2.5-0.5B": (8, 2048),
    "meta-llama/Llama-3.2-1B": (8, 2048),
    "google/gemma-3-270m": (16, 2048),
    "openai-community/gpt2": (32, 1024),
    "HuggingFaceTB/SmolLM2-135M": (32, 2048),
    "somebody/something": (8, 2048),
}


@pytest.mark.parametrize("model", FAMILY)
def test_rows_of_any_model_fit_its_size_and_context(model):
    config = load_config(f"{ROOT / 'configs' / 'family.py'}:{model}@step7")
    rows, length = FAMILY[model]
    assert (config.source, config.revision) == (model, "step7")
    assert (config.train.batch_size // config.train.grad_accum, config.train.sequence_length) == (rows, length)
    assert config.sample.max_new_tokens == 1024
    pythia = load_config(str(ROOT / "configs" / "pythia.py"))
    assert (config.audit, config.subset, config.evaluate) == (pythia.audit, pythia.subset, pythia.evaluate)


def test_the_shape_of_a_directory_is_that_of_its_files(tmp_path):
    hf_config.write_config(tmp_path, dataclasses.replace(NARROW, max_position=96), "float32")
    config = load_config(f"{ROOT / 'configs' / 'family.py'}:{tmp_path}")
    assert (config.train.sequence_length, config.sample.max_new_tokens, config.train.grad_accum) == (96, 96, 1)


def test_every_size_of_the_papers_study_has_a_relative():
    for size in ("70m", "pythia-1.4b", "12b"):
        config = load_config(f"{ROOT / 'configs' / 'paper.py'}:{size}", study=True)
        (student,) = config.students
        assert [config.relation(source, student) for source in config.sources] == list(RELATIONS[:3])


def test_a_given_corpus_takes_the_place_of_sampling(tmp_path):
    """The source is then not needed, and the settings of the arms without a given corpus stay what they were."""
    tiny = str(ROOT / "tests" / "e2e" / "tiny.py")
    plain = {s.name: s for s in Pipeline(load_config(tiny), tmp_path).stages()}
    given = [f"--config.corpus={tmp_path}", "--config.source=", "--config.student=lab:other"]
    pipeline = Pipeline(load_config(tiny, given), tmp_path)
    stages = {s.name: s for s in pipeline.stages()}
    assert set(pipeline.arms) == {"corpus", "real", "other"} and pipeline.main == "corpus"
    assert set(plain) - set(stages) >= {"lab/base", "sample/self", "audit/self"}
    assert not any(name.startswith("sample") for name in stages["audit/corpus"].after)
    assert stages["audit/corpus"].settings["corpus"] == str(tmp_path)
    for arm in ("real", "other"):
        assert stages[f"audit/{arm}"].settings == plain[f"audit/{arm}"].settings


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_config_opens_with_its_command_cost_and_result(path):
    lines = ast.get_docstring(ast.parse(path.read_text())).splitlines()
    found = {line.split(":")[0]: line for line in lines if ":" in line}
    assert f"--config=configs/{path.name}" in found["Command"]
    assert found["Cost"] and found["Expect"]


@pytest.mark.parametrize("name", ["quickstart.py"])
def test_the_argument_of_a_config_changes_its_seeds(name):
    first, second = (load_config(f"{ROOT / 'configs' / name}:{seed}") for seed in (0, 1))
    for part in ("sample", "subset", "train"):
        assert (getattr(first, part).seed, getattr(second, part).seed) == (0, 1)
    assert first.lab.world.seed != second.lab.world.seed and first.lab.base.seed != second.lab.base.seed


@pytest.mark.parametrize("name", ["quickstart.py", "smoke.py", "lab.py", "map.py"])
def test_what_runs_offline_lacks_nothing(name):
    assert load_config(str(ROOT / "configs" / name), study=name in ("lab.py", "map.py")).lacks() == []
