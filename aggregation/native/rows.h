/* What the kernels of rows are told. Every number is eight bytes wide: `native/row_tables.py` has
 * the same records as numpy dtypes, and a test holds their sizes together. */
#ifndef ENCORE_ROWS_H
#define ENCORE_ROWS_H

#include "kernels.h"

/* At most so many of each in a view. A plan that needs more is computed by numpy. */
enum { MOST_WINDOWS = 64, MOST_SEQUENCES = 16, MOST_KEPT = 32, MOST_SOURCES = 3 };

enum type { BOOL, I8, U8, I16, U16, I32, U32, I64, U64, F32, F64 };

enum kind {
    FIELD, VECTOR, WINDOW, SEQUENCE, AGE, LAST, MEAN, DEVIATION, LEAST, GREATEST, DISTINCT, DECAYED,
    RATIO
};

/* The newest `tiles` tiles of rings of one hop and length. */
struct window {
    int64_t head_at, present_at, present_mask; /* of the head, in the row */
    int64_t hop_ms, ring_tiles, tiles;
};

/* Entries, newest first. */
struct sequence {
    int64_t times_at, length_at, capacity;
};

/* One ring, field or column that a feature is made of. */
struct source {
    int64_t at, type, window; /* window: which, of a ring */
};

/* One feature. */
struct operation {
    int64_t kind;
    int64_t place;             /* bit of the null bitmap; -1 for what only a ratio reads */
    int64_t to, type;          /* in the record; `to` is not looked at where place is -1 */
    int64_t length_to, length; /* of a vector: where its length goes; its capacity */
    int64_t kept;              /* where its value waits for a ratio; -1 */
    struct source sources[MOST_SOURCES];
    int64_t present_at, present_mask; /* of a field */
    int64_t length_at;                /* of a stored vector, in the row */
    int64_t sequence;                 /* which, of a column */
    int64_t width;                    /* numbers a tile of a distinct */
    int64_t within_ms, of_time;       /* of a last */
    const double *weights;            /* of a decayed sum, by age in tiles */
    int64_t above, below;             /* of a ratio, among those kept */
    double smoothing, weight;         /* of a ratio: what is added above and below */
};

struct vector {
    int64_t length_at, capacity;
};

struct view {
    int64_t row_bytes, layout_id, entity_at, trailer_at, ttl_ms;
    const uint8_t *empty; /* an empty row */
    int64_t vector_count, window_count, sequence_count, operation_count;
    const struct vector *vectors;
    const struct window *windows;
    const struct sequence *sequences;
    const struct operation *operations;
};

struct side {
    int64_t view_count, record_bytes, null_at, null_count;
    int64_t present, not_found, corrupt; /* statuses */
    int64_t tombstone_ms;                /* the event time of a deleted row */
    const struct view *views;
};

enum { ABSENT = -1, DAMAGED = -2 };

struct run {
    int64_t first, many, start, stride, size; /* as `schemas.stored.Run`; or one of the above */
};

struct request {
    const uint8_t *buffer;
    int64_t buffer_bytes;
    const int64_t *entity_ids; /* (n,) */
    int64_t n, now_ms;
    uint8_t *values; /* (n,) records, zero */
    uint8_t *null;   /* (n, k), zero */
    uint8_t *fences; /* (n, V) of u32 epoch, i64 offset */
    uint8_t *status; /* (n, V) */
    int64_t run_count;
    struct run runs[];
};

/* Stored rows, whose checksums are right, → values, nulls, fences and statuses at now_ms.
 *
 * A row of its view's own layout that is another entity's, or has a length beyond a capacity, is
 * corrupt, as is a DAMAGED one: all its features are null. One of another size or layout is LEFT,
 * its status says so, to whoever can read it; all others are computed.
 *
 * Returns the newest event time in any row, 0 for none; its complement, ~newest, where rows were
 * left; UNUSUAL where a run is not all inside the buffer: what was written is then to be thrown
 * away. */
enum { LEFT = 255 };
#define UNUSUAL INT64_MIN
EXPORT int64_t rows_to_values(const struct side *side, const struct request *request);

/* Bytes of the records above, in their order: what `native/row_tables.py` must agree with. */
EXPORT int64_t rows_record_bytes(int64_t which);

/* --- between rows.c and tiles.c ----------------------------------------------------------- */

/* Tiles of a window that a ring holds, as slots: `count` of them, the oldest in slot `first`, one
 * after the other, slot 0 behind the last. newest_age: how many tiles before now the newest is. */
struct span {
    int64_t first, count, newest_age;
};

struct span span_of(const struct window *window, int64_t now_tile, int64_t now_slot, int64_t head);
int64_t floor_div(int64_t a, int64_t b);
void totals_of(const uint8_t *const *rows, int64_t n, const struct source *source,
               int64_t ring_tiles, const struct span *spans, int64_t *totals);
double decayed_of(const uint8_t *ring, int64_t type, int64_t ring_tiles, struct span span,
                  const double *weights);
uint64_t least_of(const uint8_t *ring, int64_t ring_tiles, struct span span);
uint64_t greatest_of(const uint8_t *ring, int64_t ring_tiles, struct span span);
double deviation_of(int64_t count, int64_t total, int64_t low, int64_t high);
void squares_of(const uint8_t *ring, int64_t ring_tiles, struct span span, int64_t *low,
                int64_t *high);
int64_t distinct_of(const uint8_t *ring, int64_t ring_tiles, int64_t width, struct span span,
                    uint64_t *hashes);

#endif
