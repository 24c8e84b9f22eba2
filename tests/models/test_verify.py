"""`selftrain verify` passes a model that transformers agrees with, and names the place where another one goes
astray.
"""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest
import transformers

from selftrain_jax.cli import main as cli
from selftrain_jax.core.errors import InputError
from selftrain_jax.core.files import fingerprint
from selftrain_jax.evaluation import published
from selftrain_jax.models import hf, verify
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.families import PRESETS
from tests.models import references
from tests.models.checkpoints import OLD_CONFIG

CONFIG = DecoderConfig(vocab_size=96, hidden_size=32, num_layers=3, num_heads=4, intermediate_size=64, max_position=300)
ARC_EASY = pathlib.Path(__file__).parents[3] / "shared" / "data" / "benchmarks" / "arc_easy_test.jsonl"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Written by transformers: norms are not the identity, biases not zero, logits of order 1."""
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    import transformers

    torch.manual_seed(0)
    model = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=96,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=300,
            rotary_pct=0.5,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    directory = tmp_path_factory.mktemp("verify") / "model"
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def perturb(monkeypatch):
    """`perturb(change)` changes our parameters, after loading, and not those that transformers sees."""
    load = hf.load_pretrained

    def install(change):
        def load_and_change(directory):
            config, params = load(directory)
            change(params)
            return config, params

        monkeypatch.setattr(hf, "load_pretrained", load_and_change)

    return install


def write_tokenizer(directory, size):
    from tokenizers import Tokenizer, models, pre_tokenizers

    characters = "eotainshrdlucmfwypvbgk .,:1"
    vocab = {word: i for i, word in enumerate(["<|endoftext|>", *characters][:size])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def test_the_model_agrees_with_transformers(checkpoint, capsys):
    assert cli.main(["verify", str(checkpoint)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    *_, last = lines = out.splitlines()
    assert last.startswith("OK: fp32 logits agree")
    for row in ("ours fp32 - transformers fp32", "ours bf16 - transformers bf16", "embedding", "layer 2", "final norm"):
        assert any(line.startswith(row) for line in lines)


@pytest.mark.parametrize(
    "case", ["gemma2", *(pytest.param(case, marks=pytest.mark.large) for case in ("llama", "olmo3", "gpt2"))]
)
def test_models_of_other_families_agree_with_transformers(tmp_path, case):
    """Layers of two kinds, and a soft-cap that the reference needs eager attention for; see `test_families.py`."""
    references.reference(case)[1].save_pretrained(tmp_path)
    verdict = verify.verify(tmp_path, dtypes=("fp32",))
    assert verdict.ok and verdict.first_divergence is None, verify.format_tables(verdict)
    assert verdict.num_positions == 1 + 7 + 64 + 127 and verdict.largest_logit > 1


EXACT = [
    ("pythia-14m", 0),
    ("pythia-70m", 0),
    ("pythia-31m", 0),
    ("pythia-160m", 0),
    ("pythia-410m", 0),
    ("pythia-1b", 2),
    ("pythia-2.8b", 2),
    ("pythia-12b", 2),
]


@pytest.mark.large  # test_parity.py has shapes of all kinds
@pytest.mark.parametrize("name, layers", EXACT)
def test_published_shapes_agree_with_transformers(name, layers, capsys):
    """Random checkpoints of the exact shapes, saved by transformers; `layers` cuts the depth."""
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    import transformers

    config = PRESETS[name]
    torch.manual_seed(0)
    model = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=layers or config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            rotary_pct=0.25,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms that are the identity and biases of zero would hide mistakes
                parameter += 0.2 * torch.randn(parameter.shape)
    with tempfile.TemporaryDirectory() as directory:  # pytest keeps its own for several runs
        model.save_pretrained(directory)
        del model
        verdict = verify.verify(directory)
    with capsys.disabled():
        print(f"\n{name}: {verify.format_verdict(verdict)}; bf16 {verdict.logits[1].max:.1e}")
    assert verdict.logits[0].max < 1e-4
    assert all(gap < 1e-5 for _, gap in verdict.layers)
    assert 1 < verdict.largest_logit and 1e-3 < verdict.logits[1].max < 1


def test_the_figures_mean_what_they_say(checkpoint):
    verdict = verify.verify(checkpoint)
    assert verdict.ok and verdict.first_divergence is None
    assert [name for name, _ in verdict.layers] == ["embedding", "layer 0", "layer 1", "layer 2", "final norm"]
    assert verdict.num_positions == 1 + 7 + 64 + 299
    fp32, same_dtype, ours, theirs = verdict.logits
    assert fp32.max < 1e-5 * verdict.largest_logit and fp32.same_argmax == 1
    assert 1 < verdict.largest_logit < 100
    # bf16 keeps 8 bits: its gaps are orders of magnitude larger than those of fp32, and of the size of each other.
    for gap in (same_dtype, ours, theirs):
        assert 1e-3 < gap.max < 1 and fp32.mean < gap.mean < gap.max and 0.8 < gap.same_argmax <= 1
    assert ours.mean < 1.5 * theirs.mean
    assert len(verify.verify(checkpoint, dtypes=["fp32"]).logits) == 1


@pytest.mark.parametrize(
    "path, index, where",
    [
        (("embed", "embedding"), (0, 3), "embedding"),  # row 0 is BOS, with which every run begins
        (("layers", "qkv", "kernel"), (1, 3, 2, 1, 0), "layer 1"),
        (("layers", "mlp_norm", "bias"), (2, 5), "layer 2"),
        (("final_norm", "scale"), (7,), "final norm"),
        (("head", "kernel"), (4, 40), "output layer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_wrong_weight_is_found_where_it_is(checkpoint, perturb, capsys, path, index, where):
    def change(params):
        for part in path:
            params = params[part]
        params[index] += 0.1

    perturb(change)
    assert cli.main(["verify", str(checkpoint), "--dtype=fp32"]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[-1].startswith("DIFFERENT") and out.endswith(f"first at: {where}\n")
    assert ("diverges here" in out) == (where != "output layer")
    if where.startswith("layer"):
        following = f"layer {int(where[-1]) + 1}"
        assert where in out and following not in out


def test_numbers_that_are_none_do_not_pass(checkpoint, perturb):
    def change(params):
        params["layers"]["up"]["bias"][1, 0] = np.nan

    perturb(change)
    verdict = verify.verify(checkpoint, dtypes=["fp32"])
    assert not verdict.ok and verdict.first_divergence == "layer 1"


def test_a_bound_for_logits_of_any_size():
    def verdict(gap, largest, rounding=None):
        row = verify.LogitGap("ours fp32", "transformers fp32", gap, 0.0, 1.0)
        return verify.Verdict("m", "cpu", 1, 1, largest, rounding, (row,), ())

    assert verdict(0.9e-4, 5.0).ok and not verdict(1.1e-4, 5.0).ok and not verdict(1.1e-4, 10.0).ok
    assert verdict(1e-3, 1000.0).ok and not verdict(1.1e-2, 1000.0).ok
    assert not verdict(float("nan"), 1.0).ok
    # A model that amplifies rounding: what transformers loses by it, we may be apart four times.
    assert verdict(1.4e-3, 100.0, 4e-4).ok and not verdict(1.7e-3, 100.0, 4e-4).ok


def test_prompts_are_fixed_and_fit_model_and_tokenizer(tmp_path):
    empty = tmp_path / "no-tokenizer"
    empty.mkdir()
    prompts = verify.make_prompts(CONFIG, empty)
    jax.tree.map(np.testing.assert_array_equal, prompts, verify.make_prompts(CONFIG, empty))
    assert [p.shape for p in prompts] == [(1, 1), (1, 7), (1, 64), (1, 299)]
    assert prompts[0][0, 0] == CONFIG.bos_token_id
    assert 20 < max(p.max() for p in prompts) < CONFIG.vocab_size
    worded = verify.make_prompts(CONFIG, write_tokenizer(tmp_path / "tokenizer", 20))
    assert len(worded) == 6 and max(p.max() for p in worded) < 20
    assert len({p.tobytes() for p in worded}) == 6
    short = DecoderConfig(vocab_size=4, hidden_size=2, num_layers=1, num_heads=1, intermediate_size=2, max_position=2)
    assert all(p.shape[1] <= 2 for p in verify.make_prompts(short, empty))
    with pytest.raises(InputError, match="20 ids"):
        verify.make_prompts(short, tmp_path / "tokenizer")


@pytest.mark.parametrize("kind, message", [("gpt_neox", "pip install torch"), ("mamba", "'mamba' is not supported")])
def test_without_pytorch(tmp_path, monkeypatch, capsys, kind, message):
    """What no PyTorch would help is said first; no weights are looked for."""
    transformers.utils.is_torch_available()  # asks once and remembers: the tests after this one need the truth
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torch" else find_spec(name, *a))
    (tmp_path / "config.json").write_text(json.dumps(OLD_CONFIG | {"model_type": kind}))
    assert cli.main(["verify", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_a_broken_checkpoint_is_refused(checkpoint, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    assert cli.main(["verify", str(tmp_path)]) == 2
    (tmp_path / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes()[:-9])
    assert cli.main(["verify", str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all(str(tmp_path) in error for error in errors)


def test_settings_that_name_code_do_not_act(checkpoint, tmp_path, monkeypatch):
    model = shutil.copytree(checkpoint, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    evil = {
        name: "evil/kernel:fn" for name in ("attn_implementation", "_attn_implementation", "experts_implementation")
    }
    (model / "config.json").write_text(json.dumps(config | evil))
    prompts = [np.array([[0, 5, 7]], np.int32)]
    found, expected = (verify._reference(directory, prompts, "fp32")[0] for directory in (model, checkpoint))
    np.testing.assert_array_equal(found, expected)
    (model / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(InputError, match="quantized"):
        verify.verify(model)


def test_an_adapter_that_transformers_would_put_in_is_refused(checkpoint, tmp_path, monkeypatch):
    """peft imports the module that an adapter's `megatron_core` names."""
    model = shutil.copytree(checkpoint, tmp_path / "model")
    (model / "adapter_config.json").write_text('{"peft_type": "LORA", "megatron_core": "evil", "megatron_config": {}}')
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: name == "peft" or find_spec(name, *a))
    monkeypatch.setattr(verify, "_reference", lambda *_: pytest.fail("transformers would load it"))
    with pytest.raises(InputError, match="adapter_config.json.*remove the file"):
        verify.verify(model)


def test_a_converted_directory_is_to_be_exported_first(checkpoint, tmp_path):
    from selftrain_jax.run.export import convert

    convert(str(checkpoint), tmp_path / "orbax")
    with pytest.raises(InputError, match="`selftrain export` it first"):
        verify.verify(tmp_path / "orbax")


def test_what_transformers_alone_refuses_is_not_called_damaged(checkpoint, monkeypatch):
    import transformers

    def refused(*_, **__):
        raise KeyError("metadata")

    monkeypatch.setattr(transformers.GPTNeoXForCausalLM, "from_pretrained", refused)
    with pytest.raises(InputError, match="transformers cannot load .*, whose tensors are complete: 'metadata'"):
        verify.verify(checkpoint)


def test_wrong_use_is_refused(tmp_path, capsys):
    pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    for argv, word in (
        (["verify", str(tmp_path / "none")], "not found"),
        (["verify", str(tmp_path), "--revision=step1"], "revision"),
        (["verify", str(tmp_path), "--config.a=1"], "--config.a=1"),
    ):
        assert cli.main(argv) == 2
        assert word in capsys.readouterr().err


ITEM = {"question": "What do plants need?", "choices": ["Sun.", "Land.", "Air.", "Plants."], "gold": 0}


@pytest.fixture
def arc_easy(tmp_path, monkeypatch):
    """A question file whose first item passes for that of ARC-Easy."""
    monkeypatch.setattr(published, "_QUESTION", fingerprint(ITEM["question"]))
    path = tmp_path / "arc_easy.jsonl"
    path.write_text(json.dumps(ITEM) + "\n" + json.dumps(ITEM | {"question": "Which?"}) + "\n")
    return path


def test_published_figures_are_for_one_model_and_one_item(checkpoint, arc_easy, tmp_path):
    assert published.first_arc_easy_item(arc_easy, "EleutherAI/pythia-70m") == ITEM
    assert published.first_arc_easy_item(arc_easy, "EleutherAI/pythia-70m", "step143000") == ITEM
    for model, revision in (
        ("EleutherAI/pythia-70m-deduped", None),
        ("EleutherAI/pythia-70m", "step1000"),
        (checkpoint, None),
    ):
        with pytest.raises(InputError, match="leave --arc-easy out"):
            published.first_arc_easy_item(arc_easy, model, revision)
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(ITEM | {"question": "Which?"}) + "\n")
    with pytest.raises(InputError, match="must start with"):
        published.first_arc_easy_item(other, "EleutherAI/pythia-70m")


@pytest.mark.large
def test_published_figures_decide_as_well(checkpoint, arc_easy, monkeypatch, capsys, tmp_path):
    """The small model stands in for pythia-70m; once its own figures are "published", and once they are not."""
    model = shutil.copytree(checkpoint, tmp_path / "model")
    write_tokenizer(model, 20)
    monkeypatch.setitem(PRESETS, "pythia-70m", hf.load_config(model))
    argv = ["verify", str(model), "--dtype=fp32", f"--arc-easy={arc_easy}"]
    assert cli.main(argv) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("DIFFERENT: fp32 logits agree") and "ARC-Easy figures differ" in last
    found = published.check_arc_easy(ITEM, model).found
    assert all(value < -1 for value in found)
    monkeypatch.setattr(published, "_LOG_LIKELIHOODS", tuple(value + 0.009 for value in found))
    assert cli.main(argv) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("OK") and "ARC-Easy figures agree (max gap 9.0e-03 nats)" in last


def test_the_real_first_item_is_recognized():
    if not ARC_EASY.is_file():
        pytest.skip("the ARC-Easy test set is not in ../shared/data/benchmarks")
    assert len(published.first_arc_easy_item(ARC_EASY, "EleutherAI/pythia-70m")["choices"]) == 4


@pytest.mark.hub
def test_the_real_pythia_agrees_with_transformers_and_published_figures():
    pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    if not ARC_EASY.is_file():
        pytest.skip("the ARC-Easy test set is not in ../shared/data/benchmarks")
    argv = ["verify", "EleutherAI/pythia-70m", f"--arc-easy={ARC_EASY}"]
    code = (
        "import os, sys; os.environ['HF_HUB_OFFLINE'] = '0'; from selftrain_jax.cli.main import main; "
        f"sys.exit(main({argv}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if "no connection" in done.stderr:
        pytest.skip("the Hugging Face hub cannot be reached")
    assert done.returncode == 0, done.stdout + done.stderr
