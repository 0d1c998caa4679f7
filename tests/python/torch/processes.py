"""Several processes on one device, several devices in one process, fork and spawn."""

import multiprocessing
import os
import subprocess
import sys
import unittest

import support
import torch

STEPS = 200


def walk(seed, device="npu:0", steps=STEPS):
    """A chain of operators whose result depends on every one before."""
    x = torch.randn(64, 64, generator=support.seeded(seed)).to(device)
    weight = torch.randn(64, 64, generator=support.seeded(seed + 1)).to(device)
    for _ in range(steps):
        x = torch.nn.functional.silu(x @ weight * 0.1) + x * 0.5
        x = x / (1 + x.abs())
    return x


def worker(seed, results):
    try:
        results.put((seed, walk(seed).cpu().numpy(), None))
    except Exception as error:  # goes to the parent's report
        results.put((seed, None, repr(error)))


def collect(case, context, seeds):
    results = context.Queue()
    processes = [context.Process(target=worker, args=(seed, results)) for seed in seeds]
    for process in processes:
        process.start()
    got = {}
    for _ in seeds:
        seed, value, error = results.get(timeout=support.PATIENCE_S)
        case.assertIsNone(error)
        got[seed] = torch.from_numpy(value)
    for process in processes:
        process.join(support.PATIENCE_S)
        case.assertEqual(process.exitcode, 0)
    for seed in seeds:
        support.close(got[seed], walk(seed, "cpu"), f"process {seed}", factor=10)


def borrow(box, results):
    """Reads a tensor of the parent's behind the parent's event, and changes it in place."""
    try:
        shared, ready = box.get(timeout=support.PATIENCE_S)
        ready.wait()
        seen = shared.clone()
        shared.add_(1)
        torch.npu.synchronize()
        results.put((seen.cpu().numpy(), shared.device.index, ready.query(), None))
    except Exception as error:  # goes to the parent's report
        results.put((None, None, None, repr(error)))


# What the parent has on the device is not the child's: using it there is an error, and the parent does not notice.
FORK_AFTER_USE = """
import os, torch, torch_npu
x = torch.ones(3).npu()
torch.npu.synchronize()
pid = os.fork()
if pid == 0:
    try:
        (torch.ones(3).npu() + 1).cpu()
    except RuntimeError as error:
        print("child:", error, flush=True)
        os._exit(0)
    os._exit(4)
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert (x + 1).cpu().tolist() == [2, 2, 2]
print("parent goes on")
"""

FORK_BEFORE_USE = """
import os, torch, torch_npu
pid = os.fork()
x = torch.full((3,), 2.0 if pid else 5.0).npu()
ok = (x * x).cpu().tolist() == [4.0 if pid else 25.0] * 3
if pid == 0:
    os._exit(0 if ok else 3)
assert ok
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
print("both computed")
"""

KILLED = """
import os, signal, torch, torch_npu
x = torch.ones(1 << 22, device="npu")
for _ in range(100):
    x = x + 1
os.kill(os.getpid(), signal.SIGKILL)
"""


class Processes(unittest.TestCase):
    def test_two_processes_on_one_device_at_once(self):
        collect(self, multiprocessing.get_context("spawn"), [100, 200])

    def test_parent_and_child_at_once(self):
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        process = context.Process(target=worker, args=(300, results))
        process.start()
        mine = walk(400)
        _, value, error = results.get(timeout=support.PATIENCE_S)
        process.join(support.PATIENCE_S)
        self.assertIsNone(error)
        support.close(torch.from_numpy(value), walk(300, "cpu"), factor=10)
        support.close(mine, walk(400, "cpu"), factor=10)

    def test_a_tensor_and_an_event_are_given_to_another_process(self):
        context = torch.multiprocessing.get_context("spawn")
        box, results = context.Queue(), context.Queue()
        process = context.Process(target=borrow, args=(box, results))
        process.start()
        mine, ready = torch.zeros(64, 64, device="npu"), torch.npu.Event(interprocess=True)
        torch.npu.synchronize()
        mine.copy_(walk(800))
        ready.record()
        box.put((mine, ready))
        seen, device, done, error = results.get(timeout=support.PATIENCE_S)
        self.assertIsNone(error)
        process.join(support.PATIENCE_S)
        self.assertEqual((process.exitcode, device, done), (0, 0, True))
        want = walk(800, "cpu")
        support.close(torch.from_numpy(seen), want, factor=10)
        support.close(mine, want + 1, factor=10)

    def test_fork_before_use(self):
        status, output = support.child(FORK_BEFORE_USE)
        self.assertEqual(status, 0, output)
        self.assertIn("both computed", output)

    def test_fork_after_use_is_refused_in_the_child_only(self):
        status, output = support.child(FORK_AFTER_USE)
        self.assertEqual(status, 0, output)
        self.assertIn("parent goes on", output)

    def test_a_killed_process_does_not_disturb_its_neighbour(self):
        kept = torch.arange(100_000, device="npu")
        status, output = support.child(KILLED)
        self.assertEqual(status, -9, output)
        self.assertTrue(torch.equal(kept.cpu(), torch.arange(100_000)))
        support.close(walk(500), walk(500, "cpu"), factor=10)


class Devices(unittest.TestCase):
    def test_there_are_two(self):
        self.assertEqual(torch.npu.device_count(), 2)

    def test_each_computes_its_own(self):
        a, b = walk(600, "npu:0"), walk(700, "npu:1")
        self.assertEqual((a.device.index, b.device.index), (0, 1))
        support.close(a, walk(600, "cpu"), factor=10)
        support.close(b, walk(700, "cpu"), factor=10)

    def test_the_current_device_is_a_property_of_the_context(self):
        with torch.npu.device(1):
            self.assertEqual(torch.npu.current_device(), 1)
            self.assertEqual(torch.ones(1, device="npu").device.index, 1)
        self.assertEqual(torch.npu.current_device(), 0)

    def test_copies_between_devices(self):
        x = torch.randn(100, 70, generator=support.seeded(8))
        there = x.to("npu:0").to("npu:1")
        self.assertEqual(there.device.index, 1)
        self.assertTrue(torch.equal(there.cpu(), x))
        back = (there + 1).to("npu:0")
        self.assertTrue(torch.equal(back.cpu(), x + 1))

    def test_operands_on_two_devices_are_refused(self):
        with self.assertRaises(RuntimeError):
            torch.ones(3, device="npu:0") + torch.ones(3, device="npu:1")
            torch.npu.synchronize()

    def test_memory_is_counted_apart(self):
        before = torch.npu.mem_get_info(0)[0]
        x = torch.empty(128 << 20, dtype=torch.uint8, device="npu:1")
        self.assertEqual(torch.npu.mem_get_info(0)[0], before)
        self.assertGreaterEqual(torch.npu.memory_allocated(1), 128 << 20)
        del x


if __name__ == "__main__":
    support.main()
