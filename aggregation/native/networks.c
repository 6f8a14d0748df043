/* Scores of one user's candidates by the two networks: checks what a request says, then computes in
 * vectors as wide as there are. Products may be fused with sums here: scores have a tolerance. */
#include "networks.h"

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VECTORS 1
#include <immintrin.h>
#endif

#define JOINED(name, width) name##_##width

#ifdef VECTORS
#pragma GCC push_options
#pragma GCC target("avx512f,fma")
#define LANES 16
#define NAME(name) JOINED(name, 16)
#include "lanes.h"
#undef LANES
#undef NAME
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define LANES 8
#define NAME(name) JOINED(name, 8)
#include "lanes.h"
#undef LANES
#undef NAME
#pragma GCC pop_options
#endif

#define LANES 4
#define NAME(name) JOINED(name, 4)
#include "lanes.h"

EXPORT int64_t network_lanes(void);
EXPORT void network_sizes(int64_t *out);
EXPORT int64_t tower_scratch(const struct tower *tower);
EXPORT int64_t fine_scratch(const struct fine *fine);
EXPORT int64_t tower_scores(const struct tower *tower, const struct request *request,
                            void *scratch, float *out);
EXPORT int64_t fine_scores(const struct fine *fine, const struct request *request, void *scratch,
                           float *out);

/* How many candidates this machine computes at once. */
int64_t network_lanes(void)
{
#ifdef VECTORS
    if (__builtin_cpu_supports("fma"))
        return __builtin_cpu_supports("avx512f") ? 16 : __builtin_cpu_supports("avx2") ? 8 : 4;
#endif
    return 4;
}

/* Of the structures, so that who lays them out can be held to it. */
void network_sizes(int64_t *out)
{
    out[0] = sizeof(struct column);
    out[1] = sizeof(struct side);
    out[2] = sizeof(struct entries);
    out[3] = sizeof(struct layer);
    out[4] = sizeof(struct attention);
    out[5] = sizeof(struct tower);
    out[6] = sizeof(struct fine);
    out[7] = sizeof(struct request);
    out[8] = sizeof(struct listed);
}

/* --- what a request says ---------------------------------------------------------------------- */

/* A negative id is a large one. */
static int fit(const int32_t *ids, const int32_t *counts, int64_t n)
{
    uint32_t outside = 0;
    for (int64_t each = 0; each < n; each++)
        outside |= (uint32_t)ids[each] >= (uint32_t)counts[each];
    return !outside;
}

static int sequence_fits(const struct base *base, const struct request *request, int64_t place)
{
    const struct listed *listed = &request->listed[place];
    const int64_t length = length_of(base, request, place);
    if (length < 0 || length > listed->width || length > base->longest)
        return 0;
    for (int64_t entry = 0; entry < length; entry++)
        if (listed->ids[entry] < 0 || listed->ids[entry] >= base->sequences[place].count)
            return 0;
    return 1;
}

/* FITS, or what does not; SEQUENCES + p of sequence p. */
static int64_t check(const struct base *base, const struct request *request)
{
    if (!fit(request->user, base->users.counts, base->users.slots))
        return USER_SLOTS;
    for (int64_t each = 0; request->rows && each < request->n; each++)
        if (request->rows[each] < 0 || request->rows[each] >= request->held)
            return ROWS_ASKED;
    for (int64_t each = 0; each < request->n; each++)
        if (!fit(ids_at(request, each), base->items.counts, base->items.slots))
            return ITEM_SLOTS;
    for (int64_t place = 0; place < base->n_sequences; place++)
        if (!sequence_fits(base, request, place))
            return SEQUENCES + place;
    return FITS;
}

/* --- scratch ---------------------------------------------------------------------------------- */

static int64_t most(int64_t left, int64_t right)
{
    return left > right ? left : right;
}

/* The parts of any width's scratch. row: floats of a user's row. hidden, next: vectors. */
struct parts {
    int64_t row, hidden, next;
};

static void arrange(const struct base *base, const struct parts *parts, struct room *room,
                    struct scratch *out)
{
    const struct side *users = &base->users, *items = &base->items;
    const int64_t vector = 4 * base->lanes, embedding = base->embedding;
    out->rows = part(room, (int64_t)sizeof *out->rows * most(users->n_folded, items->n_folded));
    out->row = part(room, 4 * parts->row);
    out->fields = part(room, 4 * (users->n_plain + base->n_sequences) * embedding);
    out->other = part(room, 4 * parts->row);
    out->sums = part(room, vector * items->width);
    out->both = part(room, vector * items->width);
    out->plain = part(room, vector * items->n_plain * embedding);
    out->hidden = part(room, vector * parts->hidden);
    out->next = part(room, vector * parts->next);
    out->scores = part(room, vector * base->longest);
}

static void arrange_tower(const struct tower *tower, struct room *room, struct scratch *out)
{
    struct parts parts = {tower->base.users.width, 0, 0};
    for (int64_t each = 0; each < tower->n_user_layers; each++)
        parts.row = most(parts.row, rounded_up(tower->user_layers[each].outputs, WIDTH));
    for (int64_t each = 0; each < tower->n_item_layers; each++)
        parts.hidden = most(parts.hidden, rounded_up(tower->item_layers[each].outputs, TILE));
    parts.next = parts.hidden;
    arrange(&tower->base, &parts, room, out);
}

static void arrange_fine(const struct fine *fine, struct room *room, struct scratch *out)
{
    const struct base *base = &fine->base;
    const int64_t width = base->embedding;
    const struct parts parts = {most(base->users.width, width),
                                (fine->n_attended + 1) * width + TILE,
                                most(rounded_up(fine->mixing.outputs, TILE), width)};
    arrange(base, &parts, room, out);
    struct prepared *all = part(room, (int64_t)sizeof *all * fine->n_attended);
    out->prepared = all;
    for (int64_t each = 0; each < fine->n_attended; each++) {
        const int64_t wide = fine->attended[each].width;
        const struct prepared one = {
            part(room, 4 * base->longest * rounded_up(wide, TILE) * width),
            part(room, 4 * base->longest * rounded_up(wide, WIDTH)),
            part(room, 4 * base->longest * rounded_up(width, TILE)),
            0,
        };
        if (room->at)
            all[each] = one;
    }
}

/* Bytes that a call needs, aligned as weights are. */
int64_t tower_scratch(const struct tower *tower)
{
    struct room room = {0};
    struct scratch use;
    arrange_tower(tower, &room, &use);
    return room.bytes;
}

int64_t fine_scratch(const struct fine *fine)
{
    struct room room = {0};
    struct scratch use;
    arrange_fine(fine, &room, &use);
    return room.bytes;
}

/* --- scores ----------------------------------------------------------------------------------- */

/* Logits, (n,). Returns FITS, or what does not fit, and computes nothing then. Whoever calls from
 * two threads at once has two scratch buffers. */
int64_t tower_scores(const struct tower *tower, const struct request *request, void *buffer,
                     float *out)
{
    const int64_t found = check(&tower->base, request);
    if (found != FITS)
        return found;
    struct room room = {buffer, 0};
    struct scratch use;
    arrange_tower(tower, &room, &use);
#ifdef VECTORS
    if (tower->base.lanes == 16)
        tower_16(tower, request, &use, out);
    else if (tower->base.lanes == 8)
        tower_8(tower, request, &use, out);
    else
#endif
        tower_4(tower, request, &use, out);
    return FITS;
}

/* Logits, (n, tasks). As `tower_scores`. */
int64_t fine_scores(const struct fine *fine, const struct request *request, void *buffer,
                    float *out)
{
    const int64_t found = check(&fine->base, request);
    if (found != FITS)
        return found;
    struct room room = {buffer, 0};
    struct scratch use;
    arrange_fine(fine, &room, &use);
#ifdef VECTORS
    if (fine->base.lanes == 16)
        fine_16(fine, request, &use, out);
    else if (fine->base.lanes == 8)
        fine_8(fine, request, &use, out);
    else
#endif
        fine_4(fine, request, &use, out);
    return FITS;
}
