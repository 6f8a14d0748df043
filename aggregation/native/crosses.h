/* The values of crosses: aggregation/crosses.py has the table of operators. */
#ifndef ENCORE_CROSSES_H
#define ENCORE_CROSSES_H

#include "columns.h"

enum operator { NONE, CONTAINS, SHARE, POSITION, EQUALS, DIFFERENCE, RATIO, DOT };

/* One column of a tensor: of one field (left), or of an operator on two. floating: whether the
 * operator, or the field, gives reals. again: its operands are those of the slot before, whose
 * matches it takes. above, weight: of a ratio, its prior times its weight. */
struct slot {
    int64_t column, operator, floating, again;
    struct field left, right;
    double above, weight;
    struct transform transform;
};

/* What is kept from one cross to the next of the same operands: where the scalar is found in the
 * sequence, how often and first where (-1 for nowhere), and which rows lack an operand. */
struct matches {
    int64_t count[ROWS], first[ROWS];
    uint8_t missing[ROWS];
};

/* The values of a cross over n <= ROWS rows, whole or real as `slot->floating` says, and what is
 * missing of them. */
void cross(const struct slot *slot, const struct records *left, const struct records *right,
           int64_t n, struct matches *matches, struct values *out);

#endif
