/* The steps of adam_kernel.c with a first moment in 8-bit codes (eight_bit.py), which are decoded, moved and encoded BLOCK
 * elements at a time, so that no more of the moment than that is ever in fp32.
 *
 * Blocks of codes follow the order of elements, blocks of Adam-mini any axis. So its rates come first, one number for each
 * of its blocks: measure(); then move_codes() goes through the elements in order. Rows of a multiple of BLOCK need no such
 * pass. Threads share a counter, as there.
 *
 * Moments move as the stages' do, by torch.lerp: with one rounding less than in adam_kernel.c, so that codes come out as
 * theirs, which would be a whole code apart else. Second moments have the bits that they have beside an fp32 moment. Same
 * bits for any number of threads.
 */
#include "adam_kernel.c"  /* one library: its numbers, segments and sums */

enum {
    BLOCK = 256,        /* elements of one scale */
    PART = BLOCK << 8,  /* elements of one turn of a thread */
    INFINITE = 0x7F800000,
};

typedef struct {
    int64_t offset, first, outer, stride, blocks, run;  /* layout.Layout.strips, in order of offset */
} Strip;

typedef struct {
    float *p, *v, *scale, *rates;  /* v: one each of AdamW's, NULL for Lion; rates: of Adam-mini's blocks, else NULL */
    int8_t *q;
    const float *g;
    const Scalars *h;
    const Strip *strips;
    int64_t count, numel;
    float factor;  /* of the gradient */
} Coded;

/* Work that threads share: turns of the strips or tensors before are `done`, this thread's next one is `mine` of all. */
typedef struct {
    int64_t *next, mine, done;
} Queue;

static int64_t claim(int64_t *next) { return __atomic_fetch_add(next, 1, __ATOMIC_RELAXED); }

/* this thread's next one of so many turns, -1 when the others have the rest */
static int64_t take(Queue *queue, int64_t turns) {
    if (queue->mine < queue->done + turns) {
        int64_t turn = queue->mine - queue->done;
        queue->mine = claim(queue->next);
        return turn;
    }
    queue->done += turns;
    return -1;
}

/* whether Adam-mini's blocks are whole blocks of codes, one after the other: then their squares need no pass of their own */
static int swept(const Coded *t) {
    for (int64_t i = 0; i < t->count; i++)
        if (t->strips[i].outer > 1 || t->strips[i].offset % BLOCK || t->strips[i].run % BLOCK) return 0;
    return t->rates != 0;
}

/* -- rates of Adam-mini's blocks ------------------------------------------------------------------------------------- */

/* add_squares of BLOCK elements, one rounding less of what is exact anyway; inline it takes a fifth longer (gcc 12) */
static __attribute__((noinline)) void add_block(double *restrict lanes, const float *restrict g) {
    for (int i = 0; i < BLOCK; i += LANES)
        for (int j = 0; j < LANES; j++)
#ifdef FP_FAST_FMA
            lanes[j] = fma(g[i + j], g[i + j], lanes[j]);
#else
            lanes[j] += (double)g[i + j] * g[i + j];
#endif
}

/* squares of factor * g, up to BLOCK elements at a time, into their lanes */
INLINE void add_scaled(double *restrict lanes, const float *restrict g, int64_t n, float factor) {
    float x[BLOCK];
    if (factor == 1) {
        add_squares(lanes, g, n);
        return;
    }
    for (int64_t i = 0; i < n; i += BLOCK) {
        int64_t part = n - i < BLOCK ? n - i : BLOCK;
        for (int64_t j = 0; j < part; j++) x[j] = g[i + j] * factor;
        add_squares(lanes, x, part);
    }
}

/* rates of blocks begin ... end - 1 of a strip, one element of each per row */
static void measure_columns(const Coded *t, const Segment *s, float *rates, int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; b += COLUMNS) {
        int64_t n = b + COLUMNS < end ? COLUMNS : end - b;
        double sums[COLUMNS] = {0};
        for (int64_t o = 0; o < s->outer; o++) {
            const float *restrict g = s->g + o * s->stride + b;
            for (int64_t i = 0; i < n; i++) {
                float x = g[i] * t->factor;
                sums[i] += (double)x * x;
            }
        }
        for (int64_t i = 0; i < n; i++) rates[b + i] = rate_of(s, b + i, sums[i]);
    }
}

static void measure_blocks(const Coded *t, const Segment *s, float *rates, int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; b++) {
        double lanes[LANES] = {0};
        for (int64_t o = 0; o < s->outer; o++)
            add_scaled(lanes, s->g + o * s->stride + b * s->run, s->run, t->factor);
        rates[b] = rate_of(s, b, total(lanes));
    }
}

/* new v and rates of all tensors that are not swept */
void measure(const Coded *const *tensors, int64_t count, int64_t *next) {
    Queue queue = {next, claim(next), 0};
    for (int64_t k = 0; k < count; k++) {
        const Coded *t = tensors[k];
        const int64_t strips = swept(t) ? 0 : t->count;
        for (const Strip *strip = t->strips; strip < t->strips + strips; strip++) {
            const Segment s = {.g = t->g + strip->offset, .v = t->v + strip->first, .h = t->h, .outer = strip->outer,
                               .stride = strip->stride, .blocks = strip->blocks, .run = strip->run};
            const int columns = s.outer > 1 && s.run == 1;
            int64_t per_turn = CHUNK / (s.outer * s.run);
            if (per_turn < (columns ? 64 : 1)) per_turn = columns ? 64 : 1;  /* whole cache lines of columns */
            for (int64_t turn; (turn = take(&queue, (s.blocks + per_turn - 1) / per_turn)) >= 0;) {
                int64_t begin = turn * per_turn, end = begin + per_turn < s.blocks ? begin + per_turn : s.blocks;
                (columns ? measure_columns : measure_blocks)(t, &s, t->rates + strip->first, begin, end);
            }
        }
    }
}

/* -- moments and weights --------------------------------------------------------------------------------------------- */

/* the rate of each of the n elements from `at` on, as far as this strip has them */
static void spread(float *restrict rate, const Strip *s, const float *restrict rates, int64_t at, int64_t n) {
    const int64_t width = s->blocks * s->run;
    int64_t row = at > s->offset && s->stride ? (at - s->offset) / s->stride : 0;
    for (; row < s->outer; row++) {
        const int64_t start = s->offset + row * s->stride - at;  /* of the row, counted from `at` */
        if (start >= n) return;
        int64_t i = start < 0 ? 0 : start, end = start + width < n ? start + width : n;
        while (i < end) {
            const int64_t b = (i - start) / s->run;
            int64_t stop = start + (b + 1) * s->run;
            if (stop > end) stop = end;
            if (s->run == 1)
                for (int64_t j = i; j < end; j++) rate[j] = rates[s->first + j - start];
            else
                for (int64_t j = i; j < stop; j++) rate[j] = rates[s->first + b];
            i = s->run == 1 ? end : stop;
        }
    }
}

/* torch.lerp as its vector code has it, from the nearer end. `from`: which that is, where it is known beforehand */
enum { START, END, EITHER };

INLINE float lerp(const int from, float start, float end, float weight) {
    const int near = from == EITHER ? weight < 0.5f : from == START;
    return near ? fmaf(weight, end - start, start) : fmaf(weight - 1, end - start, end);
}

INLINE float decoded(int8_t q, float scale) {
    float root = (float)q * (float)(1.0 / 127);
    return fabsf(root) * root * scale;
}

/* size of m in bits: as whole numbers, sizes are in order, and inf and nan beyond all others */
INLINE uint32_t size_bits(float m) {
    union { float number; uint32_t bits; } size = {fabsf(m)};
    return size.bits;
}

/* A sum with 1.5 * 2^23 is rounded to a whole number, whose last 8 bits are its own, in two's complement. */
INLINE int8_t code(float m, float inverse) {
    union { float number; uint32_t bits; } sum = {copysignf(sqrtf(fabsf(m) * inverse) * 127.0f, m) + 12582912.0f};
    return (int8_t)sum.bits;
}

INLINE void encode(int8_t *restrict q, const float *restrict m, float inverse, int64_t n) {
    for (int64_t i = 0; i < n; i++) q[i] = code(m[i], inverse);
}

/* 1 / scale of n numbers whose largest size is `most`, and the scale. What is no finite number makes the scale nan, and all
 * numbers 0, which are their codes then. */
INLINE float inverse_of(float *restrict scale, float *restrict m, uint32_t most, int64_t n) {
    union { uint32_t bits; float number; } size = {most};
    *scale = size.number;
    if (most >= INFINITE) {
        for (int64_t i = 0; i < n; i++) m[i] = 0;
        *scale = NAN;
        return 0;
    }
    return 1.0f / (size.number < 1e-30f ? 1e-30f : size.number);
}

/* What moves a block of n elements from `at` on: p and the new m, with gradients x. Beside it the codes of the block before,
 * whose m is `past`, unless that is NULL: roots are slow, and the rest goes on meanwhile. Returns the largest size of m. */

/* Adam-mini's, with a rate for each element, or `same` for all where rate is NULL */
INLINE uint32_t move_with(const int from, const float *restrict rate, float same, const Coded *t, int64_t at, int64_t n,
                          float *restrict m, const float *restrict x, const float *restrict past, float inverse) {
    const float b1 = t->h->one_minus_beta1, keep = t->h->decay_factor, scale = t->scale[at / BLOCK];
    const float bound = sqrtf(t->h->largest);
    const int8_t *restrict q = t->q + at;
    int8_t *restrict before = t->q + (past ? at - BLOCK : 0);
    float *restrict p = t->p + at;
    uint32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        float mi = lerp(from, decoded(q[i], scale), within(x[i], bound), b1);
        uint32_t size = size_bits(mi);
        most = size > most ? size : most;
        m[i] = mi;
        p[i] = p[i] * keep - (rate ? rate[i] : same) * mi;
        if (past) before[i] = code(past[i], inverse);
    }
    return most;
}

/* AdamW's, as in adam_kernel.c */
INLINE uint32_t move_adamw(const int from, const Coded *t, int64_t at, int64_t n, float *restrict m, const float *restrict x,
                           const float *restrict past, float inverse) {
    const Scalars h = *t->h;
    const float most_square = h.one_minus_beta2 * h.largest, scale = t->scale[at / BLOCK];
    const int8_t *restrict q = t->q + at;
    int8_t *restrict before = t->q + (past ? at - BLOCK : 0);
    float *restrict p = t->p + at, *restrict v = t->v + at;
    uint32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        float mi = lerp(from, decoded(q[i], scale), x[i], h.one_minus_beta1), square = h.one_minus_beta2 * x[i] * x[i];
        float vi = h.beta2 * v[i] + (square > most_square ? most_square : square);
        uint32_t size = size_bits(mi);
        most = size > most ? size : most;
        m[i] = mi;
        v[i] = vi;
        p[i] = p[i] * h.decay_factor - h.step_size * mi / (sqrtf(vi) * h.inv_sqrt_bias_correction2 + h.eps);
        if (past) before[i] = code(past[i], inverse);
    }
    return most;
}

/* Lion's */
INLINE uint32_t move_lion(const int usual, const Coded *t, int64_t at, int64_t n, float *restrict m, const float *restrict x,
                          const float *restrict past, float inverse) {
    const Scalars h = *t->h;
    const float scale = t->scale[at / BLOCK];
    const int8_t *restrict q = t->q + at;
    int8_t *restrict before = t->q + (past ? at - BLOCK : 0);
    float *restrict p = t->p + at;
    uint32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        float old = decoded(q[i], scale), d = lerp(usual ? END : EITHER, x[i], old, h.beta1);
        float mi = lerp(usual ? START : EITHER, old, x[i], h.one_minus_beta2);
        uint32_t size = size_bits(mi);
        most = size > most ? size : most;
        m[i] = mi;
        p[i] = p[i] * h.decay_factor - (d > 0 ? h.step_size : d < 0 ? -h.step_size : 0);  /* no step for NaN, as torch.sign */
        if (past) before[i] = code(past[i], inverse);
    }
    return most;
}

/* n gradients from `at` on, times their factor */
INLINE const float *gradients(const Coded *t, int64_t at, int64_t n, float *restrict room) {
    if (t->factor == 1) return t->g + at;
    for (int64_t i = 0; i < n; i++) room[i] = t->g[at + i] * t->factor;
    return room;
}

/* blocks of codes one after the other; the codes of the last one are still to be written, with 1 / their scale */
typedef struct {
    float m[2][BLOCK], room[BLOCK], inverse;
    const float *past;
} Pipe;

INLINE uint32_t move_any(const float *rate, float same, const Coded *t, int64_t at, int64_t n, float *m, const float *x,
                         const float *past, float inverse) {
    const Scalars *h = t->h;
    if (t->rates)
        return h->one_minus_beta1 < 0.5f ? move_with(START, rate, same, t, at, n, m, x, past, inverse)
                                         : move_with(EITHER, rate, same, t, at, n, m, x, past, inverse);
    if (t->v)
        return h->one_minus_beta1 < 0.5f ? move_adamw(START, t, at, n, m, x, past, inverse)
                                         : move_adamw(EITHER, t, at, n, m, x, past, inverse);
    return h->beta1 >= 0.5f && h->one_minus_beta2 < 0.5f ? move_lion(1, t, at, n, m, x, past, inverse)
                                                         : move_lion(0, t, at, n, m, x, past, inverse);
}

INLINE void move_block(const float *rate, float same, const Coded *t, int64_t at, int64_t n, Pipe *pipe) {
    float *now = pipe->m[at / BLOCK % 2];
    const float *x = gradients(t, at, n, pipe->room), inverse = pipe->inverse;
    uint32_t most = pipe->past ? move_any(rate, same, t, at, n, now, x, pipe->past, inverse)
                               : move_any(rate, same, t, at, n, now, x, 0, 0);
    pipe->inverse = inverse_of(t->scale + at / BLOCK, now, most, n);
    pipe->past = now;
}

/* the codes of the block before `end`, of n elements */
INLINE void finish(const Coded *t, int64_t end, int64_t n, Pipe *pipe) {
    if (pipe->past) encode(t->q + end - n, pipe->past, pipe->inverse, n);
    pipe->past = 0;
}

/* Adam-mini's blocks first ... first + count - 1 of a strip: while one is moved, the squares of the next are summed. */
static void sweep_codes(const Coded *t, const Strip *strip, int64_t first, int64_t count) {
    const int64_t run = strip->run, begin = strip->offset + first * run, end = begin + count * run;
    const Segment s = {.v = t->v + strip->first, .h = t->h, .outer = 1, .run = run};
    Pipe pipe = {.past = 0};
    double lanes[LANES] = {0};
    add_scaled(lanes, t->g + begin, run, t->factor);
    for (int64_t start = begin; start < end; start += run) {
        const float rate = rate_of(&s, first + (start - begin) / run, total(lanes));
        const int64_t next = start + run < end ? run : 0;
        for (int j = 0; j < LANES; j++) lanes[j] = 0;
        for (int64_t at = start; at < start + run; at += BLOCK) {
            ask(PAGE_HEADS, t->p + at), ask(PAGE_HEADS, t->g + at + next);
            move_block(0, rate, t, at, BLOCK, &pipe);
            if (!next) continue;
            if (t->factor == 1) add_block(lanes, t->g + at + next);
            else add_scaled(lanes, t->g + at + next, BLOCK, t->factor);
        }
    }
    finish(t, end, BLOCK, &pipe);
}

/* elements begin ... end - 1, whose rates, if they have any, are there */
static void move_part(const Coded *t, int64_t begin, int64_t end) {
    const Strip *low = t->strips, *high = low + (t->rates ? t->count : 0);
    Pipe pipe = {.past = 0};
    float rate[BLOCK];
    while (high > low && high[-1].offset >= end) high--;
    while (low < high && low->offset + (low->outer - 1) * low->stride + low->blocks * low->run <= begin) low++;
    int64_t at = begin;
    for (; at + BLOCK <= end; at += BLOCK) {  /* a length known beforehand */
        for (const Strip *s = low; s < high; s++) spread(rate, s, t->rates, at, BLOCK);
        ask(PAGE_HEADS, t->p + at), ask(PAGE_HEADS, t->g + at);
        move_block(rate, 0, t, at, BLOCK, &pipe);
    }
    finish(t, at, BLOCK, &pipe);
    if (at == end) return;
    for (const Strip *s = low; s < high; s++) spread(rate, s, t->rates, at, end - at);
    move_block(rate, 0, t, at, end - at, &pipe);
    finish(t, end, end - at, &pipe);
}

/* m, p and v of all tensors; rates of those that are not swept are there */
void move_codes(const Coded *const *tensors, int64_t count, int64_t *next) {
    Queue queue = {next, claim(next), 0};
    for (int64_t k = 0; k < count; k++) {
        const Coded *t = tensors[k];
        const int64_t strips = swept(t) ? t->count : 0;
        for (const Strip *s = t->strips; s < t->strips + strips; s++) {
            const int64_t per_turn = s->run < CHUNK ? CHUNK / s->run : 1;
            for (int64_t turn; (turn = take(&queue, (s->blocks + per_turn - 1) / per_turn)) >= 0;) {
                int64_t first = turn * per_turn, left = s->blocks - first;
                sweep_codes(t, s, first, left < per_turn ? left : per_turn);
            }
        }
        if (strips) continue;
        for (int64_t turn; (turn = take(&queue, (t->numel + PART - 1) / PART)) >= 0;) {
            int64_t begin = turn * PART, end = begin + PART;
            move_part(t, begin, end < t->numel ? end : t->numel);
        }
    }
}
