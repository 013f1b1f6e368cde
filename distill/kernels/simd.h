// Vectors of numbers in registers, through the compiler's vector types: the same code on AVX-512, AVX2, SSE and NEON.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int REGISTER = 64;
#elif defined(__AVX__)
constexpr int REGISTER = 32;
#else
constexpr int REGISTER = 16;
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))

template <class T, int N>
struct VecOf {
    typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using Vec = typename VecOf<T, N>::type;

template <class T>
using Int = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <class V, class T>
inline V load(const T* from) {
    V v;
    std::memcpy(&v, from, sizeof(V));
    return v;
}
template <class V, class T>
inline void store(T* to, const V& v) {
    std::memcpy(to, &v, sizeof(V));
}
template <class V, class T>
inline V same(T x) {
    return V{} + x;
}

// The P numbers at `from`, again and again: a vector of L.
template <class T, int P, int L>
inline Vec<T, L> repeat(const T* from) {
    if constexpr (P == L) return load<Vec<T, L>>(from);
    else if constexpr (P == 1) return same<Vec<T, L>>(*from);
    else if constexpr (P * sizeof(T) == 8) {
        // As an integer: two floats of which the second is 0 would be a denormal double, which is flushed to 0.
        int64_t bits;
        std::memcpy(&bits, from, 8);
        return (Vec<T, L>)same<Vec<int64_t, L * sizeof(T) / 8>>(bits);
    } else {
#if defined(__AVX__)
        return (Vec<T, L>)_mm256_broadcast_ps((const __m128*)from);
#else
        Vec<T, L> v;
        for (int q = 0; q < L; q++) v[q] = from[q % P];
        return v;
#endif
    }
}

// Lane q of the result is lane INDEX[q] of v.
template <int... INDEX, class V>
inline V shuffled(V v) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(v, v, INDEX...);
#else
    using I = Vec<Int<std::decay_t<decltype(v[0])>>, sizeof...(INDEX)>;
    return __builtin_shuffle(v, I{INDEX...});
#endif
}

template <class V>
inline V larger(V a, V b) {
    return a > b ? a : b;
}

// Lowest power whose exp differs from 0, terms of its series, and bits of the number.
template <class T>
struct Limits;
template <>
struct Limits<float> {
    static constexpr float lowest = -87.0f;
    static constexpr int terms = 7, log_terms = 5, mantissa = 23, bias = 127;
};
template <>
struct Limits<double> {
    static constexpr double lowest = -708.0;
    static constexpr int terms = 13, log_terms = 11, mantissa = 52, bias = 1023;
};

// e to the x for x <= 88: 2^k times the Taylor series of the rest, which is below log(2) / 2; 0 far below.
template <class T, int N>
inline Vec<T, N> exp_of(Vec<T, N> x) {
    using V = Vec<T, N>;
    using I = Vec<Int<T>, N>;
    using Lim = Limits<T>;
    const T shifter = T(3) * T(Int<T>(1) << (Lim::mantissa - 1));  // adding it rounds to an integer
    V clamped = larger<V>(x, same<V>(Lim::lowest));
    V k = clamped * T(1.44269504088896340736) + shifter;
    I exponent = (I)k - (I)same<V>(shifter);
    k -= shifter;
    const T high = sizeof(T) == 4 ? T(0.693145751953125) : T(0.693147180369123816490);
    const T low = sizeof(T) == 4 ? T(1.42860682030941723212e-6) : T(1.90821492927058770002e-10);
    V r = (clamped - k * high) - k * low;
    V sum = same<V>(T(1));
    for (int n = Lim::terms; n >= 1; n--) sum = sum * r * (T(1) / T(n)) + T(1);
    V scale = (V)((exponent + Int<T>(Lim::bias)) << Lim::mantissa);
    return x > same<V>(Lim::lowest) ? sum * scale : V{};
}

// log of normal positive numbers: the exponent, and 2 artanh((m - 1) / (m + 1)) of the mantissa m near 1.
template <class T, int N>
inline Vec<T, N> log_of(Vec<T, N> x) {
    using V = Vec<T, N>;
    using I = Vec<Int<T>, N>;
    using Lim = Limits<T>;
    const T sqrt_half = T(0.70710678118654752440);
    I bits = (I)x - (I)same<V>(sqrt_half);
    I exponent = bits >> Lim::mantissa;
    V m = (V)((I)x - (exponent << Lim::mantissa));
    V s = (m - T(1)) / (m + T(1));
    V square = s * s, sum = same<V>(T(1) / T(2 * Lim::log_terms + 1));
    for (int n = Lim::log_terms - 1; n >= 0; n--) sum = sum * square + T(1) / T(2 * n + 1);
    V k = __builtin_convertvector(exponent, V);
    return k * T(0.69314718055994530942) + T(2) * s * sum;
}

// Numbers too small for a normal form count as 0 while this lives: they would slow every operation down a lot.
struct FlushTiny {
#if defined(__x86_64__)
    unsigned before = _mm_getcsr();
    FlushTiny() { _mm_setcsr(before | 0x8040); }
    ~FlushTiny() { _mm_setcsr(before); }
#elif defined(__aarch64__)
    uint64_t before;
    FlushTiny() {
        asm volatile("mrs %0, fpcr" : "=r"(before));
        asm volatile("msr fpcr, %0" ::"r"(before | (uint64_t(1) << 24)));
    }
    ~FlushTiny() { asm volatile("msr fpcr, %0" ::"r"(before)); }
#endif
};
