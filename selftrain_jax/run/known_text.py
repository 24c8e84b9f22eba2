"""The known text that a run looks for in what it trains on."""

from typing import Any

from selftrain_jax.evaluation import leaks, memorization
from selftrain_jax.models.files.hf_config import load_config
from selftrain_jax.run.names import RunNames


def known(run: RunNames, tokenizer: Any, with_probes: bool = True) -> list[leaks.Known]:
    """All text that is looked for; `InputError` for a file that is unusable. `with_probes`: whether these are made."""
    settings = run.config.leaks
    lengths = settings.least_tokens, settings.least_characters
    found = [
        one
        for name, path in settings.references.items()
        for one in leaks.known_texts(name, run.path(path), tokenizer, *lengths)
    ]
    if settings.probes and with_probes:
        config = load_config(run.model_path(run.student))
        probes = memorization.load_probes(run.path(run.config.evaluate.probes), config)
        found += leaks.known_probes(probes, tokenizer, *lengths)
    return found
