"""What devices send is counted as the sizes of arrays and the numbers of steps say."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from selftrain_jax.core.hlo import Traffic, traffic
from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig

# As the TPU compiler prints it: a loop of 6 in one of 4; parts of one gather in two fusions; what starts and is done;
# an all-reduce of which each device keeps a part; what goes to another slice by way of the host; groups as lists, as
# axes and as ranges.
TEXT = """\
HloModule jit_f, is_scheduled=true, num_partitions=8

%all-reduce-scatter.1 (input.2: f32[512,8]) -> f32[64,8] {
  %input.2 = f32[512,8]{1,0:T(8,128)} parameter(0)
  %all-reduce.3 = f32[512,8]{1,0} all-reduce(%input.2), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

%part.1 (p: bf16[8,4]) -> bf16[32,4] {
  ROOT %all-gather.1 = bf16[32,4]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}
}

%part.2 (p.1: bf16[8,4]) -> bf16[32,4] {
  ROOT %all-gather.2 = bf16[32,4]{1,0} all-gather(%p.1), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}
}

%inner_cond (q: (s32[], f32[4])) -> pred[] {
  %constant.6 = s32[]{:T(128)} constant(6)
  ROOT %lt.1 = pred[] compare(%i, %constant.6), direction=LT
}

%inner_body (q.1: (s32[], f32[4])) -> (s32[], f32[4]) {
  %sent = (f32[4]{0}, f32[4]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=9
  %got = f32[4]{0} collective-permute-done(%sent)
}

%cond (r: (s32[], f32[4])) -> pred[] {
  %constant.4 = u32[] constant(4)
  ROOT %lt.2 = pred[] compare(%j, %constant.4), direction=LT
}

%body (r.1: (s32[], f32[4])) -> (s32[], f32[4]) {
  %while.1 = (s32[], f32[4]) while(%t), condition=%inner_cond, body=%inner_body
  %fusion.1 = bf16[32,4] fusion(%y), kind=kCustom, calls=%part.1
  %fusion.2 = bf16[32,4] fusion(%y), kind=kCustom, calls=%part.2
}

%wrapped (s: f32[8]) -> f32[1] {
  ROOT %reduce-scatter.1 = f32[1]{0} reduce-scatter(%s), channel_id=8, replica_groups=[1,8]<=[8], to_apply=%add
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %while.2 = (s32[], f32[4]) while(%a), condition=%cond, body=%body, metadata={op_name="f/while"}
  %fusion.3 = f32[64,8] fusion(%z), kind=kCustom, calls=%all-reduce-scatter.1
  %start.1 = ((f32[8]{0}), f32[1]{0}, u32[]) async-start(%w), calls=%wrapped
  %send.1 = (f32[2,8]{1,0}, u32[], token[]) send(%v, %t), channel_id=4, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %done.1 = f32[1]{0} async-done(%start.1), calls=%wrapped
  %all-reduce.9 = (f32[3]{0}, pred[8]{0}) all-reduce(%u, %v), channel_id=1, replica_groups=[4,2]<=[8], to_apply=%add
}
"""


def test_loops_parts_and_groups_of_a_tpu_program():
    assert traffic(TEXT, 8, 4) == {
        "all-reduce between slices": Traffic(1, 2 * 8 * 4 * 2 * 3 / 4),
        "collective-permute": Traffic(24, 24 * 4 * 4.0),
        "all-gather": Traffic(4, 4 * 32 * 4 * 2 * 3 / 4),
        "reduce-scatter": Traffic(2, 512 * 8 * 4 * 7 / 8 + 7 * 4),
        "all-reduce": Traffic(1, 2 * (3 * 4 + 8) / 2),
    }


@pytest.mark.everywhere
def test_a_compiled_loop_sends_what_its_shapes_say():
    """Weights [L, D, D], cut over 4 devices, are gathered one layer at a time: fp32 on a CPU."""
    mesh, layers, width = make_mesh(MeshConfig(1, 4, 1), jax.devices()[:4]), 5, 16

    def f(weights, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    weights = jax.ShapeDtypeStruct(
        (layers, width, width), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    )
    x = jax.ShapeDtypeStruct((64, width), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    found = traffic(jax.jit(f).lower(weights, x).compile().as_text(), 4)
    assert found["all-gather"].received == layers * width * width * 4 * 3 / 4
    assert traffic(jax.jit(lambda x: x + 1).lower(x).compile().as_text(), 4) == {}
