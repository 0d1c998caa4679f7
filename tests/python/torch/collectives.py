"""torch.distributed with backend "hccl": two processes, each on a device of its own, against gloo on the CPU."""

import multiprocessing
import os
import queue
import signal
import socket
import time
import traceback
import unittest

import support
import torch
import torch.distributed as dist

RANKS = 2
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
INTEGERS = [torch.int8, torch.int32, torch.int64]
# One element, some that are no multiple of anything, and more than fits into what two daemons share at a time.
SIZES = [1, 1001, 1_500_001]
# Longest that a rank may take to notice that the other is gone.
NOTICE_S = 20


def values(seed, size, dtype):
    """What rank `seed` contributes: small enough that products and sums of 8-bit integers stay exact."""
    generator = support.seeded(100 + seed)
    if dtype.is_floating_point:
        return torch.randn(size, generator=generator).to(dtype)
    return torch.randint(-5, 6, (size,), generator=generator, dtype=torch.int64).to(dtype)


# What a rank does in a test: `device` is "npu" for HCCL and "cpu" for gloo. The answers are compared.


def all_reduce(rank, device, dtype, op, size):
    x = values(rank, size, dtype).to(device)
    dist.all_reduce(x, op=getattr(dist.ReduceOp, op))
    return x


def reduce(rank, device, dtype, op, size, root):
    x = values(rank, size, dtype).to(device)
    dist.reduce(x, root, op=getattr(dist.ReduceOp, op))
    # The others' contents are not defined afterwards.
    return x if rank == root else torch.zeros(0)


def broadcast(rank, device, dtype, size, root):
    x = values(rank, size, dtype).to(device)
    dist.broadcast(x, root)
    return x


def all_gather(rank, device, dtype, size):
    x = values(rank, size, dtype).to(device)
    out = [torch.empty_like(x) for _ in range(RANKS)]
    dist.all_gather(out, x)
    return torch.cat(out)


def all_gather_into_tensor(rank, device, dtype, size):
    x = values(rank, size, dtype).to(device)
    out = torch.empty(RANKS * size, dtype=dtype, device=device)
    dist.all_gather_into_tensor(out, x)
    return out


def scatter(rank, device, dtype, size, root):
    out = torch.empty(size, dtype=dtype, device=device)
    parts = [values(7 + i, size, dtype).to(device) for i in range(RANKS)] if rank == root else None
    dist.scatter(out, parts, src=root)
    return out


def send_and_receive(rank, device, dtype, size):
    x = values(rank, size, dtype).to(device)
    out = torch.empty_like(x)
    if rank == 0:
        dist.send(x, 1)
        dist.recv(out, 1)
    else:
        dist.recv(out, 0)
        dist.send(x, 0)
    return out


def batch(rank, device, dtype, size):
    x, y = values(rank, size, dtype).to(device), values(3 + rank, size, dtype).to(device)
    out = [torch.empty_like(x) for _ in range(2)]
    other = 1 - rank
    work = [dist.P2POp(dist.isend, t, other) for t in (x, y)] + [dist.P2POp(dist.irecv, t, other) for t in out]
    for each in dist.batch_isend_irecv(work):
        each.wait()
    return torch.cat(out)


def all_to_all_single(rank, device, dtype, splits):
    own, theirs = splits[rank], [splits[r][rank] for r in range(RANKS)]
    x = values(rank, sum(own), dtype).to(device)
    out = torch.empty(sum(theirs), dtype=dtype, device=device)
    dist.all_to_all_single(out, x, theirs, own)
    return out


# Gloo has no reduce-scatter and no list form of all-to-all everywhere; what they are for is in their names.


def reduce_scatter(rank, device, dtype, size):
    if device == "cpu":
        return sum(values(r, RANKS * size, dtype).chunk(RANKS)[rank] for r in range(RANKS))
    out = torch.empty(size, dtype=dtype, device=device)
    dist.reduce_scatter_tensor(out, values(rank, RANKS * size, dtype).to(device))
    again = torch.empty_like(out)
    dist.reduce_scatter(again, list(values(rank, RANKS * size, dtype).to(device).chunk(RANKS)))
    assert torch.equal(out, again)
    return out


def all_to_all(rank, device, dtype, size):
    if device == "cpu":
        return torch.cat([values(r, RANKS * size, dtype).chunk(RANKS)[rank] for r in range(RANKS)])
    out = [torch.empty(size, dtype=dtype, device=device) for _ in range(RANKS)]
    dist.all_to_all(out, list(values(rank, RANKS * size, dtype).to(device).chunk(RANKS)))
    return torch.cat(out)


def long_chain(rank, device, steps):
    """Each operator needs the collective before it, and each collective the operator before it."""
    x = values(rank, 64 * 64, torch.float32).view(64, 64).to(device)
    weight = values(9, 64 * 64, torch.float32).view(64, 64).to(device)
    for _ in range(steps):
        x = torch.nn.functional.silu(x @ weight * 0.1)
        dist.all_reduce(x)
        x = x / (1 + x.abs())
    return x


def beside(rank, device, steps):
    """Collectives under way while the device computes something else."""
    x = values(rank, 300_000, torch.float32).to(device)
    y = values(5, 64 * 64, torch.float32).view(64, 64).to(device)
    work = []
    for _ in range(steps):
        work.append(dist.all_reduce(x, async_op=True))
        y = torch.nn.functional.silu(y @ y * 0.01)
        work[-1].wait()
        x = x * 0.5
    return torch.cat([x, y.flatten()])


def training(rank, device, steps):
    """DistributedDataParallel: everyone ends with the same weights."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)).to(device)
    model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        x = torch.randn(8, 16, generator=support.seeded(1000 * rank + step)).to(device)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def captured(rank, device, replays):
    """A collective in a graph, launched several times."""
    x = values(rank, 4000, torch.float32).to(device)
    y = torch.empty_like(x)

    def step():
        y.copy_(x * 0.5)
        dist.all_reduce(y)
        x.copy_(y + 1)

    if device == "cpu":
        for _ in range(replays):
            step()
        return x
    before = x.clone()
    step()
    torch.npu.synchronize()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        step()
    x.copy_(before)
    for _ in range(replays):
        graph.replay()
    torch.npu.synchronize()
    return x


def groups(rank, device):
    """More groups than one, also of one rank."""
    both, alone = dist.new_group([0, 1]), [dist.new_group([r]) for r in range(RANKS)][rank]
    x = values(rank, 50, torch.float32).to(device)
    y = x.clone()
    dist.all_reduce(x, group=both)
    dist.all_reduce(y, group=alone)
    dist.barrier(group=both)
    out = torch.cat([x, y])
    return out


def disagree(rank, device):
    """Not the same call on both ranks: an error on both, of the synchronisation at the latest."""
    if device == "cpu":
        return torch.zeros(1)
    try:
        dist.all_reduce(values(rank, 10 + rank, torch.float32).to(device))
        torch.npu.synchronize()
    except RuntimeError:
        return torch.zeros(1)
    raise AssertionError("no error")


def serve(rank, port, commands, answers):
    """A rank: does what it is told, once with HCCL and once with gloo."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "HCCL_ASYNC_ERROR_HANDLING": "0"}
    try:
        torch.npu.set_device(rank)
        dist.init_process_group("cpu:gloo,npu:hccl", rank=rank, world_size=RANKS)
        while (command := commands.get()) is not None:
            name, arguments = command
            try:
                both = [globals()[name](rank, device, *arguments).cpu() for device in ("npu", "cpu")]
                # Through numpy, which has no bfloat16.
                answers.put((rank, [(t.to(torch.float64).numpy(), str(t.dtype)) for t in both], None))
            except Exception:  # goes to the parent's report
                answers.put((rank, None, traceback.format_exc()))
        dist.destroy_process_group()
    except Exception:
        answers.put((rank, None, traceback.format_exc()))


def doomed(rank, port, _, answers):
    """Rank 1 is killed while rank 0 waits for it."""
    # Without the second, a thread of PyTorch's ends the process as soon as it sees the error.
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "HCCL_ASYNC_ERROR_HANDLING": "0"}
    torch.npu.set_device(rank)
    dist.init_process_group("hccl", rank=rank, world_size=RANKS)
    x = torch.ones(1000, device="npu")
    dist.all_reduce(x)
    torch.npu.synchronize()
    answers.put((rank, "ready"))
    if rank == 1:
        time.sleep(support.PATIENCE_S)
    try:
        dist.all_reduce(x)
        torch.npu.synchronize()
        answers.put((rank, "no error"))
    except RuntimeError as error:
        answers.put((rank, support.failure(error)))
    # What PyTorch does with a group that is broken is its own business. A queue is written by a thread.
    answers.close()
    answers.join_thread()
    os._exit(0)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(target, *arguments):
    """A process a rank; they end with this one at the latest."""
    context, port = multiprocessing.get_context("spawn"), free_port()
    commands, answers = [context.Queue() for _ in range(RANKS)], context.Queue()
    ranks = [
        context.Process(target=target, args=(rank, port, commands[rank], answers), daemon=True) for rank in range(RANKS)
    ]
    for process in ranks:
        process.start()
    return ranks, commands, answers


def answer(ranks, answers):
    """The next answer; soon an error where there will be none."""
    end = time.monotonic() + support.PATIENCE_S
    while time.monotonic() < end:
        dead = not all(process.is_alive() for process in ranks)
        try:
            return answers.get(timeout=1)
        except queue.Empty:
            if dead:
                raise AssertionError(f"a rank has ended: {[process.exitcode for process in ranks]}") from None
    raise AssertionError("no answer")


class Collectives(unittest.TestCase):
    started = None

    def setUp(self):
        # One group for all tests: starting PyTorch takes longer than they do.
        Collectives.started = Collectives.started or start(serve)
        self.ranks, self.commands, self.answers = Collectives.started

    def ask(self, function, *arguments, exact=False, same=False):
        for commands in self.commands:
            commands.put((function.__name__, arguments))
        given = [answer(self.ranks, self.answers) for _ in self.ranks]
        for rank, _, error in given:
            self.assertIsNone(error, f"rank {rank}: {error}")
        got = {rank: both for rank, both, _ in given}
        what = f"{function.__name__}{arguments}"
        for rank, ((npu, npu_type), (cpu, cpu_type)) in got.items():
            self.assertEqual(npu_type, cpu_type, what)
            npu, cpu = torch.from_numpy(npu), torch.from_numpy(cpu)
            if exact:
                self.assertTrue(torch.equal(npu, cpu), f"{what}, rank {rank}")
            else:
                dtype = getattr(torch, npu_type.removeprefix("torch."))
                support.close(npu.to(dtype), cpu.to(dtype), f"{what}, rank {rank}")
        if same:
            self.assertTrue((got[0][0][0] == got[1][0][0]).all(), f"{what}: every rank has the same bits")

    def test_all_reduce(self):
        for op in ("SUM", "MAX", "MIN", "PRODUCT"):
            for dtype in FLOATS + INTEGERS:
                for size in SIZES if op == "SUM" else SIZES[:2]:
                    with self.subTest(op=op, dtype=dtype, size=size):
                        exact = not dtype.is_floating_point or op in ("MAX", "MIN")
                        self.ask(all_reduce, dtype, op, size, exact=exact, same=True)

    def test_reduce(self):
        for root in range(RANKS):
            for dtype in (torch.float32, torch.int32):
                self.ask(reduce, dtype, "SUM", 1001, root)

    def test_broadcast(self):
        for root in range(RANKS):
            for size in SIZES:
                self.ask(broadcast, torch.bfloat16, size, root, exact=True, same=True)

    def test_all_gather(self):
        for size in SIZES:
            self.ask(all_gather, torch.float16, size, exact=True, same=True)
            self.ask(all_gather_into_tensor, torch.int64, size, exact=True, same=True)

    def test_reduce_scatter(self):
        for size in SIZES:
            self.ask(reduce_scatter, torch.float32, size)
        self.ask(reduce_scatter, torch.int32, 77, exact=True)

    def test_scatter(self):
        for root in range(RANKS):
            self.ask(scatter, torch.float32, 1001, root, exact=True)

    def test_send_and_receive(self):
        for size in SIZES:
            self.ask(send_and_receive, torch.float32, size, exact=True)

    def test_batches_of_messages(self):
        for size in SIZES:
            self.ask(batch, torch.float32, size, exact=True)

    def test_all_to_all(self):
        for size in SIZES:
            self.ask(all_to_all, torch.float16, size, exact=True)

    def test_all_to_all_with_splits(self):
        for splits in ([[3, 4], [5, 6]], [[0, 7], [2, 0]], [[700_001, 3], [1, 400_000]]):
            self.ask(all_to_all_single, torch.float32, splits, exact=True)

    def test_collectives_and_operators_wait_for_each_other(self):
        self.ask(long_chain, 100, same=True)
        self.ask(beside, 20)

    def test_training_in_parallel(self):
        self.ask(training, 5, same=True)

    def test_a_collective_in_a_graph(self):
        self.ask(captured, 4, same=True)

    def test_groups(self):
        self.ask(groups)

    def test_when_all_is_done_the_ranks_end(self):
        for commands in self.commands:
            commands.put(None)
        for process in self.ranks:
            process.join(support.PATIENCE_S)
            self.assertEqual(process.exitcode, 0)
        Collectives.started = None


class Failures(unittest.TestCase):
    def test_ranks_that_disagree_get_an_error(self):
        ranks, commands, answers = start(serve)
        for each in commands:
            each.put(("disagree", ()))
        try:
            for _ in ranks:
                rank, _, error = answer(ranks, answers)
                self.assertIsNone(error, f"rank {rank}: {error}")
        finally:
            # The group is broken: its end is not looked at.
            for process in ranks:
                process.kill()

    def test_a_rank_that_is_killed_ends_the_wait_of_the_other(self):
        # The queues live as long as somebody has them.
        ranks, commands, answers = start(doomed)
        for _ in ranks:
            self.assertEqual(answer(ranks, answers)[1], "ready")
        time.sleep(1)
        os.kill(ranks[1].pid, signal.SIGKILL)
        begin = time.monotonic()
        rank, error = answers.get(timeout=NOTICE_S)
        took = time.monotonic() - begin
        ranks[0].join(support.PATIENCE_S)
        self.assertEqual(rank, 0)
        self.assertNotEqual(error, "no error")
        del commands
        return f"rank 0 was told after {took * 1000:.0f} ms"


if __name__ == "__main__":
    support.main()
