/* The cascade's two networks for one user and n candidates, as predictor/folding.py splits them.
 *
 * A first layer over embeddings is a sum over slots: tables that were multiplied by their slot's
 * weights ("folded") are looked up and added; of the others ("plain") the embeddings are looked up
 * and multiplied here.
 *
 *     E  width of an embedding      O  outputs of a first layer     A  width of the attention
 *     H  hidden width               X  shared experts, W wide       T  tasks
 *
 * Weights of what is computed once a request lie by inputs, (inputs, outputs), the outputs filled
 * up with zeros to a multiple of WIDTH. Weights of what is computed for each candidate lie in tiles
 * of TILE outputs, (tiles, inputs, TILE), filled up, too. Blocks are aligned to ALIGNED bytes. */
#ifndef ENCORE_NETWORKS_H
#define ENCORE_NETWORKS_H

#include "kernels.h"

enum { WIDTH = 16, TILE = 8, ALIGNED = 64 };

/* A slot: its place among the ids, and its rows. */
struct column {
    int64_t place;
    const float *rows;
};

/* The first layer over one side's slots. counts: of each slot's rows. outputs: O. width: of folded
 * rows, and of the sum: O, or O + 2 E with e and e * e behind it, up to a multiple of WIDTH.
 * weight: of the plain slots; of a user's side, and of its sequences behind them. bias: (width,) */
struct side {
    const int32_t *counts;
    const struct column *folded, *plain;
    int64_t slots, n_folded, n_plain, outputs, width;
    const float *weight, *bias;
};

/* A sequence: its table, and the sequence whose length it has. */
struct entries {
    const float *rows;
    int64_t count, leader;
};

struct layer {
    const float *weight, *bias;
    int64_t inputs, outputs, rectified; /* rectified: its inputs are, before */
};

/* What a candidate attends. places: of the sequences; queries: the slots that ask. query, product:
 * (A, E) in tiles; key: (E, A) by inputs; key_bias, score: (A,). */
struct attention {
    const int64_t *places;
    const struct column *queries;
    int64_t n_places, n_queries, width;
    const float *query, *product, *key, *key_bias, *score;
};

/* What both have. lanes: which build computes it. longest: entries of any sequence, at most. */
struct base {
    int64_t lanes, embedding, n_sequences, longest;
    const struct entries *sequences;
    struct side users, items;
};

/* The user's layers behind the first give what a candidate's last hidden layer is multiplied by,
 * and one number more, which is added. rectified: whether that layer is, before. */
struct tower {
    struct base base;
    const struct layer *user_layers, *item_layers;
    int64_t n_user_layers, n_item_layers, rectified;
};

/* bottom: of the attended and the interactions, (n_attended + 1) E -> H. mixing: H -> the experts,
 * (X + T) W, and then the gates, T (X + 1). heads: (T, W). bias: (T,). */
struct fine {
    struct base base;
    const struct attention *attended;
    int64_t n_attended, tasks, shared, expert;
    struct layer bottom, mixing;
    const float *heads, *bias;
};

/* A user's ids of a sequence, (width,), and its length, (1,). */
struct listed {
    const int32_t *ids, *length;
    int64_t width;
};

/* items: (held, ...), each stride ints behind the one before. rows: which n of them, NULL for all.
 * Behind it lie as many `struct listed` as the network has sequences. */
struct request {
    const int32_t *user, *items;
    const int64_t *rows;
    int64_t stride, held, n;
    struct listed listed[];
};

/* Which of its parts does not fit: a length lies outside of its sequence, or an id of its table. */
enum { FITS, USER_SLOTS, ITEM_SLOTS, ROWS_ASKED, SEQUENCES };

static inline int64_t rounded_up(int64_t value, int64_t to)
{
    return (value + to - 1) / to * to;
}

static inline const int32_t *ids_at(const struct request *request, int64_t candidate)
{
    const int64_t row = request->rows ? request->rows[candidate] : candidate;
    return request->items + row * request->stride;
}

/* How many entries a sequence has. */
static inline int64_t length_of(const struct base *base, const struct request *request,
                                int64_t place)
{
    return request->listed[base->sequences[place].leader].length[0];
}

/* Of the user's part of an attention. by_key: of each entry (A, E) in tiles. keyed: (length, A),
 * filled up. values: (E, length) in tiles. */
struct prepared {
    float *by_key, *keyed, *values;
    int64_t length;
};

/* What a call computes in. row, fields, other: of the user. sums: rows of candidates. Others lie
 * by lanes: both is the same, plain what is looked up. */
struct scratch {
    const float **rows;
    float *row, *fields, *other, *sums, *both, *plain, *hidden, *next, *scores;
    struct prepared *prepared;
};

/* Hands out a scratch buffer, part after part; without one it only counts. */
struct room {
    char *at;
    int64_t bytes;
};

static inline void *part(struct room *room, int64_t bytes)
{
    void *start = room->at ? room->at + room->bytes : NULL;
    room->bytes += rounded_up(bytes, ALIGNED);
    return start;
}

#endif
