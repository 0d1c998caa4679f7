"""A process on a virtual NPU that does what it is told, for tests of what processes share and of what their death leaves.

Prints `ready`, then for every line of standard input, a method of `Process` and its arguments, one line: the AscendCL code
of the call that failed and its text, or 0 and the result. Only the Python library is needed: the calls go to
`libascendcl.so`, which `vnpu run` puts in place.
"""

import ctypes
import sys
import threading

PATIENCE_S = 60
TO_DEVICE, TO_HOST = 1, 2
EVENT_IPC = 0x40
HANDLE_BYTES = 64
KEY_CHARS = 64


class Handle(ctypes.Structure):
    """`aclrtIpcEventHandle`, which goes by value."""

    _fields_ = [("reserved", ctypes.c_char * HANDLE_BYTES)]


HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Failed(Exception):
    pass


acl = ctypes.CDLL("libascendcl.so")
acl.aclGetRecentErrMsg.restype = ctypes.c_char_p


def check(code):
    if code != 0:
        raise Failed(f"{code} {(acl.aclGetRecentErrMsg() or b'').decode()}")


def pointer(value=0):
    return ctypes.c_void_p(value)


class Process:
    def __init__(self):
        check(acl.aclrtSetDevice(0))
        self.stream = pointer()
        check(acl.aclrtCreateStream(ctypes.byref(self.stream)))
        self.memory, self.event = pointer(), pointer()
        # What the stream waits for when it is held.
        self.word = pointer()
        check(acl.aclrtMalloc(ctypes.byref(self.word), ctypes.c_size_t(512), 0))
        self.graph, self.called = pointer(), threading.Event()

    def malloc(self, size):
        check(acl.aclrtMalloc(ctypes.byref(self.memory), ctypes.c_size_t(int(size)), 0))

    def free(self):
        check(acl.aclrtFree(self.memory))

    def fill(self, value, size):
        """Sets the memory to a byte, in the stream."""
        size = ctypes.c_size_t(int(size))
        check(acl.aclrtMemsetAsync(self.memory, size, int(value), size, self.stream))

    def read(self, size):
        """The memory's bytes, copied behind the stream's work and waited for: distinct values in order of appearance."""
        host, size = ctypes.create_string_buffer(int(size)), ctypes.c_size_t(int(size))
        check(acl.aclrtSynchronizeStream(self.stream))
        check(acl.aclrtMemcpy(host, size, self.memory, size, TO_HOST))
        return list(dict.fromkeys(host.raw))

    def export(self, size):
        key = ctypes.create_string_buffer(KEY_CHARS + 1)
        check(acl.aclrtIpcMemGetExportKey(self.memory, ctypes.c_size_t(int(size)), key, ctypes.c_size_t(len(key)), ctypes.c_uint64(1)))
        return key.value.decode()

    def attach(self, key):
        check(acl.aclrtIpcMemImportByKey(ctypes.byref(self.memory), key.encode(), ctypes.c_uint64(0)))

    def close(self, key):
        check(acl.aclrtIpcMemClose(key.encode()))

    def create(self, flags=EVENT_IPC):
        check(acl.aclrtCreateEventExWithFlag(ctypes.byref(self.event), ctypes.c_uint32(int(flags))))

    def handle(self):
        handle = Handle()
        check(acl.aclrtIpcGetEventHandle(self.event, ctypes.byref(handle)))
        return bytes(handle).hex()

    def open(self, text):
        check(acl.aclrtIpcOpenEventHandle(Handle.from_buffer_copy(bytes.fromhex(text)), ctypes.byref(self.event)))

    def destroy(self):
        check(acl.aclrtDestroyEvent(self.event))

    def record(self):
        check(acl.aclrtRecordEvent(self.event, self.stream))

    def wait(self):
        """The stream waits for the event."""
        check(acl.aclrtStreamWaitEvent(self.stream, self.event))

    def query(self):
        status = ctypes.c_int32(-1)
        check(acl.aclrtQueryEventStatus(self.event, ctypes.byref(status)))
        return status.value

    def synchronise_event(self, timeout_ms=-1):
        check(acl.aclrtSynchronizeEventWithTimeout(self.event, int(timeout_ms)))

    def synchronise(self):
        check(acl.aclrtSynchronizeStream(self.stream))

    def idle(self):
        status = ctypes.c_int32(-1)
        check(acl.aclrtStreamQuery(self.stream, ctypes.byref(status)))
        return int(status.value == 0)

    def hold(self):
        """The stream stands still until `go`."""
        self.clear()
        self.stand()

    def clear(self):
        check(acl.aclrtMemset(self.word, ctypes.c_size_t(8), 0, ctypes.c_size_t(8)))

    def stand(self):
        """As `hold`, after `clear`; a graph may hold this."""
        check(acl.aclrtValueWait(self.word, ctypes.c_uint64(1), 1, self.stream))

    def go(self):
        one = ctypes.c_uint64(1)
        check(acl.aclrtMemcpy(self.word, ctypes.c_size_t(8), ctypes.byref(one), ctypes.c_size_t(8), TO_DEVICE))

    def capture(self):
        """What is posted to the stream from here on goes into a graph."""
        check(acl.aclmdlRICaptureBegin(self.stream, 0))

    def replay(self):
        """Ends the capture and launches the graph."""
        check(acl.aclmdlRICaptureEnd(self.stream, ctypes.byref(self.graph)))
        check(acl.aclmdlRIExecuteAsync(self.graph, self.stream))

    def callback(self):
        """A function on the host that never returns; waits until the stream has called it."""

        def stay(_):
            self.called.set()
            threading.Event().wait()

        self.function = HostFunction(stay)
        check(acl.aclrtLaunchHostFunc(self.stream, self.function, None))
        if not self.called.wait(PATIENCE_S):
            raise Failed(f"-1 not called within {PATIENCE_S} s")


def main():
    process = Process()
    print("ready", flush=True)
    for line in sys.stdin:
        name, *arguments = line.split()
        try:
            result = getattr(process, name)(*arguments)
            print(0, "" if result is None else result, flush=True)
        except Failed as failed:
            print(str(failed).replace("\n", " "), flush=True)


main()
