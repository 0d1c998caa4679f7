"""Graph capture and replay through `torch.npu.NPUGraph`."""

import copy
import unittest

import support
import torch


def captured(function):
    """Captures `function` after a warm-up on a side stream, as PyTorch's notes ask for; gives graph and result."""
    side = torch.npu.Stream()
    side.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(side):
        function()
    torch.npu.current_stream().wait_stream(side)
    torch.npu.synchronize()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        out = function()
    return graph, out


READING = """
import torch, torch_npu
x = torch.ones(4, device="npu")
torch.npu.synchronize()
graph = torch.npu.NPUGraph()
try:
    with torch.npu.graph(graph):
        (x + 1).cpu()
except RuntimeError as error:
    print("refused:", error)
"""


class Graphs(unittest.TestCase):
    def test_replay_computes_on_what_the_inputs_hold_then(self):
        x = torch.zeros(8, 16, device="npu")
        weight = torch.randn(16, 16, generator=support.seeded(1))
        on_device = weight.npu()
        graph, y = captured(lambda: torch.nn.functional.silu(x @ on_device) + 1)
        for seed in range(5):
            value = torch.randn(8, 16, generator=support.seeded(seed))
            x.copy_(value)
            graph.replay()
            support.close(y, torch.nn.functional.silu(value @ weight) + 1, f"replay {seed}")

    def test_nothing_runs_at_capture(self):
        counter = torch.zeros(1, device="npu")
        torch.npu.synchronize()
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph):
            counter.add_(1)
        torch.npu.synchronize()
        self.assertEqual(counter.item(), 0)
        for n in range(1, 6):
            graph.replay()
            torch.npu.synchronize()
            self.assertEqual(counter.item(), n)

    def test_work_forked_to_another_stream_is_captured(self):
        x = torch.ones(1000, device="npu")
        other = torch.npu.Stream()

        def both():
            current = torch.npu.current_stream()
            a = x * 2
            other.wait_stream(current)
            with torch.npu.stream(other):
                b = x * 3
            c = a + 1
            current.wait_stream(other)
            return b + c

        graph, y = captured(both)
        for value in (1.0, -4.0):
            x.fill_(value)
            graph.replay()
            self.assertEqual(y.cpu().unique().tolist(), [value * 5 + 1])

    def test_two_graphs_share_a_pool(self):
        x = torch.ones(64, device="npu")
        (first, y) = captured(lambda: x + 1)
        second = torch.npu.NPUGraph()
        with torch.npu.graph(second, pool=first.pool()):
            z = y * 10
        for value in (2.0, 3.0):
            x.fill_(value)
            first.replay()
            second.replay()
            self.assertEqual(z.cpu().unique().tolist(), [(value + 1) * 10])

    def test_replays_are_ordered_with_other_work(self):
        x = torch.zeros(1000, device="npu")
        graph, y = captured(lambda: x * 2)
        total, want = torch.zeros(1000, device="npu"), 0.0
        for i in range(50):
            x.fill_(float(i))
            graph.replay()
            total += y
            want += 2.0 * i
        self.assertEqual(total.cpu().unique().tolist(), [want])

    def test_a_whole_layer(self):
        torch.manual_seed(2)
        layer = torch.nn.Sequential(
            torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.LayerNorm(64), torch.nn.Linear(64, 32), torch.nn.Softmax(-1)
        )
        x = torch.zeros(4, 32, device="npu")
        on_device = copy.deepcopy(layer).npu()
        with torch.no_grad():
            graph, y = captured(lambda: on_device(x))
            value = torch.randn(4, 32, generator=support.seeded(9))
            x.copy_(value)
            graph.replay()
            support.close(y, layer(value), factor=4)

    def test_a_decode_step_of_qwen2(self):
        from transformers import StaticCache

        torch.manual_seed(4)
        model = support.qwen2(initializer_range=0.2).eval()
        prompt = torch.tensor([[1, 5, 7, 9]])
        want = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=9, do_sample=False)
        model = model.npu()
        token = torch.zeros(1, 1, dtype=torch.long, device="npu")
        position = torch.zeros(1, dtype=torch.long, device="npu")

        @torch.no_grad()
        def step(cache):
            logits = model(token, past_key_values=cache, cache_position=position, position_ids=position[None]).logits
            return logits[:, -1:].argmax(-1)

        @torch.no_grad()
        def prefill(cache):
            places = torch.arange(4, device="npu")
            return model(prompt.npu(), past_key_values=cache, cache_position=places).logits[:, -1:].argmax(-1)

        cache = StaticCache(config=model.config, max_cache_len=32)
        token.copy_(prefill(cache))
        position.fill_(4)
        graph, following = captured(lambda: step(cache))
        cache.reset()
        next_token = prefill(cache)
        got = [next_token.item()]
        for index in range(8):
            token.copy_(next_token)
            position.fill_(4 + index)
            graph.replay()
            next_token = following.clone()
            got.append(next_token.item())
        self.assertEqual(got, want[0, 4:].tolist())

    def test_reset_frees_the_memory(self):
        torch.npu.synchronize()
        torch.npu.empty_cache()
        before = torch.npu.memory_reserved()
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph):
            y = torch.ones(50 << 20, dtype=torch.uint8, device="npu")
        self.assertGreaterEqual(torch.npu.memory_reserved(), before + (50 << 20))
        del y
        graph.reset()
        torch.npu.empty_cache()
        # The first capture of a process allocates the state of the random generator, 2 MiB that stay.
        self.assertLessEqual(torch.npu.memory_reserved(), before + (2 << 20))

    def test_reading_a_value_during_capture_is_refused(self):
        # In a process of its own: torch_npu does not end a capture that failed.
        status, output = support.child(READING)
        self.assertEqual(status, 0, output)
        self.assertIn("refused", output)


if __name__ == "__main__":
    support.main()
