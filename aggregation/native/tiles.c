/* Over the tiles of a window: `aggregation/rings.py`, `measures.py`, `moments.py`, `distinct.py`.
 *
 * Tile t rests in slot t mod T of its ring. A window's tiles that a ring still holds are next to
 * each other, but for the step from the ring's last slot to its first. Whole numbers wrap as those
 * of numpy do; floats take the same operations in the same order. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "rows.h"

enum { WORD_BITS = 40 };
static const double TWO_TO_64 = 18446744073709551616.0;

int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a % b < 0) != (b < 0)); }

struct span span_of(const struct window *window, int64_t now_tile, int64_t now_slot, int64_t head) {
    const int64_t ring_tiles = window->ring_tiles, tiles = window->tiles;
    /* 1 for a head that holds the window's oldest tile only; wraps where heads are no heads */
    int64_t place = (int64_t)((uint64_t)head - ((uint64_t)now_tile - (uint64_t)tiles));
    place = place > ring_tiles + tiles ? ring_tiles + tiles : place < 0 ? 0 : place;
    const int64_t ahead = place - tiles; /* of now: -w ... T */
    const int64_t newest = ahead < 0 ? ahead : 0;
    const int64_t held = ahead - ring_tiles + 1, oldest = held > 1 - tiles ? held : 1 - tiles;
    if (oldest > newest) return (struct span){0, 0, 0};
    const int64_t first = now_slot + oldest;
    return (struct span){first < 0 ? first + ring_tiles : first, newest - oldest + 1, -newest};
}

/* A span as at most two ranges of slots: [first, end) and [0, rest). */
struct ranges {
    int64_t first, end, rest;
};

static inline struct ranges ranges_of(struct span span, int64_t ring_tiles) {
    const int64_t stop = span.first + span.count;
    if (stop <= ring_tiles) return (struct ranges){span.first, stop, 0};
    return (struct ranges){span.first, ring_tiles, stop - ring_tiles};
}

#define TOTALS(element, wide)                                                       \
    for (int64_t row = 0; row < n; row++) {                                         \
        const struct ranges in = ranges_of(spans[row], ring_tiles);                 \
        const uint8_t *ring = rows[row] + at;                                       \
        element each;                                                               \
        wide total = 0; /* of 2^16 tiles at most */                                 \
        for (int64_t slot = in.first; slot < in.end; slot++) {                      \
            memcpy(&each, ring + slot * (int64_t)sizeof each, sizeof each);         \
            total += (wide)each;                                                    \
        }                                                                           \
        for (int64_t slot = 0; slot < in.rest; slot++) {                            \
            memcpy(&each, ring + slot * (int64_t)sizeof each, sizeof each);         \
            total += (wide)each;                                                    \
        }                                                                           \
        totals[row] = (int64_t)total;                                               \
    }

WIDE void totals_of(const uint8_t *const *rows, int64_t n, const struct source *source,
                    int64_t ring_tiles, const struct span *spans, int64_t *totals) {
    const int64_t at = source->at;
    switch (source->type) {
    case U8: TOTALS(uint8_t, uint32_t) break;
    case U16: TOTALS(uint16_t, uint32_t) break;
    case U32: TOTALS(uint32_t, uint64_t) break;
    default: TOTALS(int64_t, uint64_t)
    }
}

static inline double number_at(const uint8_t *ring, int64_t type, int64_t slot) {
    uint16_t u16;
    uint32_t u32;
    int64_t i64;
    switch (type) {
    case U8: return ring[slot];
    case U16: memcpy(&u16, ring + 2 * slot, 2); return u16;
    case U32: memcpy(&u32, ring + 4 * slot, 4); return u32;
    default: memcpy(&i64, ring + 8 * slot, 8); return (double)i64;
    }
}

double decayed_of(const uint8_t *ring, int64_t type, int64_t ring_tiles, struct span span,
                  const double *weights) {
    double sum = 0.0;
    for (int64_t back = 0; back < span.count; back++) { /* the newest first */
        int64_t slot = span.first + span.count - 1 - back;
        slot -= slot >= ring_tiles ? ring_tiles : 0;
        sum += number_at(ring, type, slot) * weights[span.newest_age + back];
    }
    return sum;
}

static inline uint64_t word_at(const uint8_t *ring, int64_t place) {
    uint64_t word;
    memcpy(&word, ring + 8 * place, 8);
    return word;
}

uint64_t least_of(const uint8_t *ring, int64_t ring_tiles, struct span span) {
    const struct ranges in = ranges_of(span, ring_tiles);
    uint64_t least = UINT64_MAX; /* less one: an empty tile, 0, is the greatest */
    for (int64_t slot = in.first; slot < in.end; slot++)
        if (word_at(ring, slot) - 1 < least) least = word_at(ring, slot) - 1;
    for (int64_t slot = 0; slot < in.rest; slot++)
        if (word_at(ring, slot) - 1 < least) least = word_at(ring, slot) - 1;
    return least + 1;
}

uint64_t greatest_of(const uint8_t *ring, int64_t ring_tiles, struct span span) {
    const struct ranges in = ranges_of(span, ring_tiles);
    uint64_t greatest = 0;
    for (int64_t slot = in.first; slot < in.end; slot++)
        if (word_at(ring, slot) > greatest) greatest = word_at(ring, slot);
    for (int64_t slot = 0; slot < in.rest; slot++)
        if (word_at(ring, slot) > greatest) greatest = word_at(ring, slot);
    return greatest;
}

void squares_of(const uint8_t *ring, int64_t ring_tiles, struct span span, int64_t *low,
                int64_t *high) {
    uint64_t words[2] = {0, 0};
    for (int64_t at = span.first; at < span.first + span.count; at++) {
        const int64_t slot = at >= ring_tiles ? at - ring_tiles : at;
        words[0] += word_at(ring, 2 * slot);
        words[1] += word_at(ring, 2 * slot + 1);
    }
    *low = (int64_t)words[0];
    *high = (int64_t)words[1];
}

/* `moments.deviation`. */
double deviation_of(int64_t count, int64_t total, int64_t low, int64_t high) {
    if (count < 1) count = 1;
    int64_t whole = floor_div(total, count);
    int64_t rest = (int64_t)((uint64_t)total - (uint64_t)whole * (uint64_t)count);
    if ((int64_t)(2 * (uint64_t)rest) > count) {
        whole++;
        rest -= count;
    }
    const uint64_t shift = (uint64_t)count * (uint64_t)whole + 2 * (uint64_t)rest;
    const double exact =
        (double)(((uint64_t)high << WORD_BITS) + (uint64_t)low - (uint64_t)whole * shift);
    const double wide = (double)high * (double)((uint64_t)1 << WORD_BITS) + (double)low;
    const double near =
        wide - (double)whole * ((double)count * (double)whole + 2.0 * (double)rest);
    const double spread = exact + rint((near - exact) / TWO_TO_64) * TWO_TO_64;
    const double off = (double)rest / (double)count;
    const double variance = spread / (double)count - off * off;
    return sqrt(variance < 0.0 ? 0.0 : variance);
}

static int ascending(const void *left, const void *right) {
    const uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

/* `distinct.estimate`. hashes: room for all of a window's. */
int64_t distinct_of(const uint8_t *ring, int64_t ring_tiles, int64_t width, struct span span,
                    uint64_t *hashes) {
    uint64_t threshold = UINT64_MAX; /* the least of the greatest hashes of full tiles */
    for (int64_t at = span.first; at < span.first + span.count; at++) {
        const int64_t slot = at >= ring_tiles ? at - ring_tiles : at;
        if (word_at(ring, slot * width) == 0) continue;
        const uint64_t greatest = word_at(ring, slot * width + width - 1) - 1;
        if (greatest < threshold) threshold = greatest;
    }
    size_t found = 0;
    for (int64_t at = span.first; at < span.first + span.count; at++) {
        const int64_t slot = at >= ring_tiles ? at - ring_tiles : at;
        if (word_at(ring, slot * width) == 0) continue;
        for (int64_t place = 0; place < width; place++) {
            const uint64_t hash = word_at(ring, slot * width + place) - 1;
            if (hash < threshold) hashes[found++] = hash;
        }
    }
    if (found > 1) qsort(hashes, found, sizeof *hashes, ascending);
    int64_t count = 0;
    for (size_t at = 0; at < found; at++) count += at == 0 || hashes[at] != hashes[at - 1];
    if (threshold == UINT64_MAX) return count;
    return (int64_t)rint((double)count * (TWO_TO_64 / ((double)threshold + 1.0)));
}
