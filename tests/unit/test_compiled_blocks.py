"""A block of attention is one graph for torch.compile, which follows the settings of its kernels."""

from __future__ import annotations

from pathlib import Path

from processes import Program

# In a process of its own, because tests check the types of arguments, which torch.compile cannot trace.
SOURCE = """
import torch
from headway.layout import Layout
from headway.nn.kernels import products
from headway.nn.mixers import AttentionConfig
from headway.nn.models import BlockConfig, Stack, StackConfig

torch.manual_seed(0)
torch.set_num_threads(1)
block = Stack(StackConfig(blocks=(BlockConfig(AttentionConfig(2)),)), 64).blocks[0]
for parameter in block.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
x, layout = torch.randn(8, 16, 64), Layout.full(8, 16)
compiled = torch.compile(lambda x: block(x, layout)[0], fullgraph=True, backend="aot_eager")
full = compiled(x)
torch.testing.assert_close(full, block(x, layout)[0])
with products("bf16"):
    rounded = compiled(x)
    torch.testing.assert_close(rounded, block(x, layout)[0])
assert (rounded - full).abs().max() > 1e-4, "bf16 rounds"
torch.testing.assert_close(compiled(x), full)
print("equal")
"""


def test_a_block_is_one_graph_and_follows_the_precision_of_products(tmp_path: Path) -> None:
    out, error = Program(tmp_path, SOURCE).wait()
    assert out.strip() == "equal", error
