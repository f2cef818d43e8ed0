// What every processor level offers: the hot loops, one table of them per level. No exceptions, no C++ library, no torch.
#pragma once

#include <cstdint>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "codes are little endian");

namespace distroml {

constexpr int kInt8Block = 256;
constexpr int kInt4Block = 128;
constexpr int kSignBlock = 1024;
constexpr int kBf16Block = 256;  // of the loop; the code has none
// A sum beyond this is held at it, so that no scale or decoded value of finite gradients, and with a carry of 1 or more
// no residual, is ever infinite.
constexpr float kLimit = 0x1p127f;

// In all of them `residual` may be null: nothing is fed back. `carry` is raw gradients over normalised ones.
struct Kernels {
    // Index of the first NaN or infinity, or -1.
    int64_t (*first_nonfinite)(const float* x, int64_t n);

    void (*encode_int8)(const float* vector, float* residual, float carry, uint32_t seed, int64_t n, uint8_t* out);
    void (*encode_int4)(const float* vector, float* residual, float carry, uint32_t seed, int64_t n, uint8_t* out);
    void (*encode_sign)(const float* vector, float* residual, float carry, int64_t n, uint8_t* out);
    void (*encode_bf16)(const float* vector, float* residual, float carry, int64_t n, uint8_t* out);

    // Add `count` codes, `stride` bytes apart, to `total` in their order; a `fresh` one is taken for zero.
    void (*add_int8)(const uint8_t* codes, int64_t stride, int64_t count, int64_t n, bool fresh, float* total);
    void (*add_int4)(const uint8_t* codes, int64_t stride, int64_t count, int64_t n, bool fresh, float* total);
    void (*add_sign)(const uint8_t* codes, int64_t stride, int64_t count, int64_t n, bool fresh, float* total);
    void (*add_bf16)(const uint8_t* codes, int64_t stride, int64_t count, int64_t n, bool fresh, float* total);

    // Append a key for each element of [from, to) whose magnitude has at least the bits `threshold`; returns where it
    // stopped, which is before `to` where `room` keys might not do. `bad` becomes true at a NaN or infinity.
    int64_t (*collect)(const float* vector, const float* residual, float carry, int64_t from, int64_t to,
                       uint32_t threshold, uint64_t* keys, int64_t* found, int64_t room, bool* bad);
    // residual = (vector + carry * residual) / carry
    void (*settle)(const float* vector, float* residual, float carry, int64_t n);

    // PowerSGD over matrices of one shape [m, n] at `offsets` of a flat buffer; q is [n, r], p is [m, r], row by row;
    // `scratch` is of r * padded(max(m, n)) floats.
    void (*project)(const float* flat, float* residual, float carry, const int64_t* offsets, int64_t count, int64_t m,
                    int64_t n, int64_t r, const float* q, float* p, float* scratch);
    void (*project_back)(const float* flat, const int64_t* offsets, int64_t count, int64_t m, int64_t n, int64_t r,
                         const float* p, float* q, float* scratch);
    void (*restore)(float* flat, const int64_t* offsets, int64_t count, int64_t m, int64_t n, int64_t r, const float* p,
                    const float* q, float* scratch);
    void (*subtract)(float* residual, float carry, const int64_t* offsets, int64_t count, int64_t m, int64_t n,
                     int64_t r, const float* p, const float* q, float* scratch);
    void (*orthogonalise)(float* p, int64_t count, int64_t m, int64_t r, float* scratch);
};

constexpr int kLanes = 16;
static constexpr int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

extern const Kernels kGeneric;
extern const Kernels kAvx2;
extern const Kernels kAvx512;

// lowbias32 of Chris Wellons' hash prospector: a permutation of 32 bits whose outputs pass for independent.
static inline uint32_t mix32(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352dU;
    x ^= x >> 15;
    x *= 0x846ca68bU;
    x ^= x >> 16;
    return x;
}

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline uint32_t magnitude_bits(float x) { return bits_of(x) & 0x7fffffffU; }

static inline float saturated(float x) {
    x = x > kLimit ? kLimit : x;
    return x < -kLimit ? -kLimit : x;
}

constexpr uint32_t kInfinityBits = 0x7f800000U;

}  // namespace distroml
