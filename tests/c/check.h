/* What the C programs of this folder share. They are ordinary AscendCL programs: they know nothing of virtual NPUs. */
#pragma once
#include <acl/acl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A call that must work. */
#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        int status_ = (call);                                                                                          \
        if (status_ != 0) {                                                                                            \
            fprintf(stderr, "%s:%d: %s: %d: %s\n", __FILE__, __LINE__, #call, status_, aclGetRecentErrMsg());          \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* A call that must not. */
#define REFUSED(call)                                                                                                  \
    do {                                                                                                               \
        if ((call) == 0) {                                                                                             \
            fprintf(stderr, "%s:%d: %s: should be refused\n", __FILE__, __LINE__, #call);                              \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define WANT(what)                                                                                                     \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #what);                                       \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* Both phases of an operator: LAUNCH(Mm, stream, x, weight, out, 2). */
#define LAUNCH(op, stream, ...)                                                                                        \
    do {                                                                                                               \
        uint64_t size_ = 0;                                                                                            \
        aclOpExecutor *executor_ = NULL;                                                                               \
        CHECK(aclnn##op##GetWorkspaceSize(__VA_ARGS__, &size_, &executor_));                                           \
        CHECK(aclnn##op(NULL, size_, executor_, stream));                                                              \
    } while (0)

typedef _Float16 half;

static inline void *device(size_t bytes) {
    void *at = NULL;
    CHECK(aclrtMalloc(&at, bytes, ACL_MEM_MALLOC_HUGE_FIRST));
    return at;
}

static inline void *upload(const void *from, size_t bytes) {
    void *at = device(bytes);
    CHECK(aclrtMemcpy(at, bytes, from, bytes, ACL_MEMCPY_HOST_TO_DEVICE));
    return at;
}

static inline void download(void *to, const void *from, size_t bytes) {
    CHECK(aclrtMemcpy(to, bytes, from, bytes, ACL_MEMCPY_DEVICE_TO_HOST));
}

/* A view whose storage is given with one dimension, as some clients give it; NULL strides: row by row. */
static inline aclTensor *view(void *at, aclDataType type, int n, const int64_t *dims, const int64_t *strides, aclFormat format) {
    int64_t own[8], storage = 1;
    for (int i = n - 1, next = 1; i >= 0; i--) {
        own[i] = next;
        next *= (int)dims[i];
    }
    strides = strides ? strides : own;
    for (int i = 0; i < n; i++) {
        storage += (dims[i] - 1) * strides[i];
    }
    aclTensor *made = aclCreateTensor(dims, n, type, strides, 0, format, &storage, 1, at);
    if (!made) {
        fprintf(stderr, "aclCreateTensor: %s\n", aclGetRecentErrMsg());
        exit(1);
    }
    return made;
}

#define DIMS(...) (int64_t[]){__VA_ARGS__}
#define MATRIX(at, type, rows, columns) view(at, type, 2, DIMS(rows, columns), NULL, ACL_FORMAT_ND)
/* The same memory with rows and columns exchanged. */
#define TRANSPOSED(at, type, rows, columns, format) view(at, type, 2, DIMS(columns, rows), DIMS(1, columns), format)

/* Numbers in -1..1 that repeat after 2^32, multiples of 1/64. */
static inline double noise(void) {
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return ((int)(state >> 24) - 128) / 128.0;
}

static inline void near(const char *what, size_t at, double got, double want, double tolerance) {
    if (!(fabs(got - want) <= tolerance)) {
        fprintf(stderr, "%s: element %zu is %.9g, want %.9g\n", what, at, got, want);
        exit(1);
    }
}
