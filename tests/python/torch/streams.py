"""Streams, events and pinned copies."""

import os
import time
import unittest

import support
import torch


def work(x, times=20):
    for _ in range(times):
        x = x * 1.0001 + 0.5
    return x


class Streams(unittest.TestCase):
    def test_current_stream_follows_the_context(self):
        default, other = torch.npu.default_stream(), torch.npu.Stream()
        self.assertEqual(torch.npu.current_stream(), default)
        with torch.npu.stream(other):
            self.assertEqual(torch.npu.current_stream(), other)
            self.assertNotEqual(torch.npu.current_stream(), default)
        self.assertEqual(torch.npu.current_stream(), default)

    def test_event_orders_two_streams(self):
        x = torch.arange(4096, dtype=torch.float32)
        want = work(work(x)) * 2
        producer, consumer = torch.npu.Stream(), torch.npu.Stream()
        for round_ in range(20):
            d = x.npu()
            torch.npu.synchronize()
            event = torch.npu.Event()
            with torch.npu.stream(producer):
                y = work(work(d))
                event.record()
            with torch.npu.stream(consumer):
                consumer.wait_event(event)
                z = y * 2
            consumer.synchronize()
            support.close(z, want, f"round {round_}")

    def test_wait_stream_orders_two_streams(self):
        a, b = torch.npu.Stream(), torch.npu.Stream()
        for _ in range(20):
            with torch.npu.stream(a):
                y = torch.full((1000,), 3.0, device="npu")
                y.add_(1)
            b.wait_stream(a)
            with torch.npu.stream(b):
                y.mul_(10)
            b.synchronize()
            self.assertEqual(y.cpu().unique().tolist(), [40.0])

    def test_many_streams_at_once(self):
        streams = [torch.npu.Stream() for _ in range(40)]
        out = []
        for i, stream in enumerate(streams):
            with torch.npu.stream(stream):
                out.append(work(torch.full((257,), float(i), device="npu")))
        torch.npu.synchronize()
        for i, y in enumerate(out):
            support.close(y, work(torch.full((257,), float(i))), f"stream {i}")

    def test_query_turns_true(self):
        stream = torch.npu.Stream()
        with torch.npu.stream(stream):
            work(torch.ones(1 << 16, device="npu"))
        stream.synchronize()
        self.assertTrue(stream.query())

    def test_priorities(self):
        high = torch.npu.Stream(priority=-1)
        with torch.npu.stream(high):
            y = torch.ones(10, device="npu") + 1
        high.synchronize()
        self.assertEqual(y.cpu().tolist(), [2.0] * 10)

    def test_record_stream_keeps_memory_until_the_stream_is_done(self):
        side = torch.npu.Stream()
        want = work(torch.full((1 << 14,), 2.0), 200)
        for _ in range(10):
            x = torch.full((1 << 14,), 2.0, device="npu")
            side.wait_stream(torch.npu.current_stream())
            with torch.npu.stream(side):
                y = work(x, 200)
            x.record_stream(side)
            del x
            torch.full((1 << 14,), -1.0, device="npu")  # would take the place of x
            side.synchronize()
            support.close(y, want)


class Events(unittest.TestCase):
    def test_elapsed_time_grows_with_the_work_between(self):
        x = torch.ones(1 << 18, device="npu")
        work(x, 2)
        torch.npu.synchronize()
        marks = [torch.npu.Event(enable_timing=True) for _ in range(3)]
        began = time.monotonic()
        marks[0].record()
        work(x, 2)
        marks[1].record()
        work(x, 100)
        marks[2].record()
        marks[2].synchronize()
        wall_ms = (time.monotonic() - began) * 1e3
        short, long = marks[0].elapsed_time(marks[1]), marks[1].elapsed_time(marks[2])
        self.assertGreaterEqual(short, 0)
        self.assertGreater(long, short)
        self.assertLessEqual(short + long, wall_ms * 1.01 + 1)
        self.assertAlmostEqual(marks[0].elapsed_time(marks[2]), short + long, delta=0.01 * (short + long) + 0.01)

    def test_query_of_a_recorded_event(self):
        event = torch.npu.Event()
        self.assertTrue(event.query(), "an event that was never recorded is done")
        work(torch.ones(1 << 16, device="npu"))
        event.record()
        event.synchronize()
        self.assertTrue(event.query())

    def test_events_can_be_recorded_again(self):
        event, x = torch.npu.Event(enable_timing=True), torch.zeros(8, device="npu")
        for i in range(50):
            x += 1
            event.record()
            event.synchronize()
            self.assertEqual(x[0].item(), i + 1)


class Copies(unittest.TestCase):
    def test_pinned_memory_says_so(self):
        self.assertTrue(torch.ones(5).pin_memory().is_pinned())
        self.assertFalse(torch.ones(5).is_pinned())

    def test_pinned_copies_both_ways(self):
        for numel in (0, 1, 7, 4096, (1 << 20) + 3):
            x = torch.randn(numel, generator=support.seeded(numel)).pin_memory()
            back = torch.empty(numel, pin_memory=True)
            d = x.to("npu", non_blocking=True)
            back.copy_(d, non_blocking=True)
            torch.npu.synchronize()
            self.assertTrue(torch.equal(back, x), f"{numel} elements")

    def test_pageable_copies_both_ways(self):
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool):
            x = torch.randint(0, 2, (33, 17), generator=support.seeded(1)).to(dtype)
            for view in (x, x.t(), x[3:20:2, 1:], x[0, 0], x[:0]):
                for non_blocking in (False, True):
                    d = view.to("npu", non_blocking=non_blocking)
                    self.assertTrue(torch.equal(d.cpu(), view), f"{dtype} {tuple(view.shape)}")

    def test_a_source_that_changes_after_a_blocking_copy(self):
        x = torch.ones(1 << 16)
        d = x.npu()
        x.fill_(2)
        self.assertEqual(d.cpu().unique().tolist(), [1.0])

    def test_copies_on_a_stream_follow_its_work(self):
        stream = torch.npu.Stream()
        out = torch.empty(1 << 14, pin_memory=True)
        for i in range(20):
            with torch.npu.stream(stream):
                y = work(torch.full((1 << 14,), float(i), device="npu"))
                out.copy_(y, non_blocking=True)
            stream.synchronize()
            support.close(out, work(torch.full((1 << 14,), float(i))))

    def test_copies_convert_and_stride(self):
        x = torch.randn(24, 36, generator=support.seeded(2))
        d = x.npu()
        support.close(d.to(torch.float16), x.to(torch.float16))
        support.close(d.t().contiguous(), x.t().contiguous())
        target, want = torch.zeros(36, 24, device="npu"), torch.zeros(36, 24)
        target[::2].copy_(d[:, ::2].t())
        want[::2].copy_(x[:, ::2].t())
        support.close(target, want)
        support.close(d[:, None].expand(24, 3, 36).clone(), x[:, None].expand(24, 3, 36).clone())


if __name__ == "__main__":
    print(f"TASK_QUEUE_ENABLE={os.environ.get('TASK_QUEUE_ENABLE', 'unset')}")
    support.main()
