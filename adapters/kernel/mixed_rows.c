/* Low-rank updates of rows that each have an adapter of their own (Hu et al. 2021):
 *
 *     out[row] += x[row] A[slot of row] B[slot of row]
 *
 * Sums are float32. The factors are what the compiler was told with -DKEPT: float32, or the halves of it, float16 and
 * bfloat16, which take less time to read.
 *
 * PyTorch's batched products need the adapters of a call copied together, are started twice for each module, and pass
 * the middle through memory. Here each adapter is read once, where it is kept, and the middle, a few numbers a row,
 * never leaves the cache. With a row or two for each adapter, as in generation, reading them is all that takes time.
 */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 8 /* rows of one adapter that are taken together, so that its factors are read once for them */
#define MOST_RANK 512

#define FLOAT32 0
#define FLOAT16 1
#define BFLOAT16 2
#define SIZE (KEPT == FLOAT32 ? 4 : 2) /* bytes of a number that is kept */

/* The stacked factors of one module: a is [slots][inputs][width], b [slots][width][outputs]; `rank` of width count. */
typedef struct {
    const void *a, *b;
    int64_t slot_stride, inputs, outputs, width, rank;
} Site;

/* Block i is rows[start[i]] to rows[start[i + 1]], at most BLOCK of them, all with the adapter in slot[i]. */
typedef struct {
    const int64_t *rows, *start, *slot;
    int64_t blocks;
} Plan;

/* Vectors of so many numbers; the compiler makes of them what the processor has. */
typedef float v16 __attribute__((vector_size(64)));
typedef float v8 __attribute__((vector_size(32)));
typedef float v4 __attribute__((vector_size(16)));
typedef float v1;

#define INLINE static inline __attribute__((always_inline))
#define COPY(vector, place) memcpy(&(vector), place, sizeof(vector)) /* from any address */

/* factors[at ...], a vector of them. */
#define LOAD(V, WIDEN_FLOAT16, WIDEN_BFLOAT16) \
    INLINE V load_##V(const void *factors, int64_t at) { \
        const uint16_t *half = (const uint16_t *)factors + at; \
        V whole; \
        if (KEPT == FLOAT16) return (V)WIDEN_FLOAT16(half); \
        if (KEPT == BFLOAT16) return (V)WIDEN_BFLOAT16(half); /* the upper half of a float32 */ \
        COPY(whole, (const float *)factors + at); \
        return whole; \
    }

INLINE float upper(const uint16_t *half) {
    const uint32_t bits = (uint32_t)*half << 16;
    float whole;
    COPY(whole, &bits);
    return whole;
}

#define FLOAT16_1(half) _cvtsh_ss(*(half))
#define FLOAT16_4(half) _mm_cvtph_ps(_mm_loadl_epi64((const __m128i_u *)(half)))
#define FLOAT16_8(half) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i_u *)(half)))
#define BFLOAT16_4(half) _mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i_u *)(half))), 16)
#define BFLOAT16_8(half) _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i_u *)(half))), 16)
LOAD(v1, FLOAT16_1, upper)
LOAD(v4, FLOAT16_4, BFLOAT16_4)
LOAD(v8, FLOAT16_8, BFLOAT16_8)
#ifdef __AVX512F__
#define FLOAT16_16(half) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i_u *)(half)))
#define BFLOAT16_16(half) _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i_u *)(half))), 16)
LOAD(v16, FLOAT16_16, BFLOAT16_16)
#endif

/* middle[k][from ...] = x[k] . a[:][from ...], `m` vectors of it. Inlined, so m and n, the rows, are constants. */
#define PROJECT(V) \
    INLINE void project_##V(const int n, const int m, const float *const *x, const void *a, int64_t inputs, \
                            int64_t width, float (*middle)[MOST_RANK], int64_t from) { \
        enum { STEP = sizeof(V) / sizeof(float) }; \
        const int chains = n * m < 4 ? 4 / (n * m) : 1; /* one sum alone would wait for itself */ \
        V sum[4][BLOCK][4], w[4]; \
        int64_t i = 0; \
        for (int c = 0; c < chains; c++) \
            for (int k = 0; k < n; k++) \
                for (int j = 0; j < m; j++) sum[c][k][j] = (V){0}; \
        for (; i + chains <= inputs; i += chains) \
            for (int c = 0; c < chains; c++) { \
                for (int j = 0; j < m; j++) w[j] = load_##V(a, (i + c) * width + from + j * STEP); \
                for (int k = 0; k < n; k++) \
                    for (int j = 0; j < m; j++) sum[c][k][j] += x[k][i + c] * w[j]; \
            } \
        for (; i < inputs; i++) \
            for (int j = 0; j < m; j++) { \
                w[j] = load_##V(a, i * width + from + j * STEP); \
                for (int k = 0; k < n; k++) sum[0][k][j] += x[k][i] * w[j]; \
            } \
        for (int k = 0; k < n; k++) \
            for (int j = 0; j < m; j++) { \
                for (int c = 1; c < chains; c++) sum[0][k][j] += sum[c][k][j]; \
                memcpy(middle[k] + from + j * STEP, &sum[0][k][j], sizeof(V)); \
            } \
    }

/* out[k][from ...] += middle[k] . b[:][from ...], `m` vectors of it. */
#define EXPAND(V) \
    INLINE void expand_##V(const int n, const int m, float *const *out, const void *b, int64_t outputs, \
                           int64_t rank, float (*middle)[MOST_RANK], int64_t from) { \
        enum { STEP = sizeof(V) / sizeof(float) }; \
        V sum[BLOCK][4], w[4]; \
        for (int k = 0; k < n; k++) \
            for (int j = 0; j < m; j++) COPY(sum[k][j], out[k] + from + j * STEP); \
        for (int64_t r = 0; r < rank; r++) { \
            for (int j = 0; j < m; j++) w[j] = load_##V(b, r * outputs + from + j * STEP); \
            for (int k = 0; k < n; k++) \
                for (int j = 0; j < m; j++) sum[k][j] += middle[k][r] * w[j]; \
        } \
        for (int k = 0; k < n; k++) \
            for (int j = 0; j < m; j++) memcpy(out[k] + from + j * STEP, &sum[k][j], sizeof(V)); \
    }

PROJECT(v8) PROJECT(v4) PROJECT(v1)
EXPAND(v8) EXPAND(v4) EXPAND(v1)
#ifdef __AVX512F__
PROJECT(v16)
EXPAND(v16)
#endif

INLINE void update(const int n, const Site *site, int64_t slot, const float *const *x, float *const *out) {
    const int64_t start = slot * site->slot_stride * SIZE;
    const char *a = (const char *)site->a + start, *b = (const char *)site->b + start;
    const int64_t inputs = site->inputs, outputs = site->outputs, width = site->width, rank = site->rank;
    float middle[BLOCK][MOST_RANK];
    int64_t r = 0, o = 0;
#ifdef __AVX512F__
    if (n < 8)
        for (; r + 64 <= rank; r += 64) project_v16(n, 4, x, a, inputs, width, middle, r);
    for (; r + 32 <= rank; r += 32) project_v16(n, 2, x, a, inputs, width, middle, r);
    for (; r + 16 <= rank; r += 16) project_v16(n, 1, x, a, inputs, width, middle, r);
#else
    if (n > 1)
        for (; r + 16 <= rank; r += 16) project_v8(n, 2, x, a, inputs, width, middle, r);
#endif
    for (; r + 8 <= rank; r += 8) project_v8(n, 1, x, a, inputs, width, middle, r);
    for (; r + 4 <= rank; r += 4) project_v4(n, 1, x, a, inputs, width, middle, r);
    for (; r < rank; r++) project_v1(n, 1, x, a, inputs, width, middle, r);
#ifdef __AVX512F__
    if (n == 1)
        for (; o + 64 <= outputs; o += 64) expand_v16(n, 4, out, b, outputs, rank, middle, o);
    for (; o + 32 <= outputs; o += 32) expand_v16(n, 2, out, b, outputs, rank, middle, o);
#else
    if (n == 1)
        for (; o + 32 <= outputs; o += 32) expand_v8(n, 4, out, b, outputs, rank, middle, o);
    for (; o + 16 <= outputs; o += 16) expand_v8(n, 2, out, b, outputs, rank, middle, o);
#endif
    for (; o + 8 <= outputs; o += 8) expand_v8(n, 1, out, b, outputs, rank, middle, o);
    for (; o + 4 <= outputs; o += 4) expand_v4(n, 1, out, b, outputs, rank, middle, o);
    for (; o < outputs; o++) expand_v1(n, 1, out, b, outputs, rank, middle, o);
}

/* x is [rows][inputs] and out [rows][outputs], both without gaps; rank is at most MOST_RANK. */
__attribute__((visibility("default"))) void mixed_rows(const Site *site, const Plan *plan, const float *x, float *out,
                                                       int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < plan->blocks; block++) {
        const int64_t first = plan->start[block], n = plan->start[block + 1] - first, slot = plan->slot[block];
        const float *from[BLOCK];
        float *to[BLOCK];
        int64_t k = 0;
        for (; k < n; k++) {
            from[k] = x + plan->rows[first + k] * site->inputs;
            to[k] = out + plan->rows[first + k] * site->outputs;
        }
        k = 0;
#ifdef __AVX512F__ /* which has registers enough */
        for (; k + 8 <= n; k += 8) update(8, site, slot, from + k, to + k);
#endif
        for (; k + 4 <= n; k += 4) update(4, site, slot, from + k, to + k);
        for (; k < n; k++) update(1, site, slot, from + k, to + k);
    }
}
