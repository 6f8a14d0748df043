/* Loads the values of columns and finds their ids. Held to schemas/ids.py, which defines them. */
#include "columns.h"

#include <math.h>
#include <string.h>

enum { MISSING = 0, OUT_OF_RANGE = 1, FIRST_ID = 2 };
enum { FEW = 32 }; /* bounds up to which comparing with all of them is faster than a search */

static inline int64_t whole_of(double value)
{
    /* The bounds are exact; NaN fails both. */
    return value >= -9223372036854775808.0 && value < 9223372036854775808.0 ? (int64_t)value
                                                                            : INT64_MIN;
}

#define LOAD(TYPE, CONVERT)                                                                        \
    for (int64_t i = 0; i < n; i++) {                                                              \
        TYPE value;                                                                                \
        memcpy(&value, at + i * stride, sizeof value);                                             \
        out[i] = CONVERT(value);                                                                   \
    }                                                                                              \
    break

#define TRUTH(value) ((value) != 0)
#define WHOLE(value) ((int64_t)(value))
#define REAL(value) ((double)(value))

void load_whole(const uint8_t *at, int64_t stride, int64_t dtype, int64_t n, int64_t *out)
{
    switch (dtype) {
    case BOOL: LOAD(uint8_t, TRUTH);
    case I8: LOAD(int8_t, WHOLE);
    case I16: LOAD(int16_t, WHOLE);
    case I32: LOAD(int32_t, WHOLE);
    case I64: LOAD(int64_t, WHOLE);
    case U8: LOAD(uint8_t, WHOLE);
    case U16: LOAD(uint16_t, WHOLE);
    case U32: LOAD(uint32_t, WHOLE);
    case U64: LOAD(uint64_t, WHOLE);
    case F32: LOAD(float, whole_of);
    case F64: LOAD(double, whole_of);
    }
}

void load_real(const uint8_t *at, int64_t stride, int64_t dtype, int64_t n, double *out)
{
    switch (dtype) {
    case BOOL: LOAD(uint8_t, TRUTH);
    case I8: LOAD(int8_t, REAL);
    case I16: LOAD(int16_t, REAL);
    case I32: LOAD(int32_t, REAL);
    case I64: LOAD(int64_t, REAL);
    case U8: LOAD(uint8_t, REAL);
    case U16: LOAD(uint16_t, REAL);
    case U32: LOAD(uint32_t, REAL);
    case U64: LOAD(uint64_t, REAL);
    case F32: LOAD(float, REAL);
    case F64: LOAD(double, REAL);
    }
}

void take_whole(const struct field *field, const struct records *of, int64_t n, int64_t *out)
{
    if (!of->rows) {
        load_whole(of->first + field->offset, of->stride, field->dtype, n, out);
        return;
    }
    for (int64_t row = 0; row < n; row++)
        load_whole(record(of, row) + field->offset, 0, field->dtype, 1, out + row);
}

void take_real(const struct field *field, const struct records *of, int64_t n, double *out)
{
    if (!of->rows) {
        load_real(of->first + field->offset, of->stride, field->dtype, n, out);
        return;
    }
    for (int64_t row = 0; row < n; row++)
        load_real(record(of, row) + field->offset, 0, field->dtype, 1, out + row);
}

void cut(struct values *values, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        values->whole[i] = values->missing[i] ? 0 : whole_of(values->real[i]);
}

void mark_sentinels(const struct sentinels *which, const double *values, int64_t n,
                    uint8_t *missing)
{
    for (int64_t each = 0; each < which->count; each++) {
        const double sentinel = which->values[each];
        for (int64_t i = 0; i < n; i++)
            missing[i] |= values[i] == sentinel;
    }
}

void mark(const struct field *field, const struct records *of, int64_t n, uint8_t *missing)
{
    if (n > 1 && of->stride == 0 && !of->rows) { /* one record */
        uint8_t lacks = 0;
        mark(field, of, 1, &lacks);
        for (int64_t row = 0; row < n; row++)
            missing[row] |= lacks;
        return;
    }
    const int64_t byte = of->nulls + field->null / 8;
    const int bit = field->null % 8;
    for (int64_t row = 0; row < n; row++)
        missing[row] |= record(of, row)[byte] >> bit & 1;
    if (field->capacity > 0)
        return;
    const int floating = field->dtype == F32 || field->dtype == F64;
    if (!floating && field->sentinels.count == 0)
        return;
    double values[ROWS];
    take_real(field, of, n, values);
    for (int64_t row = 0; floating && row < n; row++)
        missing[row] |= isnan(values[row]) != 0;
    mark_sentinels(&field->sentinels, values, n, missing);
}

static inline uint64_t rotated(uint64_t value, int bits)
{
    return value << bits | value >> (64 - bits);
}

/* XXH3_64bits_withSeed of an int64's 8 little-endian bytes: xxHash 0.8, inputs of 4 to 8 bytes.
 * flip: the secret's two words and the seed, as schemas.ids.seed_flip makes it. */
static inline uint64_t hash(int64_t value, uint64_t flip)
{
    const uint64_t prime = 0x9FB21C651E98DF25u;
    uint64_t mixed = rotated((uint64_t)value, 32) ^ flip;
    mixed ^= rotated(mixed, 49) ^ rotated(mixed, 24);
    mixed *= prime;
    mixed ^= (mixed >> 35) + 8;
    mixed *= prime;
    return mixed ^ mixed >> 28;
}

/* As below, for few bounds: all values against one bound after the other. */
WIDE static void count_bounds(const struct transform *transform, const double *values, int64_t n,
                              int32_t *ids)
{
    int64_t below[ROWS];
    for (int64_t i = 0; i < n; i++)
        below[i] = FIRST_ID;
    for (int64_t bound = 0; bound < transform->count; bound++)
        for (int64_t i = 0; i < n; i++)
            below[i] += transform->bounds[bound] <= values[i];
    for (int64_t i = 0; i < n; i++)
        ids[i] = (int32_t)below[i];
}

/* How many of the ascending bounds are at most the value. */
static inline int32_t bounds_below(const double *bounds, int64_t count, double value)
{
    const double *from = bounds;
    while (count > 1) {
        const int64_t half = count / 2;
        from = from[half - 1] <= value ? from + half : from;
        count -= half;
    }
    return (int32_t)(from - bounds) + (count == 1 && *from <= value);
}

static int32_t word_of(const struct transform *vocabulary, int64_t value)
{
    int64_t from = 0, until = vocabulary->count;
    while (from < until) {
        const int64_t middle = from + (until - from) / 2;
        if (vocabulary->known[middle] < value)
            from = middle + 1;
        else
            until = middle;
    }
    const int found = from < vocabulary->count && vocabulary->known[from] == value;
    return found ? vocabulary->ids[from] : OUT_OF_RANGE;
}

static void hashes(const struct transform *transform, const int64_t *values, int64_t n,
                   int32_t *ids)
{
    const uint64_t buckets = transform->limit, flip = transform->first;
    if ((buckets & (buckets - 1)) == 0)
        for (int64_t i = 0; i < n; i++)
            ids[i] = FIRST_ID + (int32_t)(hash(values[i], flip) & (buckets - 1));
    else
        for (int64_t i = 0; i < n; i++)
            ids[i] = FIRST_ID + (int32_t)(hash(values[i], flip) % buckets);
}

static void ranges(const struct transform *transform, const int64_t *values, int64_t n,
                   int32_t *ids)
{
    for (int64_t i = 0; i < n; i++) {
        const uint64_t value = (uint64_t)values[i]; /* below 0 is huge */
        ids[i] = value < transform->limit ? (int32_t)(value + transform->first) : OUT_OF_RANGE;
    }
}

static void looked_up(const struct transform *transform, const int64_t *values, int64_t n,
                      int32_t *ids)
{
    const int64_t last = transform->count - 1;
    for (int64_t i = 0; i < n; i++) {
        const int64_t place = values[i] < 0 ? 0 : values[i] > last ? last : values[i];
        ids[i] = transform->ids[place];
    }
}

static void searched(const struct transform *transform, const double *values, int64_t n,
                     int32_t *ids)
{
    if (transform->count <= FEW && n > 1) {
        count_bounds(transform, values, n, ids);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        ids[i] = FIRST_ID + bounds_below(transform->bounds, transform->count, values[i]);
}

void ids_of(const struct transform *transform, const struct values *values, int64_t n,
            int32_t *ids)
{
    switch (transform->kind) {
    case RANGE: ranges(transform, values->whole, n, ids); break;
    case HASH: hashes(transform, values->whole, n, ids); break;
    case TABLE: looked_up(transform, values->whole, n, ids); break;
    case SEARCH: searched(transform, values->real, n, ids); break;
    case VOCABULARY:
        for (int64_t i = 0; i < n; i++)
            ids[i] = word_of(transform, values->whole[i]);
        break;
    }
    for (int64_t i = 0; i < n; i++)
        ids[i] = values->missing[i] ? MISSING : ids[i];
}
