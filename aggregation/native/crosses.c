/* The operators. Reals are computed one operation after the other, as numpy does. */
#include "crosses.h"

#include <math.h>
#include <string.h>

enum { BLOCK = 128 }; /* numbers that are summed in one run */
enum { LANES = 4 };   /* values that are compared side by side; divides ROWS */

static inline int64_t length_of(const struct field *field, const uint8_t *in)
{
    uint16_t length;
    memcpy(&length, in + field->length, sizeof length);
    return length < field->capacity ? length : field->capacity;
}

/* LANES values that are compared at once: of equal ones all bits are set. */
typedef int64_t lanes __attribute__((vector_size(LANES * sizeof(int64_t))));

/* `m` entries of a sequence, from its entry `from` on, each held against LANES wanted values. */
static inline void match_lanes(const int64_t *entries, int64_t from, int64_t m,
                               const int64_t *wanted, int64_t *count, int64_t *first)
{
    lanes these, counted, found;
    memcpy(&these, wanted, sizeof these);
    memcpy(&counted, count, sizeof counted);
    memcpy(&found, first, sizeof found);
    for (int64_t entry = m - 1; entry >= 0; entry--) {
        const lanes equal = these == entries[entry];
        counted -= equal;
        found = (found & ~equal) | ((from + entry) & equal);
    }
    memcpy(count, &counted, sizeof counted);
    memcpy(first, &found, sizeof found);
}

/* A sequence against n <= ROWS wanted values. Its parts are taken from the end: what is found
 * nearer to the front takes the place of what was found before. Room and values for whole LANES.
 */
WIDE static void match_sequence(const struct field *field, const uint8_t *in,
                                const int64_t *wanted, int64_t n, int64_t *count, int64_t *first)
{
    const int64_t size = bytes_of(field->dtype), length = length_of(field, in);
    int64_t entries[ROWS];
    for (int64_t from = (length - 1) / ROWS * ROWS; length > 0 && from >= 0; from -= ROWS) {
        const int64_t m = length - from < ROWS ? length - from : ROWS;
        load_whole(in + field->offset + from * size, size, field->dtype, m, entries);
        for (int64_t row = 0; row < n; row += LANES)
            match_lanes(entries, from, m, wanted + row, count + row, first + row);
    }
}

/* Rows [start, stop), which share a sequence. */
static void match_rows(const struct field *field, const uint8_t *in, const int64_t *wanted,
                       int64_t start, int64_t stop, struct matches *matches)
{
    const int64_t n = stop - start;
    int64_t here[ROWS] = {0}, count[ROWS] = {0}, first[ROWS];
    memcpy(here, wanted + start, (size_t)n * sizeof *here);
    memset(first, 0xFF, sizeof first); /* -1 */
    match_sequence(field, in, here, n, count, first);
    memcpy(matches->count + start, count, (size_t)n * sizeof *count);
    memcpy(matches->first + start, first, (size_t)n * sizeof *first);
}

static void match(const struct slot *slot, const struct records *left,
                  const struct records *right, int64_t n, struct matches *matches)
{
    int64_t wanted[ROWS];
    take_whole(&slot->right, right, n, wanted);
    for (int64_t start = 0, stop; start < n; start = stop) {
        const uint8_t *in = record(left, start);
        for (stop = start + 1; stop < n && record(left, stop) == in;)
            stop++;
        match_rows(&slot->left, in, wanted, start, stop, matches);
    }
}

/* Products of the entries [from, from + n) of two vectors, n <= BLOCK. */
static void products(const struct slot *slot, const uint8_t *left, const uint8_t *right,
                     int64_t from, int64_t n, double *out)
{
    const int64_t of_left = bytes_of(slot->left.dtype), of_right = bytes_of(slot->right.dtype);
    double other[BLOCK];
    load_real(left + slot->left.offset + from * of_left, of_left, slot->left.dtype, n, out);
    load_real(right + slot->right.offset + from * of_right, of_right, slot->right.dtype, n, other);
    for (int64_t i = 0; i < n; i++)
        out[i] *= other[i];
}

/* The sum in the order in which numpy adds up a row: eight sums side by side, halves beyond BLOCK.
 */
static double dot(const struct slot *slot, const uint8_t *left, const uint8_t *right, int64_t from,
                  int64_t n)
{
    if (n > BLOCK) {
        const int64_t half = n / 2 - n / 2 % 8;
        const double sum = dot(slot, left, right, from, half);
        return sum + dot(slot, left, right, from + half, n - half);
    }
    double each[BLOCK], sum = 0.0;
    products(slot, left, right, from, n, each);
    int64_t i = 0;
    if (n >= 8) {
        double sums[8];
        memcpy(sums, each, sizeof sums);
        for (i = 8; i < n - n % 8; i += 8)
            for (int lane = 0; lane < 8; lane++)
                sums[lane] += each[i + lane];
        sum = ((sums[0] + sums[1]) + (sums[2] + sums[3]))
              + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    }
    for (; i < n; i++)
        sum += each[i];
    return sum;
}

static void in_sequence(const struct slot *slot, const struct records *left, int64_t n,
                        const struct matches *matches, struct values *out)
{
    for (int64_t row = 0; row < n; row++)
        switch (slot->operator) {
        case CONTAINS: out->whole[row] = matches->count[row] > 0; break;
        case POSITION: out->whole[row] = matches->first[row]; break;
        case SHARE: {
            const int64_t length = length_of(&slot->left, record(left, row));
            out->real[row] = (double)matches->count[row] / (double)(length > 0 ? length : 1);
        }
        }
}

static void of_numbers(const struct slot *slot, const struct records *left,
                       const struct records *right, int64_t n, struct values *out)
{
    double below[ROWS];
    take_real(&slot->left, left, n, out->real);
    take_real(&slot->right, right, n, below);
    if (slot->operator == DIFFERENCE) {
        for (int64_t row = 0; row < n; row++)
            out->real[row] -= below[row];
        return;
    }
    for (int64_t row = 0; row < n; row++) {
        const double whole = below[row] + slot->weight;
        const int zero = whole == 0.0;
        out->real[row] = (out->real[row] + slot->above) / (zero ? 1.0 : whole);
        out->missing[row] |= zero;
    }
}

static void equals(const struct slot *slot, const struct records *left,
                   const struct records *right, int64_t n, struct values *out)
{
    int64_t other[ROWS];
    take_whole(&slot->left, left, n, out->whole);
    take_whole(&slot->right, right, n, other);
    for (int64_t row = 0; row < n; row++)
        out->whole[row] = out->whole[row] == other[row];
}

void cross(const struct slot *slot, const struct records *left, const struct records *right,
           int64_t n, struct matches *matches, struct values *out)
{
    if (!slot->again) {
        memset(matches->missing, 0, sizeof matches->missing);
        mark(&slot->left, left, n, matches->missing);
        mark(&slot->right, right, n, matches->missing);
    }
    memcpy(out->missing, matches->missing, sizeof out->missing);
    switch (slot->operator) {
    case CONTAINS:
    case SHARE:
    case POSITION:
        if (!slot->again)
            match(slot, left, right, n, matches);
        in_sequence(slot, left, n, matches, out);
        break;
    case EQUALS: equals(slot, left, right, n, out); break;
    case DIFFERENCE:
    case RATIO: of_numbers(slot, left, right, n, out); break;
    case DOT:
        for (int64_t row = 0; row < n; row++)
            out->real[row] = dot(slot, record(left, row), record(right, row), 0,
                                 slot->left.capacity);
    }
}
