"""The reader of compiled programs, on a program of the CPU and on lines as other compilers write them."""

import jax
import jax.numpy as jnp

from benchmarks import programs

TPU = """
HloModule jit_f

%step (arg: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg = (s32[], f32[8]{0:T(256)}) parameter(0)
  %fusion.1 = f32[8]{0:T(256)} fusion(%arg), calls=%f, backend_config={"window_config":{"estimated_cycles":"30"}}
  %while.2 = (s32[], f32[8]) while(%arg), condition=%few, body=%inner
  ROOT %tuple = (s32[], f32[8]) tuple(%arg, %fusion.1)
}

%inner (arg.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg.1 = (s32[], f32[8]) parameter(0)
  ROOT %copy.3 = (s32[], f32[8]) copy(%arg.1), backend_config={"window_config":{"estimated_cycles":"5"}}
}

%few (arg.2: (s32[], f32[8])) -> pred[] {
  %constant.4 = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[] compare(%constant.4, %constant.4), direction=LT
}

%many (arg.3: (s32[], f32[8])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(7)
  ROOT %lt.1 = pred[] compare(%constant.5, %constant.5), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %send.1 = (f32[8], u32[], token[]) send(%x), channel_id=1
  %all-gather-start.1 = (f32[8], f32[8]) all-gather-start(%x), dimensions={0}
  %while.1 = (s32[], f32[8]) while(%x), condition=%many, body=%step
  ROOT %out = f32[8]{0} get-tuple-element(%while.1), index=1
}
"""
GPU = """
ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %c.1 = (f32[8]{0}, u8[0]{0}) custom-call(%x), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, \
feature_group_count=8, custom_call_target="__cudnn$convForward"
  %c.2 = (f32[8]{0}, u8[0]{0}) custom-call(%x), window={size=5x5}, custom_call_target="__cudnn$convBackwardFilter"
  %s = f32[8]{0} async-start(%x), calls=%f
  %d = f32[8]{0} async-done(%s)
  ROOT %b = f32[8]{0} bitcast(%x)
}
""".replace("\\\n", "")


def test_loops_of_a_real_program():
    def function(x):
        inner = lambda x, _: (jnp.sin(x @ x), None)
        outer = lambda x, _: (jax.lax.scan(inner, x, None, length=5)[0] + 1, None)
        return jax.lax.scan(outer, x, None, length=3)[0]

    text = jax.jit(function).lower(jnp.ones((8, 8))).compile().as_text()
    found = programs.loops(programs.parse(text))
    assert [(loop.turns, loop.depth) for loop in found] == [(3, 0), (5, 1)]


def test_cycles_count_each_turn_of_inner_loops():
    program = programs.parse(TPU)
    assert [(loop.body, loop.turns, loop.depth) for loop in programs.loops(program)] == [
        ("step", 7, 0),
        ("inner", 3, 1),
    ]
    assert programs.cycles(program, "step") == 30 + 3 * 5
    assert programs.cycles(program, program.entry) == 7 * 45
    step, run = (programs.summary(program, name) for name in ("step", program.entry))
    assert step["collectives"] == step["host_transfers"] == 0
    assert run["collectives"] == run["host_transfers"] == 1


def test_kernels_and_convolutions_of_a_gpu():
    found = programs.summary(programs.parse(GPU), "main")
    assert found["kernels"] == 3, "two convolutions and an asynchronous pair"
    assert found["convolutions"] == {"convForward 3x3 groups 8": 1, "convBackwardFilter 5x5 groups 1": 1}
