"""A plugin of vLLM's: the one Triton kernel that every step needs, in torch operators.

vLLM 0.23 computes the cache slots of a step's tokens in a Triton kernel, and Triton's Ascend backend compiles for the real
processor only. Where vLLM finds no Triton, this plugin puts a function with the same arguments in the kernel's place. `vnpu run`
puts the plugin where vLLM looks for plugins; no file of vLLM's is touched.
"""

import sys

KERNEL = "_compute_slot_mapping_kernel"
# The module that defines the kernel, and the one that imports it by name.
MODULES = ("vllm.v1.worker.block_table", "vllm_ascend.worker.block_table")


def compute_slot_mapping(
    requests,
    num_tokens,
    max_num_tokens,
    query_start_loc,
    positions,
    block_table,
    block_table_stride,
    block_size,
    slot_mapping,
    *,
    TOTAL_CP_WORLD_SIZE,
    TOTAL_CP_RANK,
    CP_KV_CACHE_INTERLEAVE_SIZE,
    PAD_ID,
    BLOCK_SIZE,
):
    """Writes the slot of each token: its block's number times the block size, plus its place in the block.

    Token t is one of request r if query_start_loc[r] <= t < query_start_loc[r + 1]; tokens behind the last request keep what
    they have, slots behind the last token become PAD_ID, and so does a token whose place in the cache is another rank's.
    """
    import torch

    starts = query_start_loc[: requests + 1].to(torch.int64)
    tokens = torch.arange(num_tokens, dtype=torch.int64, device=positions.device)
    request = torch.searchsorted(starts[1:].contiguous(), tokens, right=True)
    inside = (tokens >= starts[0]) & (request < requests)
    request = request.clamp(max=requests - 1)
    position = positions[:num_tokens].to(torch.int64)
    virtual_block = block_size * TOTAL_CP_WORLD_SIZE
    index = torch.where(inside, position // virtual_block, 0)
    block = block_table[request, index].to(torch.int64)
    offset = position - index * virtual_block
    interleave = CP_KV_CACHE_INTERLEAVE_SIZE
    if TOTAL_CP_WORLD_SIZE == 1:
        slots = block * block_size + offset
    else:
        local = offset // interleave % TOTAL_CP_WORLD_SIZE == TOTAL_CP_RANK
        place = offset // (TOTAL_CP_WORLD_SIZE * interleave) * interleave + offset % interleave
        slots = torch.where(local, block * block_size + place, PAD_ID)
    before = slot_mapping[:num_tokens]
    before.copy_(torch.where(inside, slots.to(slot_mapping.dtype), before))
    slot_mapping[num_tokens:max_num_tokens].fill_(PAD_ID)


class Kernel:
    """Called as a Triton kernel is: `kernel[(programs,)](…)`, with one program a request and one for the rest."""

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            compute_slot_mapping(grid[0] - 1, *arguments, **options)

        return launch


def register():
    """Entry point: vLLM calls it in every process of its own."""
    from importlib import import_module

    from vllm.triton_utils import HAS_TRITON

    if HAS_TRITON:
        return
    import_module(MODULES[0])
    kernel = Kernel()
    for name in MODULES:
        if name in sys.modules:
            setattr(sys.modules[name], KERNEL, kernel)
