/* Columns of a value block, a few rows at a time, and the ids of their values. */
#ifndef ENCORE_COLUMNS_H
#define ENCORE_COLUMNS_H

#include "kernels.h"

/* Rows that are worked on at once: their records and all that is made of them stay in the cache. */
enum { ROWS = 64 };

enum dtype { BOOL, I8, I16, I32, I64, U8, U16, U32, U64, F32, F64 };
enum kind { RANGE, HASH, TABLE, SEARCH, VOCABULARY };

/* Values that mean missing, as doubles of the dtype they are compared in. */
struct sentinels {
    const double *values;
    int64_t count;
};

/* One feature of a block's record. side: 0 the user's, 1 the item's. capacity: of a vector, 0 of a
 * scalar; its length, a u2, lies at `length`. null: its place in the bitmap. */
struct field {
    int64_t offset, length, capacity, null, side;
    int64_t dtype;
    struct sentinels sentinels;
};

/* A value's id. All but SEARCH take whole numbers.
 * RANGE: value + first within [0, limit), else 1.
 * HASH: 2 + xxh3-64 of the 8 bytes, `first` its seed's flip, modulo limit.
 * TABLE: ids[value], the first or last id beyond. SEARCH: 2 + how many of the bounds <= value.
 * VOCABULARY: ids[i] where known[i] is the value, else 1. count: of bounds, ids, known. */
struct transform {
    int64_t kind;
    uint64_t limit, first;
    int64_t count;
    const double *bounds;
    const int64_t *known;
    const int32_t *ids;
    struct sentinels sentinels;
};

/* Some records of one side. rows: which record each row is of, NULL for one after the other; with a
 * stride of 0 all rows are of one record. nulls: offset of the bitmap. */
struct records {
    const uint8_t *first;
    int64_t stride;
    const int64_t *rows;
    int64_t nulls;
};

/* Up to ROWS values: whole numbers or reals, as the user of them wants. */
struct values {
    int64_t whole[ROWS];
    double real[ROWS];
    uint8_t missing[ROWS];
};

static inline const uint8_t *record(const struct records *of, int64_t row)
{
    return of->first + (of->rows ? of->rows[row] : row) * of->stride;
}

/* The same records from another row on. */
static inline struct records rows_from(const struct records *of, int64_t row)
{
    struct records later = *of;
    if (of->rows)
        later.rows += row;
    else
        later.first += row * of->stride;
    return later;
}

static inline int64_t bytes_of(int64_t dtype)
{
    return (const uint8_t[]){1, 1, 2, 4, 8, 1, 2, 4, 8, 4, 8}[dtype];
}

/* n values of a dtype, `stride` bytes apart, as whole numbers (floats cut, beyond int64 its least,
 * as the processor does it) or as reals. */
void load_whole(const uint8_t *at, int64_t stride, int64_t dtype, int64_t n, int64_t *out);
void load_real(const uint8_t *at, int64_t stride, int64_t dtype, int64_t n, double *out);

/* Reals to whole numbers; what is missing becomes 0. */
void cut(struct values *values, int64_t n);

/* Marks what is null, and of a scalar what is NaN or a sentinel. */
void mark(const struct field *field, const struct records *of, int64_t n, uint8_t *missing);

/* A scalar's values. n <= ROWS. Does not touch `missing`. */
void take_whole(const struct field *field, const struct records *of, int64_t n, int64_t *out);
void take_real(const struct field *field, const struct records *of, int64_t n, double *out);

/* Marks the values that are sentinels. */
void mark_sentinels(const struct sentinels *which, const double *values, int64_t n,
                    uint8_t *missing);

/* The ids of n <= ROWS values, 0 where missing. SEARCH reads `real`, all others `whole`. */
void ids_of(const struct transform *transform, const struct values *values, int64_t n,
            int32_t *ids);

#endif
