/* Stored rows → the values of one side of a request, as `aggregation/block.py` does with numpy.
 *
 * A few rows at a time stay in the nearest cache while one feature after the other is computed of
 * them. Where a row lies was said by its reader, how long a sequence in it is by the row itself:
 * that is checked before anything else is read. The row's checksum was checked before. */
#include <stdlib.h>

#include "numbers.h"

enum { ROWS = 16 };

/* Some rows of one view on their way. */
struct block {
    const struct side *side;
    const struct view *view;
    int64_t n, now_ms;
    const uint8_t *rows[ROWS];
    uint8_t alive[ROWS];   /* within the TTL */
    uint8_t corrupt[ROWS]; /* all features are null, whatever an empty row's are */
    uint8_t *records, *null;
    uint64_t *hashes;
    struct span spans[MOST_WINDOWS][ROWS];
    struct { int64_t skip, remain; } entries[MOST_SEQUENCES][ROWS];
    double kept[MOST_KEPT][ROWS];
    uint8_t kept_null[MOST_KEPT][ROWS];
};

/* --- where a value goes -------------------------------------------------------------------- */

static inline uint8_t *record_of(const struct block *block, int64_t row) {
    return block->records + row * block->side->record_bytes;
}

static inline void set_null(const struct block *block, const struct operation *op, int64_t row) {
    if (op->place < 0) return;
    block->null[row * block->side->null_count + op->place] = 1;
    record_of(block, row)[block->side->null_at + op->place / 8] |= (uint8_t)(1 << op->place % 8);
}

/* Where one number goes: the record, or, where only a ratio reads it, `beside`. */
static inline uint8_t *place_of(const struct block *block, const struct operation *op, int64_t row,
                                uint8_t *beside) {
    return op->place < 0 ? beside : record_of(block, row) + op->to;
}

static inline void put_number(struct block *block, const struct operation *op, int64_t row,
                              const uint8_t *number, int null) {
    if (null) set_null(block, op, row);
    if (op->kept < 0) return;
    block->kept[op->kept][row] = float_at(number, op->type);
    block->kept_null[op->kept][row] = (uint8_t)null;
}

static inline void give_whole(struct block *block, const struct operation *op, int64_t row,
                              int64_t value, int null) {
    uint8_t beside[8] = {0}, *to = place_of(block, op, row, beside);
    put_whole(to, op->type, value);
    put_number(block, op, row, to, null);
}

static inline void give_float(struct block *block, const struct operation *op, int64_t row,
                              double value, int null) {
    uint8_t beside[8] = {0}, *to = place_of(block, op, row, beside);
    put_float(to, op->type, value);
    put_number(block, op, row, to, null);
}

/* --- kinds of features --------------------------------------------------------------------- */

static void fields(struct block *block, const struct operation *op) {
    const int64_t alike = op->type == op->sources[0].type ? width_of(op->type) : 0;
    for (int64_t row = 0; row < block->n; row++) {
        const uint8_t *stored = block->rows[row];
        const int null = !((stored[op->present_at] & op->present_mask) && block->alive[row]);
        uint8_t beside[8] = {0}, *to = place_of(block, op, row, beside);
        if (!null && alike == 8)
            memcpy(to, stored + op->sources[0].at, 8);
        else if (!null && alike == 4)
            memcpy(to, stored + op->sources[0].at, 4);
        else if (!null)
            copy(to, op->type, stored + op->sources[0].at, op->sources[0].type, 1);
        put_number(block, op, row, to, null);
    }
}

static void vectors(struct block *block, const struct operation *op) {
    for (int64_t row = 0; row < block->n; row++) {
        const uint8_t *stored = block->rows[row];
        if (!((stored[op->present_at] & op->present_mask) && block->alive[row])) {
            set_null(block, op, row);
            continue;
        }
        int64_t length = LOAD(uint32_t, stored + op->length_at);
        length = length < op->length ? length : op->length;
        uint8_t *record = record_of(block, row);
        copy(record + op->to, op->type, stored + op->sources[0].at, op->sources[0].type, length);
        STORE(uint16_t, record + op->length_to, length);
    }
}

static void columns(struct block *block, const struct operation *op) {
    const int64_t step = width_of(op->sources[0].type);
    for (int64_t row = 0; row < block->n; row++) {
        const int64_t skip = block->entries[op->sequence][row].skip;
        int64_t count = block->entries[op->sequence][row].remain;
        count = count < op->length ? count : op->length;
        const uint8_t *from = block->rows[row] + op->sources[0].at + skip * step;
        uint8_t *record = record_of(block, row);
        copy(record + op->to, op->type, from, op->sources[0].type, count);
        STORE(uint16_t, record + op->length_to, count);
    }
}

static int64_t age_of(const struct block *block, const uint8_t *time) {
    return (int64_t)((uint64_t)block->now_ms - LOAD(uint64_t, time));
}

static void ages(struct block *block, const struct operation *op) {
    const int64_t width = width_of(op->type);
    for (int64_t row = 0; row < block->n; row++) {
        const int64_t skip = block->entries[op->sequence][row].skip;
        int64_t count = block->entries[op->sequence][row].remain;
        count = count < op->length ? count : op->length;
        const uint8_t *times = block->rows[row] + op->sources[0].at + skip * 8;
        uint8_t *record = record_of(block, row);
        for (int64_t at = 0; at < count; at++)
            put_whole(record + op->to + at * width, op->type, age_of(block, times + 8 * at));
        STORE(uint16_t, record + op->length_to, count);
    }
}

static void lasts(struct block *block, const struct operation *op) {
    const struct sequence *sequence = &block->view->sequences[op->sequence];
    const struct source *source = &op->sources[0];
    for (int64_t row = 0; row < block->n; row++) {
        const int64_t skip = block->entries[op->sequence][row].skip;
        int there = block->entries[op->sequence][row].remain > 0;
        int64_t value = 0;
        if (there) {
            const uint8_t *stored = block->rows[row];
            const int64_t age_ms = age_of(block, stored + sequence->times_at + 8 * skip);
            there = op->within_ms == 0 || age_ms < op->within_ms;
            if (there)
                value = op->of_time ? age_ms
                                    : whole_at(stored + source->at + skip * width_of(source->type),
                                               source->type);
        }
        give_whole(block, op, row, value, !there);
    }
}

/* The total of one of a feature's rings in each row. */
static void total(const struct block *block, const struct operation *op, int which,
                  int64_t *totals) {
    const struct source *source = &op->sources[which];
    totals_of(block->rows, block->n, source, block->view->windows[source->window].ring_tiles,
              block->spans[source->window], totals);
}

static void windows(struct block *block, const struct operation *op) {
    int64_t totals[ROWS];
    total(block, op, 0, totals);
    if (op->type == I64 && op->place >= 0 && op->kept < 0) {
        uint8_t *to = block->records + op->to;
        for (int64_t row = 0; row < block->n; row++, to += block->side->record_bytes)
            STORE(int64_t, to, totals[row]);
        return;
    }
    for (int64_t row = 0; row < block->n; row++) give_whole(block, op, row, totals[row], 0);
}

static void means(struct block *block, const struct operation *op) {
    int64_t sums[ROWS], counts[ROWS];
    total(block, op, 0, sums);
    total(block, op, 1, counts);
    for (int64_t row = 0; row < block->n; row++) {
        const double value = (double)sums[row] / (double)(counts[row] > 1 ? counts[row] : 1);
        give_float(block, op, row, value, counts[row] == 0);
    }
}

static void deviations(struct block *block, const struct operation *op) {
    const struct source *source = &op->sources[0];
    const int64_t ring_tiles = block->view->windows[source->window].ring_tiles;
    int64_t sums[ROWS], counts[ROWS];
    total(block, op, 1, sums);
    total(block, op, 2, counts);
    for (int64_t row = 0; row < block->n; row++) {
        const int64_t count = counts[row];
        int64_t low, high;
        squares_of(block->rows[row] + source->at, ring_tiles, block->spans[source->window][row],
                   &low, &high);
        const double value = count == 0 ? 0.0 : deviation_of(count, sums[row], low, high);
        give_float(block, op, row, value, count == 0);
    }
}

/* min, max, distinct, decayed_sum: of one ring each. */
static void of_rings(struct block *block, const struct operation *op) {
    const struct source *source = &op->sources[0];
    const int64_t ring_tiles = block->view->windows[source->window].ring_tiles;
    for (int64_t row = 0; row < block->n; row++) {
        const uint8_t *ring = block->rows[row] + source->at;
        const struct span span = block->spans[source->window][row];
        if (op->kind == DECAYED) {
            give_float(block, op, row,
                       decayed_of(ring, source->type, ring_tiles, span, op->weights), 0);
        } else if (op->kind == DISTINCT) {
            const int64_t count = distinct_of(ring, ring_tiles, op->width, span, block->hashes);
            give_whole(block, op, row, count, 0);
        } else { /* 1 + the value; 0 where there is none */
            const uint64_t found = op->kind == LEAST ? least_of(ring, ring_tiles, span)
                                                     : greatest_of(ring, ring_tiles, span);
            const int64_t value = (int64_t)(found - 1);
            give_whole(block, op, row, value > 0 && found ? value : 0, found == 0);
        }
    }
}

static void ratios(struct block *block, const struct operation *op) {
    for (int64_t row = 0; row < block->n; row++) {
        const double below = block->kept[op->below][row] + op->weight;
        const int null = below == 0.0 || block->kept_null[op->above][row] ||
                         block->kept_null[op->below][row];
        const double value =
            null ? 0.0 : (block->kept[op->above][row] + op->smoothing) / below;
        give_float(block, op, row, value, null);
    }
}

/* --- a block of rows ----------------------------------------------------------------------- */

static void look_at_windows(struct block *block) {
    for (int64_t at = 0; at < block->view->window_count; at++) {
        const struct window *window = &block->view->windows[at];
        const int64_t now_tile = floor_div(block->now_ms, window->hop_ms);
        const int64_t now_slot =
            now_tile - floor_div(now_tile, window->ring_tiles) * window->ring_tiles;
        for (int64_t row = 0; row < block->n; row++) {
            const uint8_t *stored = block->rows[row];
            const int held = (stored[window->present_at] & window->present_mask) != 0;
            block->spans[at][row] =
                held && block->alive[row]
                    ? span_of(window, now_tile, now_slot, LOAD(int64_t, stored + window->head_at))
                    : (struct span){0, 0, 0};
        }
    }
}

/* `sequences.visible`: entries after now lead, and are left out. */
static void look_at_sequences(struct block *block) {
    for (int64_t at = 0; at < block->view->sequence_count; at++) {
        const struct sequence *sequence = &block->view->sequences[at];
        for (int64_t row = 0; row < block->n; row++) {
            const uint8_t *stored = block->rows[row];
            const int64_t length =
                block->alive[row] ? LOAD(uint32_t, stored + sequence->length_at) : 0;
            int64_t skip = 0;
            for (int64_t entry = 0; entry < length; entry++)
                skip += LOAD(int64_t, stored + sequence->times_at + 8 * entry) > block->now_ms;
            block->entries[at][row].skip = skip;
            block->entries[at][row].remain = length - skip;
        }
    }
}

static void compute(struct block *block) {
    look_at_windows(block);
    look_at_sequences(block);
    for (int64_t at = 0; at < block->view->operation_count; at++) {
        const struct operation *op = &block->view->operations[at];
        switch (op->kind) {
        case FIELD: fields(block, op); break;
        case VECTOR: vectors(block, op); break;
        case WINDOW: windows(block, op); break;
        case SEQUENCE: columns(block, op); break;
        case AGE: ages(block, op); break;
        case LAST: lasts(block, op); break;
        case MEAN: means(block, op); break;
        case DEVIATION: deviations(block, op); break;
        case RATIO: ratios(block, op); break;
        default: of_rings(block, op);
        }
    }
}

/* Of a corrupt row nothing is known: it was computed as an empty one. */
static void null_corrupt(const struct block *block) {
    for (int64_t row = 0; row < block->n; row++)
        for (int64_t at = 0; block->corrupt[row] && at < block->view->operation_count; at++)
            set_null(block, &block->view->operations[at], row);
}

/* What there is of a row. */
enum found { NOTHING, OWN, WRONG, OTHER };

/* OWN: of this view's layout and this entity, its lengths within capacities. OTHER: of another
 * layout. */
static inline enum found looked_at(const struct view *view, const uint8_t *row, int64_t size,
                                   int64_t entity_id) {
    if (size < 0) return size == ABSENT ? NOTHING : WRONG;
    if (size != view->row_bytes) return OTHER;
    if (LOAD(uint32_t, row + view->trailer_at) != (uint32_t)view->layout_id) return OTHER;
    if (LOAD(int64_t, row + view->entity_at) != entity_id) return WRONG;
    for (int64_t at = 0; at < view->vector_count; at++) {
        const struct vector *vector = &view->vectors[at];
        if (LOAD(uint32_t, row + vector->length_at) > vector->capacity) return WRONG;
    }
    return OWN;
}

/* The trailer's part: fence, status, whether it is alive. Returns the newest event time. */
static int64_t look_at_trailer(struct block *block, int64_t row, enum found found, uint8_t *fence,
                               uint8_t *status) {
    const struct side *side = block->side;
    const uint8_t *trailer = block->rows[row] + block->view->trailer_at;
    const uint32_t epoch = LOAD(uint32_t, trailer + 4);
    const int64_t newest_ms = LOAD(int64_t, trailer + 16), ttl_ms = block->view->ttl_ms;
    memcpy(fence, trailer + 4, 12);
    block->alive[row] = !(ttl_ms > 0 && newest_ms < block->now_ms - ttl_ms);
    const int dead = newest_ms == side->tombstone_ms && epoch > 0;
    *status = (uint8_t)(found == OTHER   ? LEFT
                        : found == WRONG ? side->corrupt
                        : found == OWN && !dead && block->alive[row] ? side->present
                                                                     : side->not_found);
    block->corrupt[row] = found == WRONG;
    return newest_ms;
}

/* --- all of them --------------------------------------------------------------------------- */

/* Walks the runs, one value after the other. */
struct walk {
    const struct request *request;
    int64_t run, index;
};

/* Whether all values of all runs lie inside the buffer, and there are as many as are needed. */
static int all_inside(const struct request *request, int64_t needed) {
    int64_t found = 0;
    for (int64_t at = 0; at < request->run_count; at++) {
        const struct run *run = &request->runs[at];
        if (run->first != found || run->many < 1 || run->many > needed - found) return 0;
        found += run->many;
        if (run->size < 0) continue;
        const int64_t room = request->buffer_bytes - run->size;
        if (run->start < 0 || run->start > room || run->stride < 0) return 0;
        if (run->stride && (room - run->start) / run->stride < run->many - 1) return 0;
    }
    return found == needed;
}

/* The next value; NULL where there is none. size: of it, or why there is none. */
static inline const uint8_t *next_value(struct walk *walk, int64_t *size) {
    const struct run *run = &walk->request->runs[walk->run];
    const int64_t index = walk->index++;
    if (walk->index == run->many) {
        walk->run++;
        walk->index = 0;
    }
    *size = run->size;
    return run->size < 0 ? NULL : walk->request->buffer + run->start + index * run->stride;
}

/* One view's rows. left: set where a row was. Returns the newest event time, 0 for none. */
static int64_t view_values(struct block *block, const struct request *request, struct walk *walk,
                           int64_t index, int *left) {
    const struct side *side = block->side;
    const struct view *view = block->view = &side->views[index];
    int64_t newest_ms = 0, size;
    for (int64_t start = 0; start < request->n; start += ROWS) {
        int wrong = 0;
        block->n = request->n - start < ROWS ? request->n - start : ROWS;
        block->records = request->values + start * side->record_bytes;
        block->null = request->null + start * side->null_count;
        for (int64_t row = 0; row < block->n; row++) {
            const uint8_t *value = next_value(walk, &size);
            const int64_t entity_id = request->entity_ids[start + row];
            const enum found found = looked_at(view, value, size, entity_id);
            block->rows[row] = found == OWN ? value : view->empty;
            const int64_t at = (start + row) * side->view_count + index;
            const int64_t event_ms = look_at_trailer(block, row, found, request->fences + 12 * at,
                                                     request->status + at);
            newest_ms = event_ms > newest_ms ? event_ms : newest_ms;
            wrong |= found == WRONG;
            *left |= found == OTHER;
        }
        compute(block);
        if (wrong) null_corrupt(block);
    }
    return newest_ms;
}

/* The most hashes that a window of this side may hold. */
static int64_t most_hashes(const struct side *side) {
    int64_t most = 0;
    for (int64_t at = 0; at < side->view_count; at++) {
        const struct view *view = &side->views[at];
        for (int64_t each = 0; each < view->operation_count; each++) {
            const struct operation *op = &view->operations[each];
            if (op->kind != DISTINCT) continue;
            const int64_t hashes = view->windows[op->sources[0].window].tiles * op->width;
            most = hashes > most ? hashes : most;
        }
    }
    return most;
}

int64_t rows_to_values(const struct side *side, const struct request *request) {
    if (!all_inside(request, side->view_count * request->n)) return UNUSUAL;
    struct block block; /* large, and written before it is read */
    block.side = side;
    block.now_ms = request->now_ms;
    block.hashes = NULL;
    const int64_t hashes = most_hashes(side);
    if (hashes && !(block.hashes = malloc((size_t)hashes * sizeof *block.hashes))) return UNUSUAL;
    struct walk walk = {.request = request};
    int64_t newest_ms = 0;
    int left = 0;
    for (int64_t index = 0; index < side->view_count; index++) {
        const int64_t found_ms = view_values(&block, request, &walk, index, &left);
        newest_ms = found_ms > newest_ms ? found_ms : newest_ms;
    }
    free(block.hashes);
    return left ? ~newest_ms : newest_ms;
}

int64_t rows_record_bytes(int64_t which) {
    static const int64_t bytes[] = {sizeof(struct window), sizeof(struct sequence),
                                    sizeof(struct operation), sizeof(struct vector),
                                    sizeof(struct view), sizeof(struct side), sizeof(struct run)};
    return which < (int64_t)(sizeof bytes / sizeof *bytes) ? bytes[which] : 0;
}
