// The C interface that Python calls, the choice of a processor level, and Top-K, which is more than a loop.
//
// Encoders return -1, or the index of the first NaN or infinity of `vector`, and then nothing was changed; where it is
// known to be finite, nobody looks.
#include <algorithm>
#include <cstdlib>
#include <functional>
#include <memory>

#include "kernels.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace distroml {
namespace {

constexpr int64_t kDone = -1, kNoMemory = -2;
constexpr int64_t kChunk = 65536;

const Kernels* at_most(int level) {
#ifdef DISTROML_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2");
    if (level >= 2 && avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return &kAvx512;
    if (level >= 1 && avx2) return &kAvx2;
#endif
    (void)level;
    return &kGeneric;
}

const Kernels* kernels = at_most(2);

struct Free {
    void operator()(void* block) const { std::free(block); }
};

template <typename T>
std::unique_ptr<T[], Free> allocated(int64_t count) {
    return std::unique_ptr<T[], Free>(static_cast<T*>(std::malloc(static_cast<size_t>(count) * sizeof(T))));
}

int64_t index_of(uint64_t key) { return static_cast<int64_t>(0xffffffffU - static_cast<uint32_t>(key)); }

// Keeps the k greatest of `found` keys, in the order they came; returns the least of those kept.
uint64_t keep_greatest(uint64_t* keys, int64_t* found, int64_t k, uint64_t* scratch) {
    std::copy(keys, keys + *found, scratch);
    std::nth_element(scratch, scratch + (k - 1), scratch + *found, std::greater<uint64_t>());
    const uint64_t least = scratch[k - 1];
    int64_t kept = 0;
    for (int64_t i = 0; i < *found; ++i) {
        keys[kept] = keys[i];
        kept += keys[i] >= least;
    }
    *found = kept;
    return least;
}

float fed(const float* vector, const float* residual, float carry, int64_t i) {
    return saturated(residual ? vector[i] + carry * residual[i] : vector[i]);
}

// A magnitude that a little more than k elements reach, as Deep Gradient Compression (Lin et al., 2018) estimates it:
// from a sample, one element of each of equal stretches. It only saves work: what is kept does not depend on it.
uint32_t estimated(const float* vector, const float* residual, float carry, uint32_t seed, int64_t n, int64_t k,
                   uint32_t* sample, int64_t size) {
    for (int64_t s = 0; s < size; ++s) {
        const int64_t from = s * n / size, width = (s + 1) * n / size - from;
        const int64_t i = from + mix32(static_cast<uint32_t>(s) ^ seed) % width;
        sample[s] = magnitude_bits(fed(vector, residual, carry, i));
    }
    const double expected = static_cast<double>(k) * static_cast<double>(size) / static_cast<double>(n);
    const int64_t rank = static_cast<int64_t>(expected + 4 * __builtin_sqrt(expected) + 4);
    if (rank >= size) return 0;
    std::nth_element(sample, sample + rank, sample + size, std::greater<uint32_t>());
    return sample[rank];
}

// Keys of the k greatest magnitudes, by index; of equal ones, those that come first. False: not finite.
bool select(const float* vector, const float* residual, float carry, uint32_t threshold, int64_t n, int64_t k,
            uint64_t* keys, int64_t* found, int64_t room, uint64_t* scratch) {
    bool bad = false;
    *found = 0;
    for (int64_t at = 0; at < n;) {
        at = kernels->collect(vector, residual, carry, at, n, threshold, keys, found, room, &bad);
        if (bad) return false;
        if (at < n) {
            const uint32_t least = static_cast<uint32_t>(keep_greatest(keys, found, k, scratch) >> 32);
            threshold = least > threshold ? least : threshold;
        }
    }
    if (*found > k) keep_greatest(keys, found, k, scratch);
    return true;
}

// Scratch for matrices of PowerSGD, or null.
std::unique_ptr<float[], Free> columns(int64_t m, int64_t n, int64_t r) {
    return allocated<float>(r * padded(m > n ? m : n));
}

}  // namespace
}  // namespace distroml

using namespace distroml;

// Uses kernels of at most this level (0: any processor, 1: AVX2, 2: AVX-512); returns the level that is used. For tests.
EXPORT int32_t distroml_level(int32_t level) {
    kernels = at_most(level);
#ifdef DISTROML_X86
    if (kernels == &kAvx512) return 2;
    if (kernels == &kAvx2) return 1;
#endif
    return 0;
}

// What the library was built from; see build.py.
EXPORT const char* distroml_sources() { return DISTROML_SOURCES; }

EXPORT int64_t distroml_first_nonfinite(const float* x, int64_t n) { return kernels->first_nonfinite(x, n); }

EXPORT int64_t distroml_encode_int8(const float* vector, float* residual, float carry, uint32_t seed, int64_t n,
                                    bool finite, uint8_t* out) {
    const int64_t bad = finite ? kDone : kernels->first_nonfinite(vector, n);
    if (bad < 0) kernels->encode_int8(vector, residual, carry, seed, n, out);
    return bad;
}

EXPORT int64_t distroml_encode_int4(const float* vector, float* residual, float carry, uint32_t seed, int64_t n,
                                    bool finite, uint8_t* out) {
    const int64_t bad = finite ? kDone : kernels->first_nonfinite(vector, n);
    if (bad < 0) kernels->encode_int4(vector, residual, carry, seed, n, out);
    return bad;
}

EXPORT int64_t distroml_encode_sign(const float* vector, float* residual, float carry, uint32_t, int64_t n,
                                    bool finite, uint8_t* out) {
    const int64_t bad = finite ? kDone : kernels->first_nonfinite(vector, n);
    if (bad < 0) kernels->encode_sign(vector, residual, carry, n, out);
    return bad;
}

EXPORT int64_t distroml_encode_bf16(const float* vector, float* residual, float carry, uint32_t, int64_t n,
                                    bool finite, uint8_t* out) {
    const int64_t bad = finite ? kDone : kernels->first_nonfinite(vector, n);
    if (bad < 0) kernels->encode_bf16(vector, residual, carry, n, out);
    return bad;
}

EXPORT void distroml_add_int8(const uint8_t* codes, int64_t stride, int64_t count, int64_t n, bool fresh,
                              float* total) {
    kernels->add_int8(codes, stride, count, n, fresh, total);
}

EXPORT void distroml_add_int4(const uint8_t* codes, int64_t stride, int64_t count, int64_t n, bool fresh,
                              float* total) {
    kernels->add_int4(codes, stride, count, n, fresh, total);
}

EXPORT void distroml_add_sign(const uint8_t* codes, int64_t stride, int64_t count, int64_t n, bool fresh,
                              float* total) {
    kernels->add_sign(codes, stride, count, n, fresh, total);
}

EXPORT void distroml_add_bf16(const uint8_t* codes, int64_t stride, int64_t count, int64_t n, bool fresh,
                              float* total) {
    kernels->add_bf16(codes, stride, count, n, fresh, total);
}

// The k greatest magnitudes of v = vector + carry * residual: `out` gets counts per 65,536 elements and offsets,
// `indices` and `values` what they are. `residual` stays as it is until distroml_topk_settle. Needs n < 2^32.
EXPORT int64_t distroml_topk_select(const float* vector, const float* residual, float carry, uint32_t seed, int64_t n,
                                    int64_t k, uint8_t* out, uint32_t* indices, float* values) {
    const int64_t wanted = 64 * n / k, size = std::min(n, std::max<int64_t>(wanted, 1024)), room = 2 * k + 4096;
    const bool sampled = 2 * size <= n;
    auto keys = allocated<uint64_t>(room), scratch = allocated<uint64_t>(room);
    auto sample = allocated<uint32_t>(sampled ? size : 1);
    if (!keys || !scratch || !sample) return kNoMemory;
    const uint32_t threshold =
        sampled ? estimated(vector, residual, carry, seed, n, k, sample.get(), size) : 0;
    int64_t found = 0;
    bool finite = select(vector, residual, carry, threshold, n, k, keys.get(), &found, room, scratch.get());
    // The sample promised too much: once more without it.
    if (finite && found < k) finite = select(vector, residual, carry, 0, n, k, keys.get(), &found, room, scratch.get());
    if (!finite) return kernels->first_nonfinite(vector, n);
    const int64_t chunks = (n + kChunk - 1) / kChunk;
    uint8_t* offsets = out + 4 * chunks;
    std::fill(out, offsets, static_cast<uint8_t>(0));
    for (int64_t j = 0; j < k; ++j) {
        const int64_t i = index_of(keys[j]);
        const uint16_t offset = static_cast<uint16_t>(i % kChunk);
        uint32_t count;
        __builtin_memcpy(&count, out + 4 * (i / kChunk), sizeof count);
        ++count;
        __builtin_memcpy(out + 4 * (i / kChunk), &count, sizeof count);
        __builtin_memcpy(offsets + 2 * j, &offset, sizeof offset);
        indices[j] = static_cast<uint32_t>(i);
        values[j] = fed(vector, residual, carry, i);
    }
    return kDone;
}

// residual = (v - decoded) / carry, where `decoded` is what receivers see of `values` and nothing elsewhere.
EXPORT void distroml_topk_settle(const float* vector, float* residual, float carry, int64_t n, int64_t k,
                                 const uint32_t* indices, const float* values, const float* decoded) {
    kernels->settle(vector, residual, carry, n);
    for (int64_t j = 0; j < k; ++j) residual[indices[j]] = (values[j] - decoded[j]) / carry;
}

// Adds `values` where the code's counts and offsets say; false, and nothing is added, where those do not fit n and k.
EXPORT bool distroml_topk_add(const uint8_t* code, const float* values, int64_t n, int64_t k, float* total) {
    const int64_t chunks = (n + kChunk - 1) / kChunk;
    const uint8_t* offsets = code + 4 * chunks;
    for (int pass = 0; pass < 2; ++pass) {
        int64_t j = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            uint32_t count;
            __builtin_memcpy(&count, code + 4 * chunk, sizeof count);
            if (count > k - j) return false;
            for (const int64_t end = j + count; j < end; ++j) {
                uint16_t offset;
                __builtin_memcpy(&offset, offsets + 2 * j, sizeof offset);
                const int64_t i = chunk * kChunk + offset;
                if (i >= n) return false;
                if (pass) total[i] += values[j];
            }
        }
        if (j != k) return false;
    }
    return true;
}

EXPORT int64_t distroml_lowrank_project(const float* flat, float* residual, float carry, const int64_t* offsets,
                                        int64_t count, int64_t m, int64_t n, int64_t r, const float* q, float* p) {
    auto scratch = columns(m, n, r);
    if (!scratch) return kNoMemory;
    kernels->project(flat, residual, carry, offsets, count, m, n, r, q, p, scratch.get());
    return kDone;
}

EXPORT int64_t distroml_lowrank_project_back(const float* flat, const int64_t* offsets, int64_t count, int64_t m,
                                             int64_t n, int64_t r, const float* p, float* q) {
    auto scratch = columns(m, n, r);
    if (!scratch) return kNoMemory;
    kernels->project_back(flat, offsets, count, m, n, r, p, q, scratch.get());
    return kDone;
}

EXPORT int64_t distroml_lowrank_restore(float* flat, const int64_t* offsets, int64_t count, int64_t m, int64_t n,
                                        int64_t r, const float* p, const float* q) {
    auto scratch = columns(m, n, r);
    if (!scratch) return kNoMemory;
    kernels->restore(flat, offsets, count, m, n, r, p, q, scratch.get());
    return kDone;
}

EXPORT int64_t distroml_lowrank_subtract(float* residual, float carry, const int64_t* offsets, int64_t count, int64_t m,
                                         int64_t n, int64_t r, const float* p, const float* q) {
    auto scratch = columns(m, n, r);
    if (!scratch) return kNoMemory;
    kernels->subtract(residual, carry, offsets, count, m, n, r, p, q, scratch.get());
    return kDone;
}

EXPORT int64_t distroml_orthogonalise(float* p, int64_t count, int64_t m, int64_t r) {
    auto scratch = columns(m, 1, r);
    if (!scratch) return kNoMemory;
    kernels->orthogonalise(p, count, m, r, scratch.get());
    return kDone;
}
