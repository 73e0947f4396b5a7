/* One Adam step over many fp32 tensors whose second moment is shared by blocks (Adam-mini) or not shared (AdamW).
 *
 * A segment is a strided array (outer, blocks, run): element (o, b, i) lies at o * stride + b * run + i. Block b owns all
 * elements with that b and one number v[b]; with run = outer = 1 that is AdamW. Both passes over a block happen while it
 * is in cache. Threads call step() at once on the same list and share a counter, so that each takes the next chunk; a
 * block is summed by one thread in a fixed order, so the result does not depend on the number of threads.
 */
#include <math.h>
#include <stdint.h>

typedef struct {
    float keep, step_size, beta1, beta2, eps, bias2_rsqrt;
    float gain1, gain2;  /* 1 - beta, rounded once: in fp32 1 - 0.999f is off by 1e-5 */
} Scalars;

typedef struct {
    float *p, *m, *v;
    const float *g;
    const Scalars *h;
    int64_t outer, stride, blocks, run;
} Segment;

enum {
    CHUNK = 1 << 16,  /* elements per chunk */
    LANES = 512,      /* columns held at once of a strided segment */
    AHEAD = 512,      /* elements to ask for before they are needed: hardware prefetching stops at each 4 kB page */
    LINES = 64,       /* elements between two such requests, a whole number of cache lines */
};

/* ask for the LINES elements that are AHEAD of x (beyond the end of an array that does no harm) */
static inline void ask(const float *x) {
    for (int i = 0; i < LINES; i += 16) __builtin_prefetch(x + AHEAD + i);
}

static void coordinates(const Segment *s, int64_t begin, int64_t end) {
    float *restrict p = s->p, *restrict m = s->m, *restrict v = s->v;
    const float *restrict g = s->g;
    const float b1 = s->h->gain1, beta2 = s->h->beta2, b2 = s->h->gain2;  /* copies: s may alias what is written */
    const float keep = s->h->keep, size = s->h->step_size, root = s->h->bias2_rsqrt, eps = s->h->eps;
    for (int64_t line = begin; line < end; line += LINES) {
        int64_t stop = line + LINES < end ? line + LINES : end;
        ask(p + line), ask(m + line), ask(v + line), ask(g + line);
        for (int64_t i = line; i < stop; i++) {
            float x = g[i], mi = m[i] + b1 * (x - m[i]), vi = beta2 * v[i] + b2 * x * x;
            m[i] = mi;
            v[i] = vi;
            p[i] = p[i] * keep - size * mi / (sqrtf(vi) * root + eps);
        }
    }
}

static double sum_of_squares(const float *restrict g, int64_t n) {
    double total = 0;
    for (int64_t i = 0; i < n; i += 4096) {  /* short fp32 sums, long double sum: exact enough and vectorised */
        int64_t end = i + 4096 < n ? i + 4096 : n;
        float part = 0;
        for (int64_t j = i; j < end; j++) part += g[j] * g[j];
        total += part;
    }
    return total;
}

static float rate(const Segment *s, int64_t b, double sum) {
    s->v[b] = s->h->beta2 * s->v[b] + s->h->gain2 * (float)(sum / ((double)s->outer * s->run));
    return s->h->step_size / (sqrtf(s->v[b]) * s->h->bias2_rsqrt + s->h->eps);
}

static void move(const Segment *s, int64_t at, int64_t n, float r) {
    float *restrict p = s->p + at, *restrict m = s->m + at;
    const float *restrict g = s->g + at;
    const float b1 = s->h->gain1, keep = s->h->keep;
    for (int64_t i = 0; i < n; i++) {
        float mi = m[i] + b1 * (g[i] - m[i]);
        m[i] = mi;
        p[i] = p[i] * keep - r * mi;
    }
}

/* move block b and sum the squares of block b + 1 in one loop, so that all arrays stream from memory at once */
static double move_and_sum_next(const Segment *s, int64_t at, int64_t n, float r) {
    float *restrict p = s->p + at, *restrict m = s->m + at;
    const float *restrict g = s->g + at, *restrict next = s->g + at + n;
    const float b1 = s->h->gain1, keep = s->h->keep;
    double total = 0;
    for (int64_t i = 0; i < n; i += 4096) {
        int64_t end = i + 4096 < n ? i + 4096 : n;
        float part = 0;
        for (int64_t line = i; line < end; line += LINES) {
            int64_t stop = line + LINES < end ? line + LINES : end;
            ask(p + line), ask(m + line), ask(next + line);
            for (int64_t j = line; j < stop; j++) {
                float mi = m[j] + b1 * (g[j] - m[j]);
                m[j] = mi;
                p[j] = p[j] * keep - r * mi;
                part += next[j] * next[j];
            }
        }
        total += part;
    }
    return total;
}

/* blocks begin..end of a segment whose blocks have one element per row (transposed linear weights): rows stay outermost */
static void columns(const Segment *s, int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; b += LANES) {
        int64_t n = b + LANES < end ? LANES : end - b;
        float sums[LANES] = {0}, rates[LANES];
        for (int64_t o = 0; o < s->outer; o++) {
            const float *restrict g = s->g + o * s->stride + b;
            for (int64_t i = 0; i < n; i++) sums[i] += g[i] * g[i];
        }
        for (int64_t i = 0; i < n; i++) rates[i] = rate(s, b + i, sums[i]);
        const float b1 = s->h->gain1, keep = s->h->keep;
        for (int64_t o = 0; o < s->outer; o++) {
            float *restrict p = s->p + o * s->stride + b, *restrict m = s->m + o * s->stride + b;
            const float *restrict g = s->g + o * s->stride + b;
            for (int64_t i = 0; i < n; i++) {
                float mi = m[i] + b1 * (g[i] - m[i]);
                m[i] = mi;
                p[i] = p[i] * keep - rates[i] * mi;
            }
        }
    }
}

static void shared(const Segment *s, int64_t begin, int64_t end) {
    if (s->outer > 1 && s->run == 1) {
        columns(s, begin, end);
        return;
    }
    if (s->outer == 1) {
        double sum = sum_of_squares(s->g + begin * s->run, s->run);
        for (int64_t b = begin; b < end; b++) {
            float r = rate(s, b, sum);
            if (b + 1 < end) sum = move_and_sum_next(s, b * s->run, s->run, r);
            else move(s, b * s->run, s->run, r);
        }
        return;
    }
    for (int64_t b = begin; b < end; b++) {
        double sum = 0;
        for (int64_t o = 0; o < s->outer; o++) sum += sum_of_squares(s->g + o * s->stride + b * s->run, s->run);
        float r = rate(s, b, sum);
        for (int64_t o = 0; o < s->outer; o++) move(s, o * s->stride + b * s->run, s->run, r);
    }
}

void step(const Segment *const *segments, int64_t count, int64_t *next) {
    int64_t chunk = 0, mine = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
    for (int64_t k = 0; k < count; k++) {
        const Segment *s = segments[k];
        int64_t block_size = s->outer * s->run, per_chunk = CHUNK / block_size;
        if (per_chunk < 1) per_chunk = 1;
        if (s->outer > 1 && s->run == 1 && per_chunk < 64) per_chunk = 64;  /* whole cache lines of columns */
        int64_t chunks = (s->blocks + per_chunk - 1) / per_chunk;
        for (; mine < chunk + chunks; mine = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) {
            int64_t begin = (mine - chunk) * per_chunk, end = begin + per_chunk;
            if (end > s->blocks) end = s->blocks;
            if (block_size == 1) coordinates(s, begin, end);
            else shared(s, begin, end);
        }
        chunk += chunks;
    }
}
