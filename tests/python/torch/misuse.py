"""Wrong use: each is an error that says what is wrong, and the process goes on afterwards."""

import os
import unittest

# Errors at the call that caused them; what the queue does with one is tested in a process of its own.
os.environ["TASK_QUEUE_ENABLE"] = "0"

import support
import torch


class Misuse(unittest.TestCase):
    def tearDown(self):
        x = torch.arange(10, device="npu")
        self.assertEqual((x + 1).cpu().tolist(), list(range(1, 11)), "the device still computes")

    def refused(self, *words):
        return self.assertRaisesRegex(Exception, "(?is)" + "|".join(words))

    def test_devices_that_do_not_exist(self):
        count = torch.npu.device_count()
        with self.refused("device"):
            torch.npu.set_device(count)
        with self.refused("device"):
            torch.ones(1, device=f"npu:{count + 5}")
        self.assertEqual(torch.npu.current_device(), 0)

    def test_operands_on_cpu_and_device(self):
        with self.refused("same device", "on npu", "cpu"):
            torch.ones(3, device="npu") + torch.ones(3)
        with self.refused("same device", "on npu", "cpu"):
            torch.ones(3, 3, device="npu") @ torch.ones(3, 3)

    def test_shapes_that_do_not_fit(self):
        a = torch.ones(3, 4, device="npu")
        for wrong in (
            lambda: a + torch.ones(5, device="npu"),
            lambda: a @ torch.ones(3, 4, device="npu"),
            lambda: a.view(5),
            lambda: a.copy_(torch.ones(5)),
        ):
            with self.refused("size", "shape", "broadcast", "507015"):
                wrong()
                torch.npu.synchronize()

    def test_indices_out_of_range(self):
        a = torch.arange(12, device="npu").view(3, 4)
        with self.refused("out of (bounds|range)", "dimension"):
            a[7]
        with self.refused("out of (bounds|range)", "dimension", "range"):
            a.select(0, 3)
        with self.refused("dimension", "range"):
            a.sum(5)

    def test_an_index_tensor_out_of_range_does_not_read_the_neighbour(self):
        x = torch.arange(12, dtype=torch.float32, device="npu").view(3, 4)
        for index in (3, 1 << 40, -4):
            with self.refused("index", "range", "507015"):
                torch.index_select(x, 0, torch.tensor([index], device="npu")).cpu()
        self.assertTrue(torch.equal(x.cpu(), torch.arange(12.0).view(3, 4)))

    def test_storage_past_its_end(self):
        x = torch.ones(10, device="npu")
        with self.refused("out of bounds", "storage"):
            x.as_strided((20,), (1,))

    def test_dtypes_that_do_not_convert(self):
        with self.refused("can't be cast", "507015"):
            torch.ones(3, dtype=torch.int32, device="npu").add_(0.5).cpu()
        with self.refused("requires grad", "floating"):
            torch.ones(3, dtype=torch.int64, device="npu").requires_grad_()

    def test_negative_and_huge_sizes(self):
        with self.refused("negative"):
            torch.empty(-1, device="npu")
        with self.refused("memory", "overflow", "invalid"):
            torch.empty(1 << 62, dtype=torch.uint8, device="npu")

    def test_a_numpy_view_of_a_device_tensor(self):
        with self.refused("convert", "host memory", "cpu"):
            torch.ones(3, device="npu").numpy()

    def test_an_error_in_the_queue_names_the_operator(self):
        source = """
import torch, torch_npu
x = torch.arange(12, dtype=torch.float32, device="npu").view(3, 4)
try:
    torch.index_select(x, 0, torch.tensor([99], device="npu"))
    torch.npu.synchronize()
except RuntimeError as error:
    print("refused", error)
else:
    print("no error")
"""
        _, output = support.child(source, TASK_QUEUE_ENABLE="1")
        self.assertRegex(output, "refused.*")
        self.assertRegex(output, "(?i)index")


if __name__ == "__main__":
    support.main()
