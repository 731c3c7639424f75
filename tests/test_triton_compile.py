"""What Inductor is handed of the Triton ops: their kernels, one node a launch, and no opaque op.

In a process of its own, where kernels are not interpreted, on fake CUDA tensors: Dynamo and AOTAutograd need no GPU.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import triton_reason

pytestmark = pytest.mark.skipif(triton_reason() is not None, reason=f"needs Triton: {triton_reason()}")

SCRIPT = '''
import json, sys
import torch, triton
import pykernels as pk
from pykernels.ops.conv_bn_act.statistics import conv_batch_norm_act
from pykernels.ops.int8_matmul import int8_linear
from torch._dynamo.backends.common import aot_autograd
from torch._library.triton import get_triton_kernels_for_op
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget

class Driver:  # torch asks what a kernel writes, which Triton's compiler finds out for a target
    def get_current_target(self):
        return GPUTarget("cuda", 80, 32)

triton.runtime.driver.set_active(Driver())
graphs = []

class Seen(Exception):
    pass

def note(graph, inputs):
    graphs.append(graph)
    raise Seen

def targets(function, *inputs):
    """The names of what the graph calls."""
    graphs.clear()
    torch._dynamo.reset()
    with FakeTensorMode(allow_non_fake_inputs=True), pk.backend("triton"):
        fake = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda") for t in inputs]
        for t, f in zip(inputs, fake):
            f.requires_grad_(t.requires_grad)
        try:
            torch.compile(function, backend=aot_autograd(fw_compiler=note), fullgraph=True)(*fake)
        except Exception as problem:
            if not graphs:
                raise
    return [str(n.target) for n in graphs[0].graph.nodes if n.op == "call_function"]

# channels_last, because a torch without CUDA copies no fake CUDA tensor from one memory format to another
x, w = (torch.randn(shape).to(memory_format=torch.channels_last) for shape in ((2, 16, 12, 12), (32, 16, 3, 3)))
a, b = torch.ones(64, 128, dtype=torch.int8), torch.ones(48, 128, dtype=torch.int8).t()
s = torch.rand(48)
h, weights = torch.zeros(2, 2, 16), [torch.randn(64, 8), torch.randn(64, 16), torch.randn(64, 16), torch.randn(64, 16)]
cell = torch.randn(4, 8), torch.zeros(4, 16), torch.zeros(4, 16), torch.randn(64, 8), torch.randn(64, 16)
training = dict(stride=1, padding=1, dilation=1, groups=1, momentum=0.1, eps=1e-5, residual=None, activation="relu",
                negative_slope=0.0)
calls = {
    "int8_matmul": (lambda a, b, s: pk.ops.int8_matmul(a, b, b_scale=s, out_dtype=torch.float16), a, b, s),
    "int8_linear": (lambda x, w, s: int8_linear(x, w, s), torch.randn(64, 128), b.t(), s),
    "quantize_int8": (lambda x: pk.ops.quantize_int8(x, axis=0), torch.randn(8, 40)),
    "conv_bn_act": (lambda x, w: pk.ops.conv_bn_act(x, w, padding=1), x, w),
    "batch_norm_act": (lambda x: pk.ops.batch_norm_act(x, training=True), x),
    "conv_batch_norm_act": (lambda x, w: conv_batch_norm_act(x, w, *[None] * 5, **training), x, w),
    "int8_conv2d": (lambda x, w: pk.ops.int8_conv2d(x, w, padding=1), x.to(torch.int8), w.to(torch.int8)),
    "lstm_cell": (lambda x, h, c, *w: pk.ops.lstm_cell(x, (h, c), *w), *cell),
    "lstm": (lambda x, h, *w: pk.ops.lstm(x, (h, h), w, num_layers=2), torch.randn(5, 2, 8), h, *weights),
}
found = {op: targets(*call) for op, call in calls.items()}
found["kernels"] = [kernel.fn.__name__ for kernel in get_triton_kernels_for_op("pykernels::lstm_triton")]
json.dump(found, sys.stdout)
'''

#: The calls of the script.
OPS = re.findall(r'^    "(\w+)": \(lambda', SCRIPT, re.M)


@pytest.fixture(scope="module")
def graphs() -> dict[str, list[str]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=300,
        env=environment, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("op", OPS)
def test_inductor_sees_the_kernels(graphs, op):
    assert any("triton_kernel_wrapper" in target for target in graphs[op])
    assert not [target for target in graphs[op] if "pykernels" in target]


def test_the_cache_of_graphs_knows_the_kernels_of_other_modules(graphs):
    """Those that an op launches through a function of another module, and those of its backward."""
    assert {"steps_kernel", "product_kernel", "sequence_kernel"} <= set(graphs["kernels"])
