import jax
import pytest

from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.lab.settings import WorldConfig
from selftrain_jax.lab.tokenization import build_tokenizer, save_tokenizer
from selftrain_jax.lab.world import build_world
from selftrain_jax.models import hf
from selftrain_jax.models.config import DecoderConfig
from tests.shapes import initial


@pytest.fixture(scope="session")
def world():
    return build_world(WorldConfig(num_people=8, max_addend=4, repeats=(0, 2), sequences_per_group=2))


@pytest.fixture(scope="session")
def model_directory(world, tmp_path_factory):
    """A random model whose embedding has 16 rows more than the tokenizer has ids, as Pythia's has."""
    directory = tmp_path_factory.mktemp("model")
    config = DecoderConfig(
        vocab_size=len(world.words) + 16,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        intermediate_size=64,
        max_position=32,
    )
    tokenizer = save_tokenizer(build_tokenizer(world), directory / "tokenizer")
    hf.save_pretrained(directory / "model", config, initial(config), tokenizer)
    return directory / "model"


@pytest.fixture(scope="session")
def one_device():
    return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
