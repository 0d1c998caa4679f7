/* What llama.cpp's CANN backend calls, in the ways it calls it: each argument names a part, and every result is compared with values
   that are computed here. */
#include "check.h"

#include <aclnn/aclnn_base.h>

enum { STEP = 2 << 20 };

/* Weights that are laid out in FRACTAL_NZ in place, on the default stream, and multiplied on another by their tag. */
static void private_weights(aclrtStream stream) {
    enum { M = 3, K = 72, N = 40 };
    static half weight[N][K], raw[5][3][16][16];
    static float x[M][K], y[M][N];
    for (int n = 0; n < N; n++) {
        for (int k = 0; k < K; k++) {
            weight[n][k] = (half)noise();
        }
    }
    for (int i = 0; i < M * K; i++) {
        (&x[0][0])[i] = (float)noise();
    }
    aclIntArray *shape = aclCreateIntArray(DIMS(N, K), 2);
    uint64_t elements = 0;
    CHECK(aclnnCalculateMatmulWeightSizeV2(shape, ACL_FLOAT16, &elements));
    WANT(elements == 48 * 80);
    CHECK(aclnnCalculateMatmulWeightSizeV2(shape, ACL_INT8, &elements));
    WANT(elements == 48 * 96);
    REFUSED(aclnnCalculateMatmulWeightSizeV2(NULL, ACL_FLOAT16, &elements));
    REFUSED(aclnnCalculateMatmulWeightSizeV2(shape, ACL_FLOAT16, NULL));
    CHECK(aclDestroyIntArray(shape));

    void *at = device(sizeof raw);
    CHECK(aclrtMemcpy(at, sizeof weight, weight, sizeof weight, ACL_MEMCPY_HOST_TO_DEVICE));
    aclTensor *plain = MATRIX(at, ACL_FLOAT16, N, K);
    LAUNCH(TransMatmulWeight, NULL, plain);
    /* The tensor itself has changed. */
    aclFormat format;
    int64_t *storage;
    uint64_t count;
    CHECK(aclGetFormat(plain, &format));
    WANT(format == ACL_FORMAT_FRACTAL_NZ);
    CHECK(aclGetStorageShape(plain, &storage, &count));
    WANT(count == 4 && storage[0] == 5 && storage[1] == 3 && storage[2] == 16 && storage[3] == 16);
    free(storage);
    uint64_t size;
    aclOpExecutor *executor;
    REFUSED(aclnnTransMatmulWeightGetWorkspaceSize(plain, &size, &executor));

    /* Without a word between: the layout is there, on the host and for other streams. */
    download(raw, at, sizeof raw);
    for (int c = 0; c < 80; c++) {
        for (int r = 0; r < 48; r++) {
            double want = r < N && c < K ? (double)weight[r][c] : 0.0;
            near("layout", r * 80 + c, raw[c / 16][r / 16][r % 16][c % 16], want, 0);
        }
    }
    void *tx = upload(x, sizeof x), *ty = device(sizeof y);
    aclTensor *input = MATRIX(tx, ACL_FLOAT, M, K), *out = MATRIX(ty, ACL_FLOAT, M, N);
    aclTensor *turned = TRANSPOSED(at, ACL_FLOAT16, N, K, ACL_FORMAT_FRACTAL_NZ);
    LAUNCH(Mm, stream, input, turned, out, 2);
    CHECK(aclrtSynchronizeStream(stream));
    download(y, ty, sizeof y);
    for (int m = 0; m < M; m++) {
        for (int n = 0; n < N; n++) {
            double want = 0;
            for (int k = 0; k < K; k++) {
                want += x[m][k] * (double)weight[n][k];
            }
            near("Mm", m * N + n, y[m][n], want, 1e-4);
        }
    }
    /* In three dimensions, as prompts come, and by the tensor that was converted: x is [2, N] then. */
    static float z[2][K];
    void *tz = device(sizeof z);
    aclTensor *lead = view(at, ACL_FLOAT16, 3, DIMS(1, K, N), DIMS(N * K, 1, K), ACL_FORMAT_FRACTAL_NZ);
    aclTensor *inputs = view(tx, ACL_FLOAT, 3, DIMS(1, M, K), NULL, ACL_FORMAT_ND);
    aclTensor *outs = view(ty, ACL_FLOAT, 3, DIMS(1, M, N), NULL, ACL_FORMAT_ND);
    CHECK(aclrtMemset(ty, sizeof y, 0, sizeof y));
    LAUNCH(BatchMatMul, stream, inputs, lead, outs, 2);
    aclTensor *left = MATRIX(tx, ACL_FLOAT, 2, N), *right = MATRIX(tz, ACL_FLOAT, 2, K);
    LAUNCH(Mm, stream, left, plain, right, 2);
    CHECK(aclrtSynchronizeStream(stream));
    static float again[M][N];
    download(again, ty, sizeof again);
    WANT(memcmp(again, y, sizeof y) == 0);
    download(z, tz, sizeof z);
    for (int m = 0; m < 2; m++) {
        for (int k = 0; k < K; k++) {
            double want = 0;
            for (int n = 0; n < N; n++) {
                want += (&x[0][0])[m * N + n] * (double)weight[n][k];
            }
            near("x·w", m * K + k, z[m][k], want, 1e-4);
        }
    }
    /* Part of a matrix cannot be described by its strides. */
    aclTensor *part = view(at, ACL_FLOAT16, 2, DIMS(K, 8), DIMS(2, K), ACL_FORMAT_FRACTAL_NZ);
    aclTensor *few = MATRIX(ty, ACL_FLOAT, M, 8);
    CHECK(aclnnMmGetWorkspaceSize(input, part, few, 2, &size, &executor));
    CHECK(aclnnMm(NULL, size, executor, stream));
    REFUSED(aclrtSynchronizeStream(stream));
    WANT(strstr(aclGetRecentErrMsg(), "mat2"));
    aclTensor *all[] = {plain, input, out, turned, lead, inputs, outs, left, right, part, few};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        CHECK(aclDestroyTensor(all[i]));
    }
    CHECK(aclrtFree(at));
    CHECK(aclrtFree(tx));
    CHECK(aclrtFree(ty));
    CHECK(aclrtFree(tz));
}

/* One quantised product: int8 or int4 weights [N, K], handed over transposed, with a scale for each group of each row. */
static void quantised(aclrtStream stream, aclDataType type, int m, int k, int n, int group, int offsets, int bias) {
    int groups = group ? (k + group - 1) / group : 1, low = type == ACL_INT8 ? 256 : 16;
    signed char *weight = malloc(n * k), *packed = calloc(n * k, 1);
    half *x = malloc(m * k * 2), *y = malloc(m * n * 2), *scale = malloc(n * groups * 2), *offset = malloc(n * groups * 2),
         *added = malloc(n * 2);
    for (int i = 0; i < n * k; i++) {
        weight[i] = (signed char)floor(noise() * low / 2);
    }
    for (int i = 0; i < m * k; i++) {
        x[i] = (half)noise();
    }
    for (int i = 0; i < n * groups; i++) {
        scale[i] = (half)(noise() / low);
        offset[i] = (half)(noise() * 4);
    }
    for (int i = 0; i < n; i++) {
        added[i] = (half)noise();
    }
    /* Two int4 a byte, the first in the low bits; in int32, eight. Both are the same bytes on a little-endian machine. */
    for (int i = 0; i < n * k; i++) {
        if (type == ACL_INT8) {
            packed[i] = weight[i];
        } else {
            packed[i / 2] |= (weight[i] & 15) << (i % 2 * 4);
        }
    }
    size_t bytes = type == ACL_INT8 ? n * k : (n * k + 1) / 2;
    void *tw = upload(packed, bytes), *tx = upload(x, m * k * 2), *ts = upload(scale, n * groups * 2);
    void *to = upload(offset, n * groups * 2), *tb = upload(added, n * 2), *ty = device(m * n * 2);
    int per = type == ACL_INT32 ? 8 : 1;
    aclTensor *w = TRANSPOSED(tw, type, n, k / per, ACL_FORMAT_ND), *in = MATRIX(tx, ACL_FLOAT16, m, k);
    aclTensor *s = TRANSPOSED(ts, ACL_FLOAT16, n, groups, ACL_FORMAT_ND), *out = MATRIX(ty, ACL_FLOAT16, m, n);
    aclTensor *o = TRANSPOSED(to, ACL_FLOAT16, n, groups, ACL_FORMAT_ND), *b = view(tb, ACL_FLOAT16, 1, DIMS(n), NULL, ACL_FORMAT_ND);
    LAUNCH(WeightQuantBatchMatmulV2, stream, in, w, s, offsets ? o : NULL, NULL, NULL, bias ? b : NULL, group, out);
    CHECK(aclrtSynchronizeStream(stream));
    download(y, ty, m * n * 2);
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < n; j++) {
            double want = bias ? (double)added[j] : 0, size = 1;
            for (int l = 0; l < k; l++) {
                int g = j * groups + (group ? l / group : 0);
                double term = (double)x[i * k + l] * (weight[j * k + l] + (offsets ? (double)offset[g] : 0)) * (double)scale[g];
                want += term;
                size += fabs(term);
            }
            near("WeightQuantBatchMatmulV2", i * n + j, y[i * n + j], want, fabs(want) / 1024 + size * 1e-5);
        }
    }
    aclTensor *all[] = {w, in, s, out, o, b};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        CHECK(aclDestroyTensor(all[i]));
    }
    void *memory[] = {tw, tx, ts, to, tb, ty};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) {
        CHECK(aclrtFree(memory[i]));
    }
    free(weight), free(packed), free(x), free(y), free(scale), free(offset), free(added);
}

static void quantised_weights(aclrtStream stream) {
    quantised(stream, ACL_INT8, 1, 96, 48, 32, 0, 0);
    quantised(stream, ACL_INT8, 7, 64, 33, 64, 1, 1);
    quantised(stream, ACL_INT8, 2, 32, 16, 0, 0, 0);
    quantised(stream, ACL_INT8, 3, 40, 16, 32, 1, 0);
}

static void packed_int4(aclrtStream stream) {
    quantised(stream, ACL_INT4, 1, 96, 48, 32, 0, 0);
    quantised(stream, ACL_INT4, 5, 64, 24, 32, 1, 1);
    quantised(stream, ACL_INT4, 2, 32, 16, 0, 1, 0);
    quantised(stream, ACL_INT32, 2, 64, 24, 32, 1, 1);
}

static void expect(const char *what, void *at, int count, float want) {
    float *got = malloc(count * sizeof *got);
    download(got, at, count * sizeof *got);
    for (int i = 0; i < count; i++) {
        near(what, i, got[i], want, 0);
    }
    free(got);
}

/* Stream NULL is a stream like any other, wherever a stream may be given. */
static void default_stream(aclrtStream other) {
    enum { N = 4096 };
    float *host;
    CHECK(aclrtMallocHost((void **)&host, N * sizeof *host));
    for (int i = 0; i < N; i++) {
        host[i] = 3;
    }
    void *x = device(N * sizeof *host), *y = device(N * sizeof *host);
    aclTensor *tx = view(x, ACL_FLOAT, 1, DIMS(N), NULL, ACL_FORMAT_ND), *ty = view(y, ACL_FLOAT, 1, DIMS(N), NULL, ACL_FORMAT_ND);
    float two = 2;
    aclScalar *factor = aclCreateScalar(&two, ACL_FLOAT);
    CHECK(aclrtMemcpyAsync(x, N * sizeof *host, host, N * sizeof *host, ACL_MEMCPY_HOST_TO_DEVICE, NULL));
    LAUNCH(Muls, NULL, tx, factor, ty);
    CHECK(aclrtMemcpyAsync(x, N * sizeof *host, y, N * sizeof *host, ACL_MEMCPY_DEVICE_TO_DEVICE, NULL));
    CHECK(aclrtMemsetAsync(y, N * sizeof *host, 0, N * sizeof *host, NULL));
    CHECK(aclrtSynchronizeStream(NULL));
    expect("after the default stream", x, N, 6);
    expect("zeroed on the default stream", y, N, 0);
    /* Events between it and another, both ways. */
    aclrtEvent there, back;
    CHECK(aclrtCreateEvent(&there));
    CHECK(aclrtCreateEvent(&back));
    for (int i = 0; i < 50; i++) {
        LAUNCH(InplaceMuls, NULL, tx, factor);
        CHECK(aclrtRecordEvent(there, NULL));
        CHECK(aclrtStreamWaitEvent(other, there));
        float half_ = 0.5f;
        aclScalar *down = aclCreateScalar(&half_, ACL_FLOAT);
        LAUNCH(InplaceMuls, other, tx, down);
        CHECK(aclDestroyScalar(down));
        CHECK(aclrtRecordEvent(back, other));
        CHECK(aclrtStreamWaitEvent(NULL, back));
    }
    LAUNCH(Muls, NULL, tx, factor, ty);
    CHECK(aclrtRecordEvent(there, NULL));
    CHECK(aclrtSynchronizeEvent(there));
    expect("after both streams", y, N, 12);
    /* What was captured elsewhere runs on it. */
    aclmdlRI graph;
    CHECK(aclmdlRICaptureBegin(other, ACL_MODEL_RI_CAPTURE_MODE_GLOBAL));
    LAUNCH(InplaceMuls, other, ty, factor);
    CHECK(aclmdlRICaptureEnd(other, &graph));
    CHECK(aclmdlRIExecuteAsync(graph, NULL));
    CHECK(aclmdlRIExecuteAsync(graph, NULL));
    CHECK(aclrtSynchronizeStream(NULL));
    expect("after the graph", y, N, 48);
    CHECK(aclmdlRIDestroy(graph));
    LAUNCH(InplaceMuls, NULL, ty, factor);
    CHECK(aclrtSynchronizeDevice());
    expect("after the device", y, N, 96);
    REFUSED(aclrtDestroyStream(NULL));
    REFUSED(aclmdlRICaptureBegin(NULL, ACL_MODEL_RI_CAPTURE_MODE_GLOBAL));
    CHECK(aclrtDestroyEvent(there));
    CHECK(aclrtDestroyEvent(back));
    CHECK(aclDestroyScalar(factor));
    CHECK(aclDestroyTensor(tx));
    CHECK(aclDestroyTensor(ty));
    CHECK(aclrtFree(x));
    CHECK(aclrtFree(y));
    CHECK(aclrtFreeHost(host));
}

static aclrtPhysicalMemProp huge_pages(void) {
    aclrtPhysicalMemProp prop;
    memset(&prop, 0, sizeof prop);
    prop.handleType = ACL_MEM_HANDLE_TYPE_NONE;
    prop.allocationType = ACL_MEM_ALLOCATION_TYPE_PINNED;
    prop.memAttr = ACL_HBM_MEM_HUGE;
    prop.location.type = ACL_MEM_LOCATION_TYPE_DEVICE;
    return prop;
}

/* Far more addresses than memory, mapped step by step; one tensor lies across two steps. */
static void over_reservation(aclrtStream stream) {
    size_t free_before, free_after, total, step = 0;
    aclrtPhysicalMemProp prop = huge_pages();
    CHECK(aclrtMemGetAllocationGranularity(&prop, ACL_RT_MEM_ALLOC_GRANULARITY_RECOMMENDED, &step));
    WANT(step > 0 && STEP % step == 0);
    CHECK(aclrtGetMemInfo(ACL_HBM_MEM, &free_before, &total));
    char *pool, *second;
    CHECK(aclrtReserveMemAddress((void **)&pool, 60ull << 30, 0, NULL, 1));
    CHECK(aclrtReserveMemAddress((void **)&second, 60ull << 30, 0, NULL, 1));
    WANT((60ull << 30) > total && (second >= pool + (60ull << 30) || pool >= second + (60ull << 30)));
    CHECK(aclrtGetMemInfo(ACL_HBM_MEM, &free_after, &total));
    WANT(free_after == free_before);
    /* Nothing is there yet. */
    float one = 1;
    REFUSED(aclrtMemcpy(pool, sizeof one, &one, sizeof one, ACL_MEMCPY_HOST_TO_DEVICE));
    enum { STEPS = 3, N = STEP / sizeof(float) };
    aclrtDrvMemHandle handles[STEPS];
    float *host = malloc(2 * STEP);
    for (int i = 0; i < STEPS; i++) {
        CHECK(aclrtMallocPhysical(&handles[i], STEP, &prop, 0));
        CHECK(aclrtMapMem(pool + (size_t)i * STEP, STEP, 0, handles[i], 0));
        CHECK(aclrtGetMemInfo(ACL_HBM_MEM, &free_after, &total));
        WANT(free_after <= free_before - (size_t)(i + 1) * STEP);
        for (int j = 0; j < N; j++) {
            host[j] = (float)(i * N + j);
        }
        CHECK(aclrtMemcpy(pool + (size_t)i * STEP, STEP, host, STEP, ACL_MEMCPY_HOST_TO_DEVICE));
    }
    aclTensor *across = view(pool + STEP / 2, ACL_FLOAT, 1, DIMS(2 * N), NULL, ACL_FORMAT_ND);
    float two = 2;
    aclScalar *factor = aclCreateScalar(&two, ACL_FLOAT);
    LAUNCH(InplaceMuls, stream, across, factor);
    CHECK(aclrtSynchronizeStream(stream));
    download(host, pool + STEP / 2, 2 * STEP);
    for (int j = 0; j < 2 * N; j++) {
        near("across handles", j, host[j], 2.0 * (j + N / 2), 0);
    }
    /* Behind what is mapped there is nothing. */
    aclTensor *beyond = view(pool + STEPS * (size_t)STEP - 4, ACL_FLOAT, 1, DIMS(2), NULL, ACL_FORMAT_ND);
    LAUNCH(InplaceMuls, stream, beyond, factor);
    REFUSED(aclrtSynchronizeStream(stream));
    CHECK(aclDestroyTensor(across));
    CHECK(aclDestroyTensor(beyond));
    CHECK(aclDestroyScalar(factor));
    for (int i = 0; i < STEPS; i++) {
        CHECK(aclrtUnmapMem(pool + (size_t)i * STEP));
        CHECK(aclrtFreePhysical(handles[i]));
    }
    CHECK(aclrtReleaseMemAddress(pool));
    CHECK(aclrtReleaseMemAddress(second));
    CHECK(aclrtGetMemInfo(ACL_HBM_MEM, &free_after, &total));
    WANT(free_after == free_before);
    free(host);
}

/* The device is reset first, and everything is given back after. */
static void after_reset(aclrtStream stream) {
    aclrtPhysicalMemProp prop = huge_pages();
    aclrtStream second;
    aclrtEvent event;
    aclrtDrvMemHandle handle;
    char *pool;
    CHECK(aclrtCreateStream(&second));
    CHECK(aclrtCreateEvent(&event));
    CHECK(aclrtReserveMemAddress((void **)&pool, 60ull << 30, 0, NULL, 1));
    CHECK(aclrtMallocPhysical(&handle, STEP, &prop, 0));
    CHECK(aclrtMapMem(pool, STEP, 0, handle, 0));
    void *memory = device(4096), *host, *kept = device(64);
    CHECK(aclrtMallocHost(&host, 4096));
    aclTensor *tensor = view(pool, ACL_FLOAT, 1, DIMS(1024), NULL, ACL_FORMAT_ND);
    float one = 1;
    aclScalar *value = aclCreateScalar(&one, ACL_FLOAT);
    LAUNCH(InplaceFillScalar, second, tensor, value);
    CHECK(aclrtRecordEvent(event, second));
    CHECK(aclrtMemcpy(kept, sizeof one, &one, sizeof one, ACL_MEMCPY_HOST_TO_DEVICE));
    CHECK(aclrtSynchronizeDevice());
    CHECK(aclrtResetDevice(0));
    CHECK(aclDestroyTensor(tensor));
    CHECK(aclDestroyScalar(value));
    CHECK(aclrtDestroyEvent(event));
    CHECK(aclrtDestroyStream(second));
    CHECK(aclrtDestroyStream(stream));
    CHECK(aclrtUnmapMem(pool));
    CHECK(aclrtFreePhysical(handle));
    CHECK(aclrtReleaseMemAddress(pool));
    CHECK(aclrtFree(memory));
    CHECK(aclrtFreeHost(host));
    /* Twice is an error. */
    REFUSED(aclrtFree(memory));
    REFUSED(aclrtDestroyStream(second));
    REFUSED(aclrtFreePhysical(handle));
    /* Nothing is selected any more; the device can be selected again, and memory that was not freed is as it was. */
    void *more;
    REFUSED(aclrtMalloc(&more, 64, 0));
    CHECK(aclrtSetDevice(0));
    CHECK(aclrtMalloc(&more, 64, 0));
    float got = 0;
    download(&got, kept, sizeof got);
    near("kept", 0, got, 1, 0);
    CHECK(aclrtFree(more));
    CHECK(aclrtFree(kept));
    CHECK(aclrtResetDevice(0));
}

/* Attention over an f16 cache with the mask as an addend that all heads share, and lists that own their tensors. */
static void attention(aclrtStream stream) {
    enum { B = 1, S = 5, H = 4, G = 2, L = 256, D = 16, USED = 9 };
    static half q[S][H][D], k[L][G][D], v[L][G][D], mask[S][L], y[S][H][D];
    for (int i = 0; i < S * H * D; i++) {
        (&q[0][0][0])[i] = (half)noise();
    }
    for (int i = 0; i < L * G * D; i++) {
        (&k[0][0][0])[i] = (half)noise();
        (&v[0][0][0])[i] = (half)noise();
    }
    for (int s = 0; s < S; s++) {
        for (int l = 0; l < L; l++) {
            mask[s][l] = (half)(l <= USED - S + s ? 0.0 : -INFINITY);
        }
    }
    void *tq = upload(q, sizeof q), *tk = upload(k, sizeof k), *tv = upload(v, sizeof v), *tm = upload(mask, sizeof mask), *ty = device(sizeof y);
    aclTensor *query = view(tq, ACL_FLOAT16, 4, DIMS(B, S, H, D), NULL, ACL_FORMAT_ND), *key = view(tk, ACL_FLOAT16, 4, DIMS(B, L, G, D), NULL, ACL_FORMAT_ND);
    aclTensor *value = view(tv, ACL_FLOAT16, 4, DIMS(B, L, G, D), NULL, ACL_FORMAT_ND), *out = view(ty, ACL_FLOAT16, 4, DIMS(B, S, H, D), NULL, ACL_FORMAT_ND);
    aclTensor *shift = view(tm, ACL_FLOAT16, 4, DIMS(B, H, S, L), DIMS(S * L, 0, L, 1), ACL_FORMAT_ND);
    aclTensorList *keys = aclCreateTensorList((const aclTensor *const[]){key}, 1), *values = aclCreateTensorList((const aclTensor *const[]){value}, 1);
    LAUNCH(FusedInferAttentionScoreV2, stream, query, keys, values, shift, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
           NULL, NULL, NULL, NULL, NULL, NULL, NULL, H, 0.25, 65535, 65535, "BSND", G, 0, 2, 0, 0, false, 0, 0, out, NULL);
    CHECK(aclrtSynchronizeStream(stream));
    download(y, ty, sizeof y);
    for (int s = 0; s < S; s++) {
        for (int h = 0; h < H; h++) {
            double weight[L], sum = 0;
            for (int l = 0; l < L; l++) {
                double score = 0;
                for (int d = 0; d < D; d++) {
                    score += (double)q[s][h][d] * (double)k[l][h / (H / G)][d];
                }
                weight[l] = exp(score * 0.25 + (double)mask[s][l]);
                sum += weight[l];
            }
            for (int d = 0; d < D; d++) {
                double want = 0;
                for (int l = 0; l < L; l++) {
                    want += weight[l] / sum * (double)v[l][h / (H / G)][d];
                }
                near("attention", (s * H + h) * D + d, y[s][h][d], want, 2e-3);
            }
        }
    }
    CHECK(aclDestroyTensorList(keys));
    CHECK(aclDestroyTensorList(values));
    /* The lists' tensors went with them. */
    REFUSED(aclDestroyTensor(key));
    CHECK(aclDestroyTensor(query));
    CHECK(aclDestroyTensor(out));
    CHECK(aclDestroyTensor(shift));
}

/* Views of six dimensions, stride 0, elements from an offset on, and operands of two types. */
static void views(aclrtStream stream) {
    static float x[2][3][4], y[2][3][4];
    static int32_t counts[3] = {5, -7, 11};
    for (int i = 0; i < 24; i++) {
        (&x[0][0][0])[i] = (float)noise();
    }
    void *tx = upload(x, sizeof x), *tc = upload(counts, sizeof counts), *ty = device(sizeof y);
    aclTensor *six = view(tx, ACL_FLOAT, 6, DIMS(1, 2, 1, 3, 2, 2), DIMS(24, 12, 12, 4, 2, 1), ACL_FORMAT_ND);
    aclTensor *repeated = view(tc, ACL_INT32, 6, DIMS(1, 2, 1, 3, 2, 2), DIMS(0, 0, 0, 1, 0, 0), ACL_FORMAT_ND);
    aclTensor *out = view(ty, ACL_FLOAT, 6, DIMS(1, 2, 1, 3, 2, 2), DIMS(24, 12, 12, 4, 2, 1), ACL_FORMAT_ND);
    LAUNCH(Mul, stream, six, repeated, out);
    CHECK(aclrtSynchronizeStream(stream));
    download(y, ty, sizeof y);
    for (int i = 0; i < 24; i++) {
        near("Mul", i, (&y[0][0][0])[i], (&x[0][0][0])[i] * counts[i / 4 % 3], 0);
    }
    /* Rows of a table by numbers of any shape. */
    int64_t rows[2][2] = {{2, 0}, {1, 2}};
    void *tr = upload(rows, sizeof rows);
    aclTensor *table = MATRIX(tx, ACL_FLOAT, 3, 4), *index = MATRIX(tr, ACL_INT64, 2, 2);
    aclTensor *found = view(ty, ACL_FLOAT, 3, DIMS(2, 2, 4), NULL, ACL_FORMAT_ND);
    LAUNCH(GatherV2, stream, table, 0, index, found);
    CHECK(aclrtSynchronizeStream(stream));
    download(y, ty, 64);
    for (int i = 0; i < 16; i++) {
        near("GatherV2", i, (&y[0][0][0])[i], (&x[0][0][0])[rows[i / 8][i / 4 % 2] * 4 + i % 4], 0);
    }
    /* Dimensions in another order, and every second element of some. */
    aclTensor *cube = view(tx, ACL_FLOAT, 3, DIMS(2, 3, 4), NULL, ACL_FORMAT_ND), *turned = view(ty, ACL_FLOAT, 3, DIMS(4, 2, 3), NULL, ACL_FORMAT_ND);
    aclIntArray *order = aclCreateIntArray(DIMS(2, 0, 1), 3);
    LAUNCH(Permute, stream, cube, order, turned);
    CHECK(aclrtSynchronizeStream(stream));
    download(y, ty, sizeof y);
    for (int i = 0; i < 24; i++) {
        near("Permute", i, (&y[0][0][0])[i], x[i / 3 % 2][i % 3][i / 6], 0);
    }
    aclTensor *some = view(ty, ACL_FLOAT, 3, DIMS(2, 3, 2), NULL, ACL_FORMAT_ND);
    LAUNCH(Slice, stream, cube, -1, 1, 4, 2, some);
    CHECK(aclrtSynchronizeStream(stream));
    download(y, ty, 48);
    for (int i = 0; i < 12; i++) {
        near("Slice", i, (&y[0][0][0])[i], (&x[0][0][0])[i / 2 * 4 + 1 + i % 2 * 2], 0);
    }
}

int main(int count, char **arguments) {
    const struct {
        const char *name;
        void (*run)(aclrtStream);
    } parts[] = {
        {"private_weights", private_weights}, {"quantised_weights", quantised_weights}, {"packed_int4", packed_int4},
        {"default_stream", default_stream},   {"over_reservation", over_reservation},   {"after_reset", after_reset},
        {"attention", attention},             {"views", views},
    };
    CHECK(aclInit(NULL));
    (void)aclInit(NULL); /* llama.cpp does so twice and does not look */
    CHECK(aclrtSetDevice(0));
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (count == 2 && strcmp(arguments[1], parts[i].name) == 0) {
            aclrtStream stream;
            CHECK(aclrtCreateStream(&stream));
            parts[i].run(stream);
            puts("computed");
            return 0;
        }
    }
    fprintf(stderr, "%s: no such part\n", arguments[count - 1]);
    return 2;
}
