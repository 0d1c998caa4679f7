"""What vllm_ascend imports of pyACL, over the AscendCL library of the virtual NPU.

pyACL is part of CANN, not of any wheel. vllm_ascend imports one function of it unconditionally, for its sleep mode: `acl.rt.memcpy`.
Nothing else is here; a name that is missing is an AttributeError, not a success.
"""

from acl import rt

__all__ = ["rt"]
