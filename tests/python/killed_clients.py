"""Starts processes that use an NPU through AscendCL and kills each at a random moment.

Usage: killed_clients.py COUNT SEED. A child opens the device, takes memory, streams, events and pinned memory, and then
posts operators and copies without an end, with a byte to its parent after each step; the parent sends SIGKILL a random
time after a random step. Only Python's ctypes stands between a child and the C ABI. Exits non-zero if a child ends by
itself: with a refused call, or by a fault.
"""

import ctypes
import os
import random
import select
import signal
import sys
import time

ALIVE_MAX = 8
STEPS_MAX = 8
DELAY_S_MAX = 0.003
PATIENCE_S = 60
MIB = 1 << 20
H2D, D2H = 1, 2
FLOAT, ND = 0, 2

acl = ctypes.CDLL("libascendcl.so")
op = ctypes.CDLL("libopapi.so")
for create in (op.aclCreateTensor, op.aclCreateScalar):
    create.restype = ctypes.c_void_p


def check(status):
    if status != 0:
        acl.aclGetRecentErrMsg.restype = ctypes.c_char_p
        raise SystemExit(f"refused with {status}: {acl.aclGetRecentErrMsg()}")


def pointer(create, *args):
    made = ctypes.c_void_p()
    check(create(ctypes.byref(made), *args))
    return made


def dims(*sizes):
    return (ctypes.c_int64 * len(sizes))(*sizes)


def tensor(data, count):
    handle = op.aclCreateTensor(
        dims(count), ctypes.c_uint64(1), FLOAT, dims(1), ctypes.c_int64(0), ND, dims(count), ctypes.c_uint64(1), data
    )
    return ctypes.c_void_p(handle)


def double_in_place(handle, stream):
    two = ctypes.c_float(1.0)
    scalar = ctypes.c_void_p(op.aclCreateScalar(ctypes.byref(two), FLOAT))
    size, executor = ctypes.c_uint64(), ctypes.c_void_p()
    check(op.aclnnAddGetWorkspaceSize(handle, handle, scalar, handle, ctypes.byref(size), ctypes.byref(executor)))
    check(op.aclnnAdd(None, size, executor, stream))
    check(op.aclDestroyScalar(scalar))


def use_the_device(report):
    check(acl.aclInit(None))
    check(acl.aclrtSetDevice(0))
    os.write(report, b".")
    streams = [pointer(acl.aclrtCreateStream) for _ in range(3)]
    events = [pointer(acl.aclrtCreateEventExWithFlag, ctypes.c_uint32(1)) for _ in range(8)]
    blocks = [pointer(acl.aclrtMalloc, ctypes.c_size_t(4 * MIB), 0) for _ in range(4)]
    pinned = pointer(acl.aclrtMallocHost, ctypes.c_size_t(MIB))
    tensors = [tensor(block, 64 * 1024) for block in blocks]
    turn = 0
    while True:
        stream, other = streams[turn % 3], streams[(turn + 1) % 3]
        check(acl.aclrtMemcpyAsync(blocks[turn % 4], ctypes.c_size_t(4 * MIB), pinned, ctypes.c_size_t(MIB), H2D, stream))
        for handle in tensors:
            double_in_place(handle, stream)
        event = events[turn % 8]
        check(acl.aclrtRecordEvent(event, stream))
        check(acl.aclrtStreamWaitEvent(other, event))
        extra = pointer(acl.aclrtMalloc, ctypes.c_size_t(MIB), 0)
        if turn % 5 == 4:
            check(acl.aclrtMemcpy(pinned, ctypes.c_size_t(MIB), extra, ctypes.c_size_t(MIB), D2H))
        check(acl.aclrtFree(extra))
        turn += 1
        os.write(report, b".")


def start(chance):
    mine, its = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(mine)
        try:
            use_the_device(its)
        finally:
            os._exit(1)
    os.close(its)
    return {"child": child, "pipe": mine, "steps_left": chance.randrange(STEPS_MAX), "delay_s": chance.uniform(0, DELAY_S_MAX)}


def kill(entry, seed):
    time.sleep(entry["delay_s"])
    os.kill(entry["child"], signal.SIGKILL)
    _, status = os.waitpid(entry["child"], 0)
    os.close(entry["pipe"])
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
        sys.exit(f"a client ended by itself (status {status:#x}, seed {seed})")


def main():
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    chance = random.Random(seed)
    alive = {}
    started = 0
    while started < count or alive:
        while started < count and len(alive) < ALIVE_MAX:
            entry = start(chance)
            alive[entry["pipe"]] = entry
            started += 1
        for pipe in [pipe for pipe, entry in alive.items() if entry["steps_left"] <= 0]:
            kill(alive.pop(pipe), seed)
        readable, _, _ = select.select(list(alive), [], [], PATIENCE_S)
        if alive and not readable:
            sys.exit(f"no client came further in {PATIENCE_S} s (seed {seed})")
        for pipe in readable:
            # Nothing to read is a client that has ended; `kill` says how.
            steps = len(os.read(pipe, 64))
            alive[pipe]["steps_left"] -= steps or STEPS_MAX
    print(f"killed {count}")


main()
