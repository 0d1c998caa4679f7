// PyTorch from 2.10 on keeps one set of allocator options for all devices. In a CUDA build the CUDA library adds its options
// while loading, torch_npu adds its own, and PyTorch ends the process because some have the same names. Builds of PyTorch for
// the CPU, which torch_npu is made for, have no CUDA library and no such clash. So the CUDA library gets a set of its own
// here, everybody else PyTorch's.
//
// This is part of the stand-in for libcudart, which PyTorch loads first and for all to see, so that this definition is found
// before the one in libc10.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <unordered_set>

namespace c10 {
namespace CachingAllocator {

using Keys = std::unordered_set<std::string>;

struct AcceleratorAllocatorConfig {
  static Keys& getMutableKeys();
};

Keys& AcceleratorAllocatorConfig::getMutableKeys() {
  Dl_info caller;
  if (dladdr(__builtin_return_address(0), &caller) != 0 && std::strstr(caller.dli_fname, "libc10_cuda") != nullptr) {
    static Keys of_cuda;
    return of_cuda;
  }
  static Keys& of_all = []() -> Keys& {
    void* library = dlopen("libc10.so", RTLD_LAZY | RTLD_NOLOAD);
    const char* name = "_ZN3c1016CachingAllocator26AcceleratorAllocatorConfig14getMutableKeysB5cxx11Ev";
    void* real = library == nullptr ? nullptr : dlsym(library, name);
    if (real == nullptr) std::abort();
    return reinterpret_cast<Keys& (*)()>(real)();
  }();
  return of_all;
}

}  // namespace CachingAllocator
}  // namespace c10
