/* An ordinary AscendCL application: links against the libraries by name and knows nothing of virtual NPUs. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef void *aclrtStream;
typedef void aclTensor, aclScalar, aclOpExecutor;

int aclInit(const char *config);
int aclFinalize(void);
const char *aclGetRecentErrMsg(void);
int aclrtGetDeviceCount(uint32_t *count);
int aclrtSetDevice(int32_t device);
int aclrtResetDevice(int32_t device);
const char *aclrtGetSocName(void);
int aclrtCreateStream(aclrtStream *stream);
int aclrtDestroyStream(aclrtStream stream);
int aclrtSynchronizeStream(aclrtStream stream);
int aclrtMalloc(void **ptr, size_t size, int policy);
int aclrtFree(void *ptr);
int aclrtMallocHost(void **ptr, size_t size);
int aclrtFreeHost(void *ptr);
int aclrtMemcpy(void *dst, size_t room, const void *src, size_t count, int kind);
int aclrtMemcpyAsync(void *dst, size_t room, const void *src, size_t count, int kind, aclrtStream stream);
aclTensor *aclCreateTensor(const int64_t *dims, uint64_t n, int type, const int64_t *strides, int64_t offset, int format,
                           const int64_t *storage, uint64_t m, void *data);
int aclDestroyTensor(const aclTensor *tensor);
aclScalar *aclCreateScalar(void *value, int type);
int aclDestroyScalar(const aclScalar *scalar);
int aclnnAddGetWorkspaceSize(const aclTensor *self, const aclTensor *other, const aclScalar *alpha, aclTensor *out,
                             uint64_t *size, aclOpExecutor **executor);
int aclnnAdd(void *workspace, uint64_t size, aclOpExecutor *executor, aclrtStream stream);
int aclnnRmsNormGetWorkspaceSize(const aclTensor *x, const aclTensor *gamma, double epsilon, const aclTensor *y,
                                 const aclTensor *rstd, uint64_t *size, aclOpExecutor **executor);
int aclnnRmsNorm(void *workspace, uint64_t size, aclOpExecutor *executor, aclrtStream stream);

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        int status = (call);                                                                                           \
        if (status != 0) {                                                                                             \
            fprintf(stderr, "%s: %d: %s\n", #call, status, aclGetRecentErrMsg());                                      \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

enum { F32 = 0, ND = 2, H2D = 1, D2H = 2, N = 64 };

int main(void) {
    uint32_t devices = 0;
    CHECK(aclInit(NULL));
    CHECK(aclrtGetDeviceCount(&devices));
    CHECK(aclrtSetDevice(0));
    printf("%u device, %s\n", devices, aclrtGetSocName());

    aclrtStream stream;
    void *x, *gamma, *y, *rstd;
    float *host;
    CHECK(aclrtCreateStream(&stream));
    CHECK(aclrtMallocHost((void **)&host, 2 * N * sizeof(float)));
    CHECK(aclrtMalloc(&x, N * sizeof(float), 0));
    CHECK(aclrtMalloc(&gamma, N * sizeof(float), 0));
    CHECK(aclrtMalloc(&y, N * sizeof(float), 0));
    CHECK(aclrtMalloc(&rstd, sizeof(float), 0));
    for (int i = 0; i < N; i++) {
        host[i] = (float)(i + 1);
        host[N + i] = 1.0f;
    }
    CHECK(aclrtMemcpyAsync(x, N * sizeof(float), host, N * sizeof(float), H2D, stream));
    CHECK(aclrtMemcpyAsync(gamma, N * sizeof(float), host + N, N * sizeof(float), H2D, stream));

    int64_t row[2] = {1, N}, one[2] = {1, 1}, vector[1] = {N}, strides[2] = {N, 1}, unit[2] = {1, 1};
    aclTensor *tx = aclCreateTensor(row, 2, F32, strides, 0, ND, row, 2, x);
    aclTensor *tg = aclCreateTensor(vector, 1, F32, unit, 0, ND, vector, 1, gamma);
    aclTensor *ty = aclCreateTensor(row, 2, F32, strides, 0, ND, row, 2, y);
    aclTensor *tr = aclCreateTensor(one, 2, F32, unit, 0, ND, one, 2, rstd);
    float two = 2.0f;
    aclScalar *alpha = aclCreateScalar(&two, F32);

    uint64_t size;
    aclOpExecutor *executor;
    /* x + 2 x, then RMS normalisation with an epsilon that shows. */
    CHECK(aclnnAddGetWorkspaceSize(tx, tx, alpha, tx, &size, &executor));
    CHECK(aclnnAdd(NULL, size, executor, stream));
    double epsilon = 100.0;
    CHECK(aclnnRmsNormGetWorkspaceSize(tx, tg, epsilon, ty, tr, &size, &executor));
    CHECK(aclnnRmsNorm(NULL, size, executor, stream));
    CHECK(aclrtSynchronizeStream(stream));

    float got[N];
    CHECK(aclrtMemcpy(got, sizeof got, y, sizeof got, D2H));
    double mean = 0;
    for (int i = 0; i < N; i++) {
        mean += 9.0 * (i + 1) * (i + 1) / N;
    }
    for (int i = 0; i < N; i++) {
        double want = 3.0 * (i + 1) / sqrt(mean + epsilon);
        if (fabs(got[i] - want) > 1e-5 * fabs(want)) {
            fprintf(stderr, "element %d: %.9g, want %.9g\n", i, got[i], want);
            return 1;
        }
    }
    CHECK(aclDestroyTensor(tx));
    CHECK(aclDestroyTensor(tg));
    CHECK(aclDestroyTensor(ty));
    CHECK(aclDestroyTensor(tr));
    CHECK(aclDestroyScalar(alpha));
    CHECK(aclrtFreeHost(host));
    CHECK(aclrtFree(x));
    CHECK(aclrtFree(gamma));
    CHECK(aclrtFree(y));
    CHECK(aclrtFree(rstd));
    CHECK(aclrtDestroyStream(stream));
    CHECK(aclrtResetDevice(0));
    CHECK(aclFinalize());
    puts("computed");
    return 0;
}
