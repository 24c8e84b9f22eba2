"""Training is the same as in PyTorch, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selftrain_jax.models import decoder, hf
from selftrain_jax.models.families import PRESETS
from selftrain_jax.training.optimizer import make_optimizer, make_schedule
from selftrain_jax.training.settings import OptimizerConfig
from selftrain_jax.training.step import TrainState, make_train_step, next_token_loss
from tests.models import references
from tests.shapes import SMALL


def neox(config):
    """transformers' GPT-NeoX of that shape."""
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    import transformers

    torch.manual_seed(0)
    spread = 0.2 if config is SMALL else 0.02
    return transformers.GPTNeoXForCausalLM(references.neox_config(config, initializer_range=spread))


@pytest.mark.parametrize(
    "model, steps, learning_rate",
    [
        (SMALL, 6, 1e-3),
        pytest.param(PRESETS["pythia-70m"], 20, 1e-4, marks=pytest.mark.large),
        ("gemma3", 10, 1e-3),
        *(
            pytest.param(case, 10, 1e-3, marks=pytest.mark.large)
            for case in ("llama", "qwen3", "olmo2", "gemma2", "gpt2")
        ),
    ],
    ids=lambda value: {SMALL: "small", PRESETS["pythia-70m"]: "pythia-70m"}.get(value, value),
)
def test_training_equals_pytorch(tmp_path, model, steps, learning_rate):
    """transformers' model under torch.optim.AdamW, with clipping, decay groups and the schedule, step for step in fp32.

    Adam divides a gradient by its own size, so where the true gradient is zero (key biases) it would blow rounding up
    to a full step; eps = 1e-5, well over that rounding of some 1e-9, keeps the comparison about the algorithm. Rows are
    longer than the windows.
    """
    torch = pytest.importorskip("torch", reason="PyTorch, the reference, is not installed")
    reference = references.reference(model)[1] if isinstance(model, str) else neox(model)
    reference.save_pretrained(tmp_path / "start")
    config, params = hf.load_pretrained(tmp_path / "start")
    assert isinstance(model, str) or config == model

    settings = OptimizerConfig(
        learning_rate=learning_rate, warmup=0.4, weight_decay=0.1, eps=1e-5, beta2=0.95, clip_norm=0.5
    )
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (steps, 2, 33 if isinstance(model, str) else 21))

    matrices = [p for p in reference.parameters() if p.ndim > 1]
    others = [p for p in reference.parameters() if p.ndim == 1]
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
    )
    optimizer, schedule = make_optimizer(settings, steps), make_schedule(settings, steps)
    # In parts where that is cheap.
    chunk, grad_accum = (32, 1) if model == PRESETS["pythia-70m"] else (8, 2)
    loss_fn = next_token_loss(decoder.Decoder(config), chunk=chunk)
    train_step = make_train_step(loss_fn, optimizer, grad_accum=grad_accum)
    state, start = TrainState.create(jax.tree.map(jnp.asarray, params), optimizer), jax.tree.map(np.copy, params)
    for step in range(steps):
        ids = torch.from_numpy(tokens[step])
        loss = reference(ids, labels=ids).loss
        adamw.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), settings.clip_norm)
        for group in adamw.param_groups:
            group["lr"] = float(schedule(step))
        adamw.step()
        state, metrics = train_step(state, {"tokens": tokens[step].astype(np.int32)})
        assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-4)
        assert float(metrics["grad_norm"]) == pytest.approx(norm.item(), rel=5e-4)
        assert norm > settings.clip_norm  # clipping is at work

    reference.save_pretrained(tmp_path / "end")
    expected = hf.load_pretrained(tmp_path / "end")[1]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max())),
        state.params,
        expected,
    )
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), start, expected)
    assert min(jax.tree.leaves(moved)) > learning_rate  # many times the bound, in every tensor
