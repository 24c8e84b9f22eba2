"""Meshes multiply out, axis names lead to mesh axes, and what does not divide stays whole."""

import itertools
import os
import socket
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from selftrain_jax.core.errors import InputError
from selftrain_jax.distributed import job
from selftrain_jax.distributed import mesh as mesh_lib
from selftrain_jax.distributed.mesh import (
    RULES,
    batch_sharding,
    batch_ways,
    configure_jax,
    constrain,
    describe,
    find_devices,
    is_local,
    local_mesh,
    make_mesh,
    named_shardings,
    partition_spec,
    replicated,
    to_global,
)
from selftrain_jax.distributed.settings import MESH_AXES, MeshConfig
from selftrain_jax.models import decoder
from selftrain_jax.models.families import PRESETS


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(2, 2, 2))


@pytest.mark.parametrize(
    "config, devices, expected",
    [
        (MeshConfig(), 1, (1, 1, 1)),
        (MeshConfig(), 8, (8, 1, 1)),
        (MeshConfig(2, -1, 2), 8, (2, 2, 2)),
        (MeshConfig(1, 4, -1), 8, (1, 4, 2)),
        (MeshConfig(2, 3, 4), 24, (2, 3, 4)),
    ],
)
def test_sizes_multiply_out(config, devices, expected):
    assert config.shape(devices) == expected


@pytest.mark.parametrize(
    "config, devices",
    [(MeshConfig(4, 1, 1), 8), (MeshConfig(16, 1, 1), 8), (MeshConfig(-1, 3, 1), 8), (MeshConfig(-1, 16, 1), 8)],
)
def test_sizes_that_do_not_fit_the_devices_are_refused(config, devices):
    with pytest.raises(InputError, match=f"fsdp={config.fsdp}.*{devices} device"):
        config.shape(devices)


@pytest.mark.parametrize("sizes", [(-1, -1, 1), (0, 1, 1), (1, -2, 1), (-1, 1, 0)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(InputError, match="at most one of them -1"):
        MeshConfig(*sizes)


def test_tpu_slices_must_divide_the_data_axis():
    chips = [types.SimpleNamespace(platform="tpu", slice_index=i // 4) for i in range(8)]
    with pytest.raises(InputError, match="mesh.data=1 must be a multiple of 2, the number of TPU slices"):
        make_mesh(MeshConfig(1, 8, 1), chips)


def test_mesh_axes_are_auto_and_hold_every_device_once(mesh):
    assert mesh.axis_names == MESH_AXES and mesh.devices.shape == (2, 2, 2)
    assert set(mesh.devices.flat) == set(jax.devices())
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)
    assert batch_ways(mesh) == 4
    assert make_mesh(MeshConfig(1, 1, 1), jax.devices()[3:4]).devices.item() is jax.devices()[3]


@pytest.mark.parametrize("name", PRESETS)
def test_every_axis_name_of_the_model_has_a_rule(name):
    axes = decoder.param_axes(PRESETS[name])
    for names in jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple)):
        assert {name for name in names if name is not None} <= set(RULES)
        used = [axis for axis in partition_spec(names) if axis is not None]
        assert set(used) <= set(MESH_AXES) and len(used) == len(set(used))


def spec_of(mesh, axes, shape, rules=RULES):
    return named_shardings(mesh, {"x": axes}, {"x": jax.ShapeDtypeStruct(shape, jnp.float32)}, rules)["x"].spec


@pytest.mark.parametrize(
    "axes, shape, expected",
    [
        (("embed", "vocab"), (32, 100), ("fsdp", "tensor")),
        (("embed", "vocab"), (32, 101), ("fsdp", None)),
        (("embed", "vocab"), (33, 100), (None, "tensor")),
        (("layers", "embed", "qkv", "heads", "head_dim"), (5, 32, 3, 1, 8), (None, "fsdp", None, None, None)),
        (("batch", "time"), (8, 7), (("data", "fsdp"), None)),
        (("batch", "time"), (6, 7), (None, None)),  # divided by 2, but not by data * fsdp = 4
        ((None, "mlp"), (2, 2), (None, "tensor")),
    ],
)
def test_dimensions_that_do_not_divide_stay_whole(mesh, axes, shape, expected):
    assert spec_of(mesh, axes, shape) == PartitionSpec(*expected)


def test_another_table_shards_differently(mesh):
    assert spec_of(mesh, ("embed",), (32,), RULES | {"embed": None}) == PartitionSpec(None)


def test_rules_that_spread_two_axes_of_an_array_over_one_mesh_axis_are_refused(mesh):
    for rule in ("tensor", ("data", "tensor")):
        with pytest.raises(InputError, match="'embed' and 'vocab' are axes of one array.*mesh axis 'tensor'"):
            spec_of(mesh, ("embed", "vocab"), (32, 100), RULES | {"embed": rule})
    with pytest.raises(InputError, match="'mlp' and 'mlp'"):
        partition_spec(("mlp", "mlp"))


def test_constrain_is_a_no_op_without_a_mesh():
    x = jnp.ones((8, 4))
    assert constrain(x, "batch", "time") is x
    assert "sharding" not in str(jax.make_jaxpr(lambda x: constrain(x, "batch", "time"))(x))


def test_constrain_pins_the_batch_axis_on_a_mesh(mesh):
    pinned = jax.jit(lambda x: constrain(x * 2, "batch", "time"))
    with jax.set_mesh(mesh):
        found = pinned(jnp.ones((8, 4)))
        uneven = pinned(jnp.ones((6, 4)))  # cannot be spread over 4, and must not fail
    assert found.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(("data", "fsdp"))), 2)
    np.testing.assert_array_equal(found, 2)
    np.testing.assert_array_equal(uneven, 2)


def test_constrain_ignores_the_meshes_of_others():
    other = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(other):
        np.testing.assert_array_equal(jax.jit(lambda x: constrain(x, "batch", "time"))(jnp.ones((8, 4))), 1)


def test_to_global_places_host_arrays_and_keeps_their_values(mesh):
    tree = {"rows": np.arange(16).reshape(8, 2), "scalar": np.float32(3)}
    placed = to_global(mesh, tree, {"rows": batch_sharding(mesh), "scalar": replicated(mesh)})
    jax.tree.map(np.testing.assert_array_equal, placed, tree)
    assert placed["rows"].addressable_shards[0].data.shape == (2, 2)
    assert placed["scalar"].sharding.is_fully_replicated
    again = to_global(mesh, {"rows": placed["rows"]}, replicated(mesh))["rows"]
    assert again.sharding.is_fully_replicated


@pytest.fixture
def flags():
    """Puts back what a test makes of JAX's flags."""
    names = ("jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable", "jax_default_matmul_precision")
    names += ("jax_disable_jit", "jax_transfer_guard", "jax_transfer_guard_host_to_device")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_command_computes_the_same_whatever_the_environment_asks_of_jax(flags):
    asked = {"jax_enable_x64": True, "jax_default_prng_impl": "rbg", "jax_threefry_partitionable": False}
    asked |= {"jax_disable_jit": True, "jax_transfer_guard_host_to_device": "disallow_explicit"}
    for name, value in asked.items():
        jax.config.update(name, value)
    configure_jax()
    np.testing.assert_array_equal(jax.random.bits(jax.random.key(7), (2,)), [2895194379, 4185947648])
    assert jnp.zeros(1, float).dtype == jnp.float32
    assert not jax.config.jax_disable_jit and jnp.asarray(np.ones(3)).sum() == 3  # a transfer is none of its errors
    jax.config.update("jax_default_matmul_precision", "highest")
    with pytest.raises(InputError, match="JAX_DEFAULT_MATMUL_PRECISION=highest.*unset it"):
        configure_jax()


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend 'cuda'")], ids=repr)
def test_a_platform_without_devices_is_named(monkeypatch, error):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    for find in (find_devices, make_mesh):
        with pytest.raises(InputError, match="no device with JAX_PLATFORMS=cpu.*unset it"):
            find()


@pytest.fixture
def joined(monkeypatch):
    """What is asked of `jax.distributed.initialize`, in an environment that says nothing yet."""
    for name in [*os.environ]:
        if name.startswith(("JAX_COORDINATOR", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_")):
            monkeypatch.delenv(name)
    asked = []
    monkeypatch.setattr(job, "NAME_TIMEOUT", 0)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 1, 6, "", ("127.0.0.1", 1))])
    monkeypatch.setattr(job.Peers, "listen", lambda self: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: asked.append(args))
    return asked


def test_a_job_is_named_by_arguments_or_by_the_environment(joined, monkeypatch):
    job.initialize("a:1", 4, 0)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "b:2")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    job.initialize()
    job.initialize("a:1", process_id=0)
    assert joined == [("a:1", 4, 0), ("b:2", 2, 1), ("a:1", 2, 0)]


@pytest.fixture
def bound(joined, monkeypatch):
    """`bound(coordinator, address)`: where process 0 listens, of a host with this address."""

    def ask(coordinator, address):
        options = []
        monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **given: options.append(given))
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(family, 1, 6, "", (address, 1))])
        job.initialize(coordinator, 2, 0)
        return options[0].get("coordinator_bind_address")

    return ask


def test_the_coordinator_listens_at_the_address_of_its_job_alone(bound, monkeypatch):
    assert bound("localhost:7", "127.0.0.1") == "127.0.0.1:7"
    assert bound("127.0.0.1:7", "127.0.0.1") == "127.0.0.1:7"
    # An address that is not this machine's (a service before it), and a name that /etc/hosts has for this machine only.
    assert bound("service:7", "192.0.2.1") is None
    assert bound("node1:7", "127.0.1.1") is None
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "0.0.0.0:7")
    assert bound("localhost:7", "127.0.0.1") is None


NODES = [("node1", "node1"), ("node1,other7", "node1"), ("node[001-016],x", "node001"), ("a-b[7,9-12]", "a-b7")]


@pytest.mark.parametrize("nodes, first", NODES)
def test_a_slurm_step_whose_first_node_has_no_address_is_refused_at_once(joined, monkeypatch, nodes, first):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: (_ for _ in ()).throw(socket.gaierror(-2, "not known")))
    slurm = dict(JOB_ID="5000", STEP_NODELIST=nodes, NTASKS="2", PROCID="0", LOCALID="0")
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(InputError, match=f"the coordinator's host {first} has no address on .*not known"):
        job.initialize()
    assert not joined
    monkeypatch.undo()
    from jax._src.clusters import SlurmCluster  # the same node and port as JAX itself would take

    monkeypatch.setattr("os.environ", {f"SLURM_{name}": value for name, value in slurm.items()})
    assert job._slurm_coordinator() == SlurmCluster.get_coordinator_address(None, None)


BAD_JOBS = [
    (dict(JAX_COORDINATOR_ADDRESS="node1"), "JAX_COORDINATOR_ADDRESS='node1' must be HOST:PORT"),
    (dict(JAX_NUM_PROCESSES="two"), "JAX_NUM_PROCESSES='two' must be a whole number"),
    (dict(JAX_NUM_PROCESSES="0"), "JAX_NUM_PROCESSES=0 must be at least 1"),
    (dict(JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="2"), "JAX_PROCESS_ID=2 must lie between 0 and .* = 1"),
]


@pytest.mark.parametrize("environment, message", BAD_JOBS, ids=[message[:30] for _, message in BAD_JOBS])
def test_an_impossible_job_is_refused(joined, monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        job.initialize()
    assert not joined


PARTS = {"JAX_COORDINATOR_ADDRESS": "node1:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}


@pytest.mark.parametrize("given", [c for n in (1, 2) for c in itertools.combinations(PARTS, n)], ids=str)
def test_a_half_set_job_is_refused_by_the_names_of_what_is_missing(joined, monkeypatch, given):
    def finds_no_cluster(*args, **_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", finds_no_cluster)
    for name in given:
        monkeypatch.setenv(name, PARTS[name])
    with pytest.raises(InputError) as e:
        job.initialize()
    missing, known = str(e.value).split(" must be set beside ")
    assert set(missing.split(" and ")) == set(PARTS) - set(given)
    assert all(f"{name}={PARTS[name]}" in known for name in given)


def test_where_no_job_is_found_the_process_stays_alone(joined, monkeypatch):
    monkeypatch.undo()
    job.initialize()
    assert jax.process_count() == 1
    job.barrier("nobody else")
    assert job.on_first("alone", lambda: {"a": (1,)}) == {"a": (1,)}


def test_the_start_up_line_states_processes_devices_mesh_and_place(mesh):
    line = "1 process; 8 x cpu; mesh data=2, fsdp=2, tensor=2; writing to gs://bucket/run"
    assert describe(mesh, "gs://bucket/run") == line
    assert describe(None, "w") == "1 process; writing to w"
    assert local_mesh(mesh) is mesh and is_local(mesh) and is_local(None)


def test_a_notice_that_comes_between_two_trainings_of_a_job_is_heeded_by_the_second(monkeypatch):
    """The processes stop at one more than the last number that any of them has asked JAX about."""
    asked, agreed = [], []

    def reached(number):
        asked.append(number)
        return agreed == [number]

    monkeypatch.setattr(job.jax, "process_count", lambda: 2)
    monkeypatch.setattr(job.multihost_utils, "reached_preemption_sync_point", reached)
    with job.training("train") as told_to_stop:
        assert not any(told_to_stop() for _ in (1, 2, 3))
    agreed.append(asked[-1] + 1)
    with job.training("train") as told_to_stop:
        assert [told_to_stop() for _ in (1, 2, 3)] == [True, False, False]


@pytest.mark.parametrize(
    "environment, home, expected",
    [
        ({}, "/home/a/.cache", "/home/a/.cache/selftrain_jax/xla"),
        ({}, "~/.cache", None),  # a container's user, whom no file knows
        ({"XDG_CACHE_HOME": ""}, "/home/a/.cache", "/home/a/.cache/selftrain_jax/xla"),
        ({"XDG_CACHE_HOME": "/scratch"}, "~/.cache", "/scratch/selftrain_jax/xla"),
    ],
)
def test_compiled_programs_are_kept_where_there_is_a_place(monkeypatch, environment, home, expected):
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(mesh_lib.os.path, "expanduser", lambda _: home)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        mesh_lib.enable_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == expected
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
