/* Value blocks to tensors: what aggregation/slots.py, crossing.py and sequence_slots.py do, in one
 * call a request. Slots are computed column by column, ROWS records at a time. */
#include "crosses.h"

#include <math.h>
#include <string.h>

/* A sequence of the user. width: entries it has in its tensor, at most its capacity. */
struct sequence {
    int64_t width;
    struct field field;
    struct transform transform;
};

/* One service. The users' slots, then the items': those that no user has a part in first. */
struct program {
    const struct slot *user_slots, *item_slots;
    const struct sequence *sequences;
    int64_t user_width, item_width, own_width, n_sequences;
    int64_t user_nulls, item_nulls; /* offsets of the bitmaps */
};

/* Blocks: the address of the first record, and how many bytes further the next one lies. */
struct blocks {
    const uint8_t *users, *items;
    int64_t users_stride, items_stride;
    int64_t n_users, n_items;
    const int64_t *user_of; /* the record of each item's user, NULL where all have one */
    const uint8_t *own_ids; /* known ids of the own slots, NULL for none */
    int64_t own_stride;
};

EXPORT int64_t tensors(const struct program *program, const struct blocks *blocks, int32_t *out);
EXPORT int64_t own_ids(const struct program *program, const struct blocks *blocks, int32_t *out);
EXPORT void sizes(int64_t *out);

/* Of the structures, so that who lays them out can be held to it. */
void sizes(int64_t *out)
{
    out[0] = sizeof(struct slot);
    out[1] = sizeof(struct sequence);
    out[2] = sizeof(struct program);
    out[3] = sizeof(struct blocks);
}

/* A slot's values, and what is missing of them. */
static void slot_values(const struct slot *slot, const struct records sides[2], int64_t n,
                        struct matches *matches, struct values *out)
{
    const int wants_real = slot->transform.kind == SEARCH;
    const struct records *left = &sides[slot->left.side];
    if (slot->operator == NONE) {
        memset(out->missing, 0, sizeof out->missing);
        mark(&slot->left, left, n, out->missing);
        if (wants_real || slot->floating)
            take_real(&slot->left, left, n, out->real);
        else
            take_whole(&slot->left, left, n, out->whole);
        if (slot->floating && !wants_real)
            cut(out, n);
        return;
    }
    cross(slot, left, &sides[slot->right.side], n, matches, out);
    if (!slot->floating)
        for (int64_t row = 0; row < n; row++)
            out->real[row] = (double)out->whole[row];
    else
        for (int64_t row = 0; row < n; row++)
            out->missing[row] |= isnan(out->real[row]) != 0;
    mark_sentinels(&slot->transform.sentinels, out->real, n, out->missing);
    if (slot->floating && !wants_real)
        cut(out, n);
}

/* The ids of all slots over n <= ROWS rows. out: (n, width). */
static void fill_rows(const struct slot *slots, int64_t n_slots, const struct records sides[2],
                      int64_t n, int32_t *out, int64_t width)
{
    struct values values;
    struct matches matches;
    int32_t ids[ROWS];
    for (const struct slot *slot = slots; slot < slots + n_slots; slot++) {
        slot_values(slot, sides, n, &matches, &values);
        ids_of(&slot->transform, &values, n, ids);
        int32_t *column = out + slot->column;
        for (int64_t row = 0; row < n; row++)
            column[row * width] = ids[row];
    }
}

static void fill(const struct slot *slots, int64_t n_slots, const struct records sides[2],
                 int64_t n, int32_t *out, int64_t width)
{
    for (int64_t row = 0; row < n; row += ROWS) {
        const struct records some[2] = {rows_from(&sides[0], row), rows_from(&sides[1], row)};
        const int64_t m = n - row < ROWS ? n - row : ROWS;
        fill_rows(slots, n_slots, some, m, out + row * width, width);
    }
}

/* Each user's ids of one sequence, (n, width), and its lengths, (n,). */
static void fill_sequence(const struct sequence *sequence, const struct records *users, int64_t n,
                          int32_t *out, int32_t *lengths)
{
    const struct field *field = &sequence->field;
    const int64_t size = bytes_of(field->dtype);
    const int floating = field->dtype == F32 || field->dtype == F64;
    const int wants_real = sequence->transform.kind == SEARCH;
    struct values values;
    for (int64_t user = 0; user < n; user++) {
        const uint8_t *in = record(users, user);
        uint16_t length;
        memcpy(&length, in + field->length, sizeof length);
        lengths[user] = length < sequence->width ? length : (int32_t)sequence->width;
        for (int64_t from = 0; from < sequence->width; from += ROWS) {
            const int64_t rest = sequence->width - from, m = rest < ROWS ? rest : ROWS;
            const uint8_t *at = in + field->offset + from * size;
            load_real(at, size, field->dtype, m, values.real);
            for (int64_t i = 0; i < m; i++)
                values.missing[i] = from + i >= lengths[user] || isnan(values.real[i]);
            mark_sentinels(&sequence->field.sentinels, values.real, m, values.missing);
            if (floating)
                cut(&values, m);
            else if (!wants_real)
                load_whole(at, size, field->dtype, m, values.whole);
            ids_of(&sequence->transform, &values, m, out + user * sequence->width + from);
        }
    }
}

static void copy_own(const struct program *program, const struct blocks *blocks, int32_t *out)
{
    const size_t bytes = (size_t)program->own_width * sizeof *out;
    for (int64_t row = 0; row < blocks->n_items; row++)
        memcpy(out + row * program->item_width, blocks->own_ids + row * blocks->own_stride, bytes);
}

/* (n_items, own_width): the ids of the slots that no user has a part in. */
int64_t own_ids(const struct program *program, const struct blocks *blocks, int32_t *out)
{
    const struct records items = {blocks->items, blocks->items_stride, NULL, program->item_nulls};
    const struct records sides[2] = {items, items};
    fill(program->item_slots, program->own_width, sides, blocks->n_items, out, program->own_width);
    return 0;
}

/* One after the other: (n_users, user_width), (n_items, item_width), the lengths, (n_sequences,
 * n_users), and of each sequence (n_users, its width). Returns 0, -1 where an item's user is none
 * of the users: then nothing was written. */
int64_t tensors(const struct program *program, const struct blocks *blocks, int32_t *out)
{
    const int64_t n_users = blocks->n_users, n_items = blocks->n_items;
    for (int64_t row = 0; blocks->user_of && row < n_items; row++)
        if (blocks->user_of[row] < 0 || blocks->user_of[row] >= n_users)
            return -1;
    struct records users = {blocks->users, blocks->users_stride, NULL, program->user_nulls};
    const struct records items = {blocks->items, blocks->items_stride, NULL, program->item_nulls};
    const struct records alone[2] = {users, users};
    fill(program->user_slots, program->user_width, alone, n_users, out, program->user_width);
    out += n_users * program->user_width;

    int32_t *lengths = out + n_items * program->item_width;
    int32_t *entries = lengths + program->n_sequences * n_users;
    for (int64_t each = 0; each < program->n_sequences; each++) {
        fill_sequence(&program->sequences[each], &users, n_users, entries, lengths);
        entries += n_users * program->sequences[each].width;
        lengths += n_users;
    }

    users.rows = blocks->user_of;
    if (!users.rows)
        users.stride = 0;
    const struct records both[2] = {users, items};
    const int64_t known = blocks->own_ids ? program->own_width : 0;
    if (known)
        copy_own(program, blocks, out);
    fill(program->item_slots + known, program->item_width - known, both, n_items, out,
         program->item_width);
    return 0;
}
