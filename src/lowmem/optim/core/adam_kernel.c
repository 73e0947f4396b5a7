/* One step over many fp32 tensors of Adam, whose second moment is shared by blocks (Adam-mini) or not shared (AdamW), or of
 * Lion, which has none (v is NULL).
 *
 * A segment is a strided array (outer, blocks, run): element (o, b, i) lies at o * stride + b * run + i. Block b owns all
 * elements with that b and one number v[b]; with run = outer = 1 that is AdamW. Threads call step() at once on the same
 * list and share a counter, so that each takes the next chunk.
 *
 * Same bits everywhere: a block is summed by one thread, element i of a run into lane i % LANES, in double (the square of
 * an fp32 number is exact there and cannot overflow), the lanes in a fixed order at the end; products and sums are rounded
 * one by one (-ffp-contract=off). Variants differ only in which memory they ask for when, so all give the same bits, and
 * the one that is fastest on a processor is found by timing (kernel_build.py).
 */
#include <float.h>
#include <math.h>
#include <stdint.h>

typedef struct {
    float decay_factor, step_size, beta1, beta2, eps, inv_sqrt_bias_correction2;
    float one_minus_beta1, one_minus_beta2;  /* 1 - beta, rounded once: in fp32 1 - 0.999f is off by 1e-5 */
    float largest;  /* sum of squares in a block: v must not become infinite for good; infinity: as it comes */
} Scalars;

typedef struct {
    float *p, *m, *v;
    const float *g;
    const Scalars *h;
    int64_t outer, stride, blocks, run;
} Segment;

enum {
    CHUNK = 1 << 18,  /* elements per chunk */
    LANES = 16,       /* sums side by side */
    STRIP = 128,      /* elements of one array before the next array's turn */
    COLUMNS = 512,    /* columns held at once of a strided segment */
    AHEAD = 512,      /* elements from use to request, where every line is asked for */
};

/* Variants. A core has too few reads under way with the three or four arrays of one block, and hardware prefetching
 * starts anew at each 4 kB page; processors differ in which of these helps. */
enum { PLAIN, TWO_AT_ONCE, PAGE_HEADS, EVERY_LINE };

#define INLINE static inline __attribute__((always_inline))

/* ask for memory that is needed soon (beyond the end of an array that does no harm); x: where a strip starts */
INLINE void ask(const int variant, const float *x) {
    if (variant == EVERY_LINE)
        for (int i = 0; i < STRIP; i += 16) __builtin_prefetch(x + AHEAD + i);
    if (variant == PAGE_HEADS && ((uintptr_t)x & 4095) < STRIP * sizeof *x) {
        const char *page = (const char *)(((uintptr_t)x | 4095) + 1);
        for (int i = 0; i < 256; i += 64) __builtin_prefetch(page + i);
    }
}

INLINE void add_squares(double *restrict lanes, const float *restrict g, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lanes[j] += (double)g[i + j] * g[i + j];
    for (int j = 0; i < n; i++, j++) lanes[j] += (double)g[i] * g[i];
}

/* what a gradient counts as in m: where it is finite, no more than the root of what a sum of squares may be */
INLINE float within(float x, float most) {
    float size = fabsf(x);
    return size > most && size <= FLT_MAX ? copysignf(most, x) : x;
}

INLINE double total(const double *lanes) {
    double a[LANES / 2], b[LANES / 4];
    for (int j = 0; j < LANES / 2; j++) a[j] = lanes[j] + lanes[j + LANES / 2];
    for (int j = 0; j < LANES / 4; j++) b[j] = a[j] + a[j + LANES / 4];
    return (b[0] + b[2]) + (b[1] + b[3]);
}

/* m and p of n elements that lie at `at` */
INLINE void move(const Segment *s, int64_t at, int64_t n, float b1, float keep, float most, float rate) {
    float *restrict p = s->p + at, *restrict m = s->m + at;
    const float *restrict g = s->g + at;
    for (int64_t i = 0; i < n; i++) {
        float mi = m[i] + b1 * (within(g[i], most) - m[i]);
        m[i] = mi;
        p[i] = p[i] * keep - rate * mi;
    }
}

static float rate_of(const Segment *s, int64_t b, double sum) {
    if (sum > s->h->largest) sum = s->h->largest;  /* NaN stays */
    double mean = sum / ((double)s->outer * s->run);
    s->v[b] = s->h->beta2 * s->v[b] + s->h->one_minus_beta2 * (float)mean;
    return s->h->step_size / (sqrtf(s->v[b]) * s->h->inv_sqrt_bias_correction2 + s->h->eps);
}

/* Contiguous blocks first ... first + count - 1, and beside each, two at once, the block `count` further on. While one is
 * moved, the squares of the next are summed, so that all arrays stream from memory and each gradient is read once. */
INLINE void sweep(const int variant, const Segment *s, int64_t first, int64_t count) {
    const int ways = variant == TWO_AT_ONCE ? 2 : 1;
    const int64_t n = s->run;
    const float b1 = s->h->one_minus_beta1, keep = s->h->decay_factor, most = sqrtf(s->h->largest);
    double sum[2];
    for (int w = 0; w < ways; w++) {
        double lanes[LANES] = {0};
        add_squares(lanes, s->g + (first + w * count) * n, n);
        sum[w] = total(lanes);
    }
    for (int64_t k = 0; k < count; k++) {
        const int64_t next = k + 1 < count ? n : 0;  /* the last one sums itself again, for nothing */
        double lanes[2][LANES] = {{0}};
        int64_t at[2], i = 0;
        float rate[2];
        for (int w = 0; w < ways; w++) {
            rate[w] = rate_of(s, first + w * count + k, sum[w]);
            at[w] = (first + w * count + k) * n;
        }
        for (; i + STRIP <= n; i += STRIP)  /* a number of elements known beforehand leaves no remainders */
            for (int w = 0; w < ways; w++) {
                int64_t here = at[w] + i;
                ask(variant, s->p + here), ask(variant, s->m + here), ask(variant, s->g + here + next);
                move(s, here, STRIP, b1, keep, most, rate[w]);
                add_squares(lanes[w], s->g + here + next, STRIP);
            }
        for (int w = 0; w < ways; w++) {
            move(s, at[w] + i, n - i, b1, keep, most, rate[w]);
            add_squares(lanes[w], s->g + at[w] + i + next, n - i);
            sum[w] = total(lanes[w]);
        }
    }
}

/* elements first ... first + count - 1 with a second moment each, and beside them those `count` further on */
INLINE void adamw(const int variant, const Segment *s, int64_t first, int64_t count) {
    const int ways = variant == TWO_AT_ONCE ? 2 : 1;
    /* copies: s may alias what is written */
    const float b1 = s->h->one_minus_beta1, beta2 = s->h->beta2, b2 = s->h->one_minus_beta2;
    const float keep = s->h->decay_factor, size = s->h->step_size, root = s->h->inv_sqrt_bias_correction2, eps = s->h->eps;
    const float most = sqrtf(s->h->largest), most_square = b2 * s->h->largest;
    for (int64_t i = 0; i < count; i += STRIP)
        for (int w = 0; w < ways; w++) {
            int64_t at = first + w * count + i, n = i + STRIP <= count ? STRIP : count - i;
            float *restrict p = s->p + at, *restrict m = s->m + at, *restrict v = s->v + at;
            const float *restrict g = s->g + at;
            ask(variant, p), ask(variant, m), ask(variant, v), ask(variant, g);
            for (int64_t j = 0; j < n; j++) {
                float x = g[j], mj = m[j] + b1 * (within(x, most) - m[j]), square = b2 * x * x;
                float vj = beta2 * v[j] + (square > most_square ? most_square : square);
                m[j] = mj;
                v[j] = vj;
                p[j] = p[j] * keep - size * mj / (sqrtf(vj) * root + eps);
            }
        }
}

INLINE void lion(const int variant, const Segment *s, int64_t first, int64_t count) {
    const int ways = variant == TWO_AT_ONCE ? 2 : 1;
    const float beta1 = s->h->beta1, b1 = s->h->one_minus_beta1, b2 = s->h->one_minus_beta2;
    const float keep = s->h->decay_factor, size = s->h->step_size;
    for (int64_t i = 0; i < count; i += STRIP)
        for (int w = 0; w < ways; w++) {
            int64_t at = first + w * count + i, n = i + STRIP <= count ? STRIP : count - i;
            float *restrict p = s->p + at, *restrict m = s->m + at;
            const float *restrict g = s->g + at;
            ask(variant, p), ask(variant, m), ask(variant, g);
            for (int64_t j = 0; j < n; j++) {
                float d = beta1 * m[j] + b1 * g[j];
                p[j] = p[j] * keep - (d > 0 ? size : d < 0 ? -size : 0);  /* no step for NaN, as torch.sign */
                m[j] = m[j] + b2 * (g[j] - m[j]);
            }
        }
}

/* blocks begin ... end - 1 whose elements lie together, or are one each */
INLINE void contiguous(const int variant, const Segment *s, int64_t begin, int64_t end) {
    int64_t count = variant == TWO_AT_ONCE ? (end - begin) / 2 : end - begin;
    int64_t left = variant == TWO_AT_ONCE ? (end - begin) % 2 : 0;
    if (!s->v) {
        lion(variant, s, begin, count);
        if (left) lion(PLAIN, s, end - 1, 1);
    } else if (s->run == 1) {
        adamw(variant, s, begin, count);
        if (left) adamw(PLAIN, s, end - 1, 1);
    } else {
        if (count) sweep(variant, s, begin, count);
        if (left) sweep(PLAIN, s, end - 1, 1);
    }
}

/* one element per row (transposed linear weights): rows stay outermost */
static void columns(const Segment *s, int64_t begin, int64_t end) {
    const float b1 = s->h->one_minus_beta1, keep = s->h->decay_factor, most = sqrtf(s->h->largest);
    for (int64_t b = begin; b < end; b += COLUMNS) {
        int64_t n = b + COLUMNS < end ? COLUMNS : end - b;
        double sums[COLUMNS] = {0};
        float rates[COLUMNS];
        for (int64_t o = 0; o < s->outer; o++) {
            const float *restrict g = s->g + o * s->stride + b;
            for (int64_t i = 0; i < n; i++) sums[i] += (double)g[i] * g[i];
        }
        for (int64_t i = 0; i < n; i++) rates[i] = rate_of(s, b + i, sums[i]);
        for (int64_t o = 0; o < s->outer; o++) {
            float *restrict p = s->p + o * s->stride + b, *restrict m = s->m + o * s->stride + b;
            const float *restrict g = s->g + o * s->stride + b;
            for (int64_t i = 0; i < n; i++) {
                float mi = m[i] + b1 * (within(g[i], most) - m[i]);
                m[i] = mi;
                p[i] = p[i] * keep - rates[i] * mi;
            }
        }
    }
}

/* a run of elements per row */
static void strided(const Segment *s, int64_t begin, int64_t end) {
    const float b1 = s->h->one_minus_beta1, keep = s->h->decay_factor, most = sqrtf(s->h->largest);
    for (int64_t b = begin; b < end; b++) {
        double lanes[LANES] = {0};
        for (int64_t o = 0; o < s->outer; o++) add_squares(lanes, s->g + o * s->stride + b * s->run, s->run);
        float rate = rate_of(s, b, total(lanes));
        for (int64_t o = 0; o < s->outer; o++) move(s, o * s->stride + b * s->run, s->run, b1, keep, most, rate);
    }
}

static void chunk(int variant, const Segment *s, int64_t begin, int64_t end) {
    if (s->outer > 1) (s->run == 1 ? columns : strided)(s, begin, end);
    else if (variant == TWO_AT_ONCE) contiguous(TWO_AT_ONCE, s, begin, end);
    else if (variant == PAGE_HEADS) contiguous(PAGE_HEADS, s, begin, end);
    else if (variant == EVERY_LINE) contiguous(EVERY_LINE, s, begin, end);
    else contiguous(PLAIN, s, begin, end);
}

/* blocks, elements: the variants for shared and unshared second moments */
void step(int blocks, int elements, const Segment *const *segments, int64_t count, int64_t *next) {
    int64_t done = 0, mine = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
    for (int64_t k = 0; k < count; k++) {
        const Segment *s = segments[k];
        int64_t block_size = s->outer * s->run, per_chunk = CHUNK / block_size;
        if (per_chunk < 1) per_chunk = 1;
        if (s->outer > 1 && s->run == 1 && per_chunk < 64) per_chunk = 64;  /* whole cache lines of columns */
        int64_t chunks = (s->blocks + per_chunk - 1) / per_chunk;
        for (; mine < done + chunks; mine = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) {
            int64_t begin = (mine - done) * per_chunk, end = begin + per_chunk;
            chunk(block_size == 1 ? elements : blocks, s, begin, end < s->blocks ? end : s->blocks);
        }
        done += chunks;
    }
}
