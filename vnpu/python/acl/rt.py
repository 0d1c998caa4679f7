"""`acl.rt.memcpy`, as pyACL has it: addresses as integers, the AscendCL error code as the result."""

import ctypes

_memcpy = None


def memcpy(dst, dest_max, src, count, direction):
    """Copies `count` bytes; `direction` is an `aclrtMemcpyKind`. 0 for success."""
    global _memcpy
    if _memcpy is None:
        function = ctypes.CDLL("libascendcl.so").aclrtMemcpy
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        function.restype = ctypes.c_int
        _memcpy = function
    return _memcpy(dst, dest_max, src, count, direction)
