"""A block of attention is one graph for torch.compile, which follows the settings of its kernels; so is the search for
the blocks that attention on a GPU skips.
"""

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


MASKS = """
import torch
from torch._dynamo.testing import CompileCounter
from headway.layout import Layout
from headway.nn.kernels import View, flex
from headway.visibility import Causal

counter = CompileCounter()
compiled = torch.compile(flex.create_block_mask, backend=counter, fullgraph=True)
flex._compiled = lambda function: compiled


def tiles(counts, indices):
    valid = torch.arange(3) < counts[:, 0, :, None]
    return torch.zeros_like(valid).scatter(2, indices[:, 0].long(), valid)


group = torch.zeros(2, 300, dtype=torch.long)
group[:, 140:260] = 1
for lengths in ([[150, 120], [300]], [[10, 270], [128, 100]]):
    layout = Layout(Layout.packed(lengths, 300).positions, group=group)
    blocks = flex.block_mask(Causal(3), layout, layout)
    mask = View(Causal(3), layout, layout).mask[:, 0]
    parts = torch.nn.functional.pad(mask, (0, 84, 0, 84)).view(2, 3, 128, 3, 128)
    full = tiles(blocks.full_kv_num_blocks, blocks.full_kv_indices)
    assert torch.equal(full, parts.all(4).all(2)), lengths
    assert torch.equal(full | tiles(blocks.kv_num_blocks, blocks.kv_indices), parts.any(4).any(2)), lengths
print("graphs", counter.frame_count)
"""


def test_the_blocks_that_attention_skips_are_found_by_one_graph(tmp_path: Path) -> None:
    """Whole and partial blocks of two batches with other documents are those of the mask of all queries and keys."""
    out, error = Program(tmp_path, MASKS).wait()
    assert out.strip() == "graphs 1", error
