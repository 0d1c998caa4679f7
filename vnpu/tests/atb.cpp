// What torch_npu's ATB plugin does, as a program: operations of ATB's C++ interface on the virtual NPU, compared with arithmetic
// on the host. The classes are declared here as far as the plugin uses them; the C++ compiler lays them out.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

extern "C" {
int aclInit(const char *);
int aclrtSetDevice(int);
int aclrtCreateStream(void **);
int aclrtMalloc(void **, size_t, int);
int aclrtMemcpy(void *, size_t, const void *, size_t, int);
int aclrtSynchronizeStream(void *);
const char *aclGetRecentErrMsg();
}

namespace atb {
struct Dims {
    int64_t sizes[8];
    uint64_t count;
};
struct TensorDesc {
    int32_t dtype;
    int32_t format;
    Dims shape;
};
struct Tensor {
    TensorDesc desc;
    void *device;
    void *host;
    uint64_t bytes;
};
template <class T> struct Vector {
    size_t capacity = 0, size = 0;
    T storage[65];
    T *heap = nullptr;
};
struct VariantPack {
    Vector<Tensor> inputs, outputs;
};
class Context {
  public:
    virtual ~Context() = default;
    virtual int32_t SetExecuteStream(void *) = 0;
    virtual void *GetExecuteStream() const = 0;
    virtual int32_t SetAsyncTilingCopyStatus(bool) = 0;
    virtual bool GetAsyncTilingCopyStatus() const = 0;
};
class Operation {
  public:
    virtual ~Operation() = default;
    virtual std::string GetName() const = 0;
    virtual int32_t InferShape(const Vector<TensorDesc> &, Vector<TensorDesc> &) const = 0;
    virtual uint32_t GetInputNum() const = 0;
    virtual uint32_t GetOutputNum() const = 0;
    virtual int32_t Setup(const VariantPack &, uint64_t &, Context *) = 0;
    virtual int32_t Execute(const VariantPack &, uint8_t *, uint64_t, Context *) = 0;
};
struct Utils {
    static uint64_t GetTensorSize(const Tensor &);
};
template <class P> int32_t CreateOperation(const P &, Operation **);
int32_t DestroyOperation(Operation *);
int32_t CreateContext(Context **);
int32_t DestroyContext(Context *);

namespace infer {
struct LinearParam {
    bool transposeA = false, transposeB = true, hasBias = true;
    int32_t outDataType = -1;
    bool enAccum = false;
    uint8_t reserved[23] = {};
};
struct ElewiseParam {
    struct Quant {
        float scale = 1;
        bool asymmetric = false;
        int32_t offset = 0;
        uint8_t reserved[20] = {};
    };
    struct Muls {
        float factor = 0;
        uint8_t reserved[12] = {};
    };
    int32_t kind = 0;
    Quant quant;
    Muls muls;
    int32_t outType = -1;
    uint8_t reserved[8] = {};
};
struct RmsNormParam {
    struct Norm {
        int32_t quant = 0;
        float epsilon = 1e-5f;
        double layerNormEpsilon = 1e-5;
        bool rstd = false;
        int32_t precision = 0, model = 0, dynamicQuant = 0;
        uint8_t reserved[32] = {};
    };
    struct Residual {
        int32_t quant = 0;
        float epsilon = 1e-5f;
        bool hasBias = false;
        uint8_t reserved[23] = {};
    };
    int32_t layer = 0;
    Norm norm;
    Residual before, after;
    uint8_t reserved[8] = {};
};
struct GroupTopkParam {
    int32_t groups = 1, k = 1;
    uint16_t flag = 0, n = 1;
    uint8_t reserved[12] = {};
};
struct ReshapeAndCacheParam {
    int32_t compression = 0, caches = 0;
    uint8_t reserved[16] = {};
};
struct RopeParam {
    int32_t coefficient = 4, tableFormat = 0;
    uint8_t reserved[8] = {};
};
struct SelfAttentionParam {
    int32_t quant = 0, outType = -1, heads = 0, kvHeads = 0;
    float queryScale = 1, scale = 1;
    bool batchStatus = false;
    uint32_t triangle = 0;
    int32_t calculation = 0, kernel = 0, clamp = 0;
    float clampMin = 0, clampMax = 0;
    int32_t mask = 0, caches = 0, scaleKind = 0, layout = 0;
    uint32_t valueHead = 0;
    int8_t cacheKind = 0;
    uint32_t window = 0;
    uint8_t reserved[64] = {};
};
struct PagedAttentionParam {
    int32_t heads = 0;
    float scale = 1;
    int32_t kvHeads = 0, mask = 0;
    bool batchStatus = false;
    int32_t quant = 0, outType = -1;
    bool quantOffset = false;
    int32_t compression = 0, calculation = 0, scaleKind = 0, layout = 0;
    uint32_t valueHead = 0;
    uint8_t reserved[68] = {};
};
} // namespace infer
} // namespace atb

using Floats = std::vector<float>;
enum { F32 = 0, I32 = 3, TO_DEVICE = 1, TO_HOST = 2 };
static void *stream;
static atb::Context *context;

static void check(bool right, const char *what) {
    if (!right) {
        printf("%s: wrong; the last error: %s\n", what, aclGetRecentErrMsg());
        exit(1);
    }
}

static atb::Tensor shaped(int dtype, std::vector<int64_t> dims) {
    atb::Tensor tensor = {};
    tensor.desc.dtype = dtype;
    tensor.desc.format = 2;
    for (int64_t size : dims) tensor.desc.shape.sizes[tensor.desc.shape.count++] = size;
    tensor.bytes = atb::Utils::GetTensorSize(tensor);
    return tensor;
}

template <class T> static atb::Tensor put(int dtype, std::vector<int64_t> dims, const std::vector<T> &values) {
    atb::Tensor tensor = shaped(dtype, dims);
    check(tensor.bytes == values.size() * 4, "GetTensorSize");
    check(aclrtMalloc(&tensor.device, tensor.bytes, 0) == 0, "aclrtMalloc");
    check(aclrtMemcpy(tensor.device, tensor.bytes, values.data(), tensor.bytes, TO_DEVICE) == 0, "aclrtMemcpy");
    return tensor;
}

static atb::Tensor room(std::vector<int64_t> dims) {
    int64_t count = 1;
    for (int64_t size : dims) count *= size;
    return put<float>(F32, dims, Floats(count, NAN));
}

static atb::Tensor hosted(std::vector<int32_t> &values) {
    atb::Tensor tensor = shaped(I32, {(int64_t)values.size()});
    tensor.host = values.data();
    return tensor;
}

static void holds(const atb::Tensor &tensor, const Floats &want, const char *what) {
    Floats got(want.size());
    check(aclrtSynchronizeStream(stream) == 0, what);
    check(aclrtMemcpy(got.data(), got.size() * 4, tensor.device, tensor.bytes, TO_HOST) == 0, what);
    for (size_t i = 0; i < want.size(); i++) check(std::fabs(got[i] - want[i]) < 1e-5f, what);
}

static atb::VariantPack pack(std::vector<atb::Tensor> inputs, std::vector<atb::Tensor> outputs) {
    atb::VariantPack pack;
    for (auto &tensor : inputs) pack.inputs.storage[pack.inputs.size++] = tensor;
    for (auto &tensor : outputs) pack.outputs.storage[pack.outputs.size++] = tensor;
    return pack;
}

template <class P>
static void run(const P &param, const char *name, std::vector<atb::Tensor> inputs, std::vector<atb::Tensor> outputs) {
    atb::Operation *operation = nullptr;
    check(atb::CreateOperation(param, &operation) == 0 && operation, name);
    check(operation->GetName() == name, name);
    check(operation->GetInputNum() == inputs.size() && operation->GetOutputNum() == outputs.size(), name);
    atb::VariantPack both = pack(inputs, outputs);
    uint64_t workspace = 1;
    check(operation->Setup(both, workspace, context) == 0 && workspace == 0, name);
    check(operation->Execute(both, nullptr, 0, context) == 0, name);
    atb::VariantPack few = pack({}, outputs);
    check(operation->Setup(few, workspace, context) != 0, "a setup without inputs");
    check(strstr(aclGetRecentErrMsg(), name) != nullptr, "its message");
    check(atb::DestroyOperation(operation) == 0, name);
}

template <class P> static void refused(const P &param, const char *part) {
    atb::Operation *operation = (atb::Operation *)&stream;
    check(atb::CreateOperation(param, &operation) != 0 && operation == nullptr, part);
    check(strstr(aclGetRecentErrMsg(), part) != nullptr, part);
}

static void products() {
    atb::Tensor x = put<float>(F32, {2, 2}, {1, 2, 3, 4}), w = put<float>(F32, {2, 2}, {5, 6, 7, 8});
    atb::infer::LinearParam linear;
    atb::Tensor bias = put<float>(F32, {2}, {10, 20}), out = room({2, 2});
    run(linear, "LinearOperation", {x, w, bias}, {out});
    holds(out, {27, 43, 49, 73}, "x times the transposed weight and a bias");
    linear.hasBias = false;
    linear.transposeB = false;
    run(linear, "LinearOperation", {x, w}, {out});
    holds(out, {19, 22, 43, 50}, "x times the weight");
    linear.transposeA = linear.enAccum = true;
    run(linear, "LinearOperation", {x, w, out}, {out});
    holds(out, {19 + 26, 22 + 30, 43 + 38, 50 + 44}, "added to what was there");
    linear.outDataType = 1;
    refused(linear, "outDataType");
}

static void elements() {
    atb::Tensor x = put<float>(F32, {3}, {1, -2, 3}), y = put<float>(F32, {3}, {4, 5, 6}), out = room({3});
    atb::infer::ElewiseParam elewise;
    elewise.kind = 2;
    elewise.muls.factor = 0.5f;
    run(elewise, "ElewiseOperation", {x}, {out});
    holds(out, {0.5f, -1, 1.5f}, "times a half");
    elewise.kind = 8;
    run(elewise, "ElewiseOperation", {x, y}, {out});
    holds(out, {5, 3, 9}, "added");
    elewise.kind = 15;
    run(elewise, "ElewiseOperation", {x, y}, {out});
    holds(out, {-3, -7, -3}, "subtracted");
    elewise.kind = 6;
    refused(elewise, "elewiseType 6");
    atb::infer::RmsNormParam norm;
    norm.layer = 1;
    norm.norm.epsilon = 0;
    atb::Tensor gamma = put<float>(F32, {2}, {1, 10}), row = put<float>(F32, {1, 2}, {3, 1});
    atb::Tensor result = room({1, 2}), sum = room({1, 2});
    float root = std::sqrt(5.0f);
    run(norm, "RmsNormOperation", {row, gamma}, {result});
    holds(result, {3 / root, 10 / root}, "normalised");
    norm.layer = 2;
    norm.before.epsilon = 0;
    run(norm, "RmsNormOperation", {row, row, gamma}, {result, sum});
    holds(sum, {6, 2}, "the sum");
    holds(result, {3 / root, 10 / root}, "the sum normalised");
    norm.layer = 3;
    refused(norm, "layerType 3");
}

static void positions() {
    atb::Tensor cos = put<float>(F32, {1, 4}, {0, 1, 0, 1}), sin = put<float>(F32, {1, 4}, {1, 0, 1, 0});
    atb::Tensor query = put<float>(F32, {1, 8}, {1, 2, 3, 4, 5, 6, 7, 8}), key = put<float>(F32, {1, 4}, {1, 2, 3, 4});
    atb::Tensor length = put<int32_t>(I32, {1}, {1});
    atb::infer::RopeParam rope;
    rope.coefficient = 2;
    run(rope, "RopeOperation", {query, key, cos, sin, length}, {query, key});
    holds(query, {-3, 2, 1, 4, -7, 6, 5, 8}, "halves of queries");
    holds(key, {-3, 2, 1, 4}, "halves of keys");
    atb::Tensor cos2 = put<float>(F32, {1, 4}, {0, 0, 1, 1}), sin2 = put<float>(F32, {1, 4}, {1, 1, 0, 0});
    rope.coefficient = 4;
    run(rope, "RopeOperation", {query, key, cos2, sin2, length}, {query, key});
    holds(key, {-2, -3, 1, 4}, "neighbours of keys");
    rope.tableFormat = 1;
    refused(rope, "cosFormat");
}

// Masks are added to the scores of each prompt: one for all heads, or one for each.
static void masks() {
    const float none = -INFINITY, more = std::log(3.0f);
    atb::Tensor flat = room({3, 2}), queries = put<float>(F32, {3, 2}, {1, 1, 1, 1, 1, 1});
    atb::Tensor keys = put<float>(F32, {3, 1, 2}, Floats(6, 0)), values = put<float>(F32, {3, 1, 2}, {1, 2, 3, 4, 5, 6});
    std::vector<int32_t> prompts = {1, 2}, longer = {1, 3};
    atb::infer::SelfAttentionParam self;
    self.calculation = 3;
    self.heads = 1;
    self.mask = 1;
    atb::Tensor causal = put<float>(F32, {2, 2}, {0, none, more, 0});
    run(self, "SelfAttentionOperation", {queries, keys, values, causal, hosted(prompts)}, {flat});
    holds(flat, {1, 2, 3, 4, 3.5f, 4.5f}, "a mask for all");
    atb::Tensor each = put<float>(F32, {2, 2, 2}, {0, none, none, none, 0, none, none, 0});
    run(self, "SelfAttentionOperation", {queries, keys, values, each, hosted(prompts)}, {flat});
    holds(flat, {1, 2, 3, 4, 5, 6}, "a mask for each prompt");
    // Two heads of one.
    self.heads = 2;
    self.mask = 2;
    atb::Tensor heads = put<float>(F32, {2, 2, 2}, {0, none, 0, 0, 0, none, none, 0});
    run(self, "SelfAttentionOperation", {queries, keys, values, heads, hosted(prompts)}, {flat});
    holds(flat, {1, 2, 3, 4, 4, 6}, "a mask for each head");
    // A prompt that is longer than its mask.
    atb::Operation *operation = nullptr;
    check(atb::CreateOperation(self, &operation) == 0, "CreateOperation");
    atb::VariantPack both = pack({queries, keys, values, heads, hosted(longer)}, {flat});
    uint64_t workspace = 0;
    check(operation->Setup(both, workspace, context) != 0 && strstr(aclGetRecentErrMsg(), "attnMask"), "a short mask");
    check(atb::DestroyOperation(operation) == 0, "DestroyOperation");
}

static void attention() {
    // Two blocks of two slots, one head of two; the last token's slot is in the second block.
    atb::Tensor keys = put<float>(F32, {3, 1, 2}, {0, 0, 0, 0, 0, 0}), values = put<float>(F32, {3, 1, 2}, {1, 2, 3, 4, 5, 6});
    atb::Tensor key_cache = put<float>(F32, {2, 2, 1, 2}, Floats(8, 0)), value_cache = put<float>(F32, {2, 2, 1, 2}, Floats(8, 9));
    atb::Tensor slots = put<int32_t>(I32, {3}, {2, 3, 0});
    atb::infer::ReshapeAndCacheParam reshape;
    run(reshape, "ReshapeAndCacheOperation", {keys, values, key_cache, value_cache, slots}, {key_cache, value_cache});
    holds(value_cache, {5, 6, 9, 9, 1, 2, 3, 4}, "values in their slots");
    reshape.compression = 1;
    refused(reshape, "compressType");

    // Keys are all alike, so a token gets the mean of the values it sees.
    atb::Tensor query = put<float>(F32, {1, 1, 2}, {1, 1}), table = put<int32_t>(I32, {1, 2}, {1, 0}), out = room({1, 1, 2});
    std::vector<int32_t> lengths = {3};
    atb::infer::PagedAttentionParam paged;
    paged.heads = paged.kvHeads = 1;
    run(paged, "PagedAttentionOperation", {query, key_cache, value_cache, table, hosted(lengths)}, {out});
    holds(out, {3, 4}, "the mean of three values");
    paged.mask = 1;
    refused(paged, "maskType");

    // Two prompts, of one token and of two.
    std::vector<int32_t> prompts = {1, 2};
    atb::Tensor queries = put<float>(F32, {3, 2}, {1, 1, 1, 1, 1, 1}), flat = room({3, 2});
    atb::infer::SelfAttentionParam self;
    self.calculation = 3;
    self.heads = 1;
    run(self, "SelfAttentionOperation", {queries, keys, values, hosted(prompts)}, {flat});
    holds(flat, {1, 2, 4, 5, 4, 5}, "means within each prompt");
    masks();
    self.mask = 3;
    refused(self, "maskType");
    refused(atb::infer::GroupTopkParam(), "GroupTopkOperation");
}

int main() {
    check(aclInit(nullptr) == 0 && aclrtSetDevice(0) == 0 && aclrtCreateStream(&stream) == 0, "the device");
    check(atb::CreateContext(&context) == 0 && context, "CreateContext");
    check(context->SetExecuteStream(stream) == 0 && context->GetExecuteStream() == stream, "the stream");
    check(!context->GetAsyncTilingCopyStatus(), "no copies at first");
    check(context->SetAsyncTilingCopyStatus(true) == 0 && context->GetAsyncTilingCopyStatus(), "copies");
    products();
    elements();
    positions();
    attention();
    check(atb::DestroyContext(context) == 0, "DestroyContext");
    printf("computed\n");
}
