"""Device memory: what is counted, running out of it, expandable segments."""

import gc
import os
import unittest

import support
import torch

EXPANDABLE = "expandable_segments:True" in os.environ.get("PYTORCH_NPU_ALLOC_CONF", "")


class Memory(unittest.TestCase):
    def setUp(self):
        gc.collect()
        torch.npu.synchronize()
        torch.npu.empty_cache()

    def test_the_device_says_what_it_has(self):
        free, total = torch.npu.mem_get_info()
        self.assertTrue(0 < free <= total, f"{free} of {total} bytes")
        self.assertEqual(torch.npu.get_device_properties(0).total_memory, total)

    def test_memory_in_use_is_counted_and_comes_back(self):
        before, _ = torch.npu.mem_get_info()
        x = torch.zeros(64 << 20, dtype=torch.uint8, device="npu")
        torch.npu.synchronize()
        during, _ = torch.npu.mem_get_info()
        self.assertGreaterEqual(before - during, 64 << 20)
        self.assertGreaterEqual(torch.npu.memory_allocated(), 64 << 20)
        del x
        torch.npu.empty_cache()
        self.assertEqual(torch.npu.mem_get_info()[0], before)

    def test_out_of_memory_is_an_error_that_passes(self):
        free, total = torch.npu.mem_get_info()
        kept = torch.arange(1000, device="npu")
        for _ in range(5):
            with self.assertRaises(torch.OutOfMemoryError) as caught:
                torch.empty(2 * total, dtype=torch.uint8, device="npu")
            self.assertIn("NPU out of memory", str(caught.exception))
        self.assertTrue(torch.equal(kept.cpu(), torch.arange(1000)))
        self.assertEqual((torch.ones(1 << 20, device="npu") + 1).sum().item(), 2.0 * (1 << 20))

    def test_memory_can_be_filled_and_used_again(self):
        _, total = torch.npu.mem_get_info()
        size = total // 8
        for _ in range(3):
            held = []
            with self.assertRaises(torch.OutOfMemoryError):
                for _ in range(9):
                    held.append(torch.empty(size, dtype=torch.uint8, device="npu"))
            self.assertGreaterEqual(len(held), 6)
            held.clear()
            torch.npu.empty_cache()
        x = torch.full((1 << 20,), 5, dtype=torch.int32, device="npu")
        self.assertEqual(x.cpu().unique().tolist(), [5])

    def test_the_cache_gives_back_what_another_size_needs(self):
        _, total = torch.npu.mem_get_info()
        for size in (total // 3, total // 2, total // 5, total * 2 // 3):
            x = torch.empty(size, dtype=torch.uint8, device="npu")
            x[:1000].fill_(7)
            self.assertEqual(x[:1000].cpu().unique().tolist(), [7])
            del x

    def test_blocks_do_not_overlap(self):
        sizes = torch.randint(1, 70000, (300,), generator=support.seeded(3)).tolist()
        held = {}
        for i, size in enumerate(sizes):
            held[i] = torch.full((size,), i, dtype=torch.int32, device="npu")
            if i % 3 == 2:
                del held[i - 1]
        for i, x in held.items():
            values = x.cpu()
            self.assertTrue(bool((values == i).all()), f"block {i} of {sizes[i]} elements was written by another")

    def test_peak_statistics(self):
        torch.npu.reset_peak_memory_stats()
        x = torch.empty(8 << 20, dtype=torch.uint8, device="npu")
        del x
        self.assertGreaterEqual(torch.npu.max_memory_allocated(), 8 << 20)
        self.assertLess(torch.npu.memory_allocated(), torch.npu.max_memory_allocated())

    def test_segments_are_of_the_kind_asked_for(self):
        x = torch.empty(30 << 20, dtype=torch.uint8, device="npu")
        kinds = {segment["is_expandable"] for segment in torch.npu.memory_snapshot() if segment["total_size"] >= 30 << 20}
        self.assertEqual(kinds, {EXPANDABLE})
        del x

    def test_a_growing_tensor(self):
        x = torch.zeros(0, device="npu")
        for i in range(12):
            x = torch.cat([x, torch.full((1 << 16,), float(i), device="npu")])
        want = torch.cat([torch.full((1 << 16,), float(i)) for i in range(12)])
        self.assertTrue(torch.equal(x.cpu(), want))


if __name__ == "__main__":
    print(f"PYTORCH_NPU_ALLOC_CONF={os.environ.get('PYTORCH_NPU_ALLOC_CONF', 'unset')}")
    support.main()
