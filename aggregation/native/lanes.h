/* The networks over LANES candidates at once, each a lane of every vector: included by networks.c
 * once for each width of vectors. NAME(x): x of this width. */

typedef float NAME(lanes) __attribute__((vector_size(4 * LANES), may_alias));
typedef uint32_t NAME(bits) __attribute__((vector_size(4 * LANES)));
#define lanes NAME(lanes)
#define bits NAME(bits)

/* --- vectors -------------------------------------------------------------------------------- */

/* Zero where it is negative; what is not a number stays. */
static inline lanes NAME(rectified)(lanes x)
{
#if LANES == 16
    return (lanes)_mm512_max_ps((__m512){0}, (__m512)x);
#elif LANES == 8
    return (lanes)_mm256_max_ps((__m256){0}, (__m256)x);
#else
    return (lanes)((bits)x & ~(bits)(x < 0));
#endif
}

static inline lanes NAME(larger)(lanes x, lanes y)
{
    const bits chosen = (bits)(x > y);
    return (lanes)(((bits)x & chosen) | ((bits)y & ~chosen));
}

/* e to the x <= 0, to 2 units in the last place: 2 to a whole power times a polynomial over half of
 * ln 2 either way (Cephes, expf). */
static inline lanes NAME(exponential)(lanes x)
{
    const float magic = 12582912; /* 1.5 * 2^23: adding it rounds to a whole number */
    const lanes least = (lanes){0} - 87;
    const bits low = (bits)(x < least);
    x = (lanes)(((bits)least & low) | ((bits)x & ~low));
    const lanes moved = x * 1.44269504f + magic;
    const lanes power = moved - magic;
    const lanes r = x - power * 0.693359375f + power * 2.12194440e-4f;
    lanes y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1;
    return y * (lanes)(((bits)moved << 23) + 0x3f800000);
}

static inline void NAME(rectify)(lanes *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = NAME(rectified)(x[i]);
}

/* out += in times weight. out has room for whole tiles; behind its outputs it stays as it was. */
static inline void NAME(dense)(const lanes *in, int64_t inputs, const float *weight,
                               int64_t outputs, lanes *out)
{
    for (int64_t first = 0; first < outputs; first += TILE, out += TILE) {
        lanes sum[TILE];
        for (int each = 0; each < TILE; each++)
            sum[each] = out[each];
        for (int64_t i = 0; i < inputs; i++, weight += TILE)
            for (int each = 0; each < TILE; each++)
                sum[each] += in[i] * weight[each];
        for (int each = 0; each < TILE; each++)
            out[each] = sum[each];
    }
}

static inline void NAME(layer)(const struct layer *layer, lanes *in, lanes *out)
{
    if (layer->rectified)
        NAME(rectify)(in, layer->inputs);
    for (int64_t each = 0; each < rounded_up(layer->outputs, TILE); each++)
        out[each] = (lanes){0} + layer->bias[each];
    NAME(dense)(in, layer->inputs, layer->weight, layer->outputs, out);
}

/* --- one row -------------------------------------------------------------------------------- */

/* out = start + the sum of n rows. width: a multiple of WIDTH. */
static inline void NAME(add_rows)(const float *const *rows, int64_t n, const float *start,
                                  int64_t width, float *out)
{
    int64_t at = 0;
    for (; at + 4 * LANES <= width; at += 4 * LANES) {
        const lanes *from = (const lanes *)(start + at);
        lanes sum[4] = {from[0], from[1], from[2], from[3]};
        for (int64_t row = 0; row < n; row++)
            for (int each = 0; each < 4; each++)
                sum[each] += ((const lanes *)(rows[row] + at))[each];
        for (int each = 0; each < 4; each++)
            ((lanes *)(out + at))[each] = sum[each];
    }
    for (; at < width; at += LANES) {
        lanes sum = *(const lanes *)(start + at);
        for (int64_t row = 0; row < n; row++)
            sum += *(const lanes *)(rows[row] + at);
        *(lanes *)(out + at) = sum;
    }
}

/* out += x times weight, (inputs, width) by inputs, of which the first `outputs` count. */
static inline void NAME(add_product)(const float *x, int64_t inputs, const float *weight,
                                     int64_t outputs, float *out)
{
    const int64_t width = rounded_up(outputs, WIDTH);
    int64_t at = 0;
    for (; at + 4 * LANES <= width; at += 4 * LANES) {
        lanes *to = (lanes *)(out + at), sum[4] = {to[0], to[1], to[2], to[3]};
        for (int64_t i = 0; i < inputs; i++)
            for (int each = 0; each < 4; each++)
                sum[each] += x[i] * ((const lanes *)(weight + i * width + at))[each];
        for (int each = 0; each < 4; each++)
            to[each] = sum[each];
    }
    for (; at < width; at += LANES) {
        lanes sum = *(lanes *)(out + at);
        for (int64_t i = 0; i < inputs; i++)
            sum += x[i] * *(const lanes *)(weight + i * width + at);
        *(lanes *)(out + at) = sum;
    }
}

static inline void NAME(find_rows)(const struct side *side, const int32_t *ids, const float **rows)
{
    for (int64_t each = 0; each < side->n_folded; each++) {
        const struct column *column = &side->folded[each];
        rows[each] = column->rows + ids[column->place] * side->width;
    }
}

/* The sums of a user's fields, and of their squares, behind the outputs. */
static inline void NAME(add_squares)(const float *fields, int64_t n, int64_t width, float *sums)
{
    for (int64_t field = 0; field < n; field++, fields += width)
        for (int64_t i = 0; i < width; i++) {
            sums[i] += fields[i];
            sums[width + i] += fields[i] * fields[i];
        }
}

/* The embeddings of a user's plain slots, and the means of the sequences: zeros of an empty one. */
static void NAME(user_fields)(const struct base *base, const struct request *request, float *out)
{
    const int64_t width = base->embedding;
    for (int64_t each = 0; each < base->users.n_plain; each++, out += width) {
        const struct column *column = &base->users.plain[each];
        memcpy(out, column->rows + request->user[column->place] * width, 4 * (size_t)width);
    }
    for (int64_t place = 0; place < base->n_sequences; place++, out += width) {
        const int64_t length = length_of(base, request, place);
        memset(out, 0, 4 * (size_t)width);
        for (int64_t entry = 0; entry < length; entry++) {
            const float *row = base->sequences[place].rows;
            row += request->listed[place].ids[entry] * width;
            for (int64_t i = 0; i < width; i++)
                out[i] += row[i];
        }
        for (int64_t i = 0; length > 0 && i < width; i++)
            out[i] /= (float)length;
    }
}

/* The user's first layer. out: (users.width,) */
static void NAME(user_row)(const struct base *base, const struct request *request, int sums,
                           struct scratch *use, float *out)
{
    const struct side *users = &base->users;
    const int64_t fields = users->n_plain + base->n_sequences, width = base->embedding;
    NAME(find_rows)(users, request->user, use->rows);
    NAME(add_rows)(use->rows, users->n_folded, users->bias, users->width, out);
    NAME(user_fields)(base, request, use->fields);
    if (sums)
        NAME(add_squares)(use->fields, fields, width, out + users->outputs);
    NAME(add_product)(use->fields, fields * width, users->weight, users->outputs, out);
}

/* --- candidates ----------------------------------------------------------------------------- */

/* The sum of the embeddings of some slots: (E,) by lanes. ids: of each lane's candidate. */
static inline void NAME(embed)(const struct column *columns, int64_t n, int64_t width,
                               const int32_t *const *ids, lanes *out)
{
    for (int64_t i = 0; i < width; i++)
        out[i] = (lanes){0};
    for (int64_t each = 0; each < n; each++)
        for (int lane = 0; lane < LANES; lane++) {
            const float *row = columns[each].rows + ids[lane][columns[each].place] * width;
            for (int64_t i = 0; i < width; i++)
                ((float *)(out + i))[lane] += row[i];
        }
}

/* The first layer of LANES candidates into use->both: (width,) by lanes. */
static void NAME(item_rows)(const struct base *base, const int32_t *const *ids, const float *start,
                            int sums, struct scratch *use)
{
    const struct side *items = &base->items;
    const int64_t width = items->width, embedding = base->embedding;
    lanes *both = (lanes *)use->both, *fields = (lanes *)use->plain;
    for (int lane = 0; lane < LANES; lane++) {
        NAME(find_rows)(items, ids[lane], use->rows);
        NAME(add_rows)(use->rows, items->n_folded, start, width, use->sums + lane * width);
    }
    for (int64_t i = 0; i < width; i++)
        for (int lane = 0; lane < LANES; lane++)
            ((float *)(both + i))[lane] = use->sums[lane * width + i];
    for (int64_t each = 0; each < items->n_plain; each++) {
        lanes *plain = fields + each * embedding, *total = both + items->outputs;
        NAME(embed)(items->plain + each, 1, embedding, ids, plain);
        for (int64_t i = 0; sums && i < embedding; i++) {
            total[i] += plain[i];
            total[embedding + i] += plain[i] * plain[i];
        }
    }
    const int64_t inputs = items->n_plain * embedding;
    NAME(dense)(fields, inputs, items->weight, inputs ? items->outputs : 0, both);
}

/* The ids of LANES candidates from `first` on; behind the last one, its own once more. */
static inline void NAME(candidates)(const struct request *request, int64_t first,
                                    const int32_t **ids)
{
    for (int64_t lane = 0; lane < LANES; lane++) {
        const int64_t last = request->n - 1, at = first + lane;
        ids[lane] = ids_at(request, at < last ? at : last);
    }
}

/* --- the tower ------------------------------------------------------------------------------ */

/* What a candidate's last hidden layer is multiplied by, and behind it what is added. */
static const float *NAME(user_vector)(const struct tower *tower, const struct request *request,
                                      struct scratch *use)
{
    float *in = use->row, *out = use->other;
    NAME(user_row)(&tower->base, request, 0, use, in);
    for (int64_t each = 0; each < tower->n_user_layers; each++) {
        const struct layer *layer = &tower->user_layers[each];
        for (int64_t i = 0; layer->rectified && i < layer->inputs; i++)
            in[i] = in[i] < 0 ? 0 : in[i];
        memcpy(out, layer->bias, 4 * (size_t)rounded_up(layer->outputs, WIDTH));
        NAME(add_product)(in, layer->inputs, layer->weight, layer->outputs, out);
        float *before = in;
        in = out;
        out = before;
    }
    return in;
}

static void NAME(tower)(const struct tower *tower, const struct request *request,
                        struct scratch *use, float *out)
{
    const float *vector = NAME(user_vector)(tower, request, use);
    for (int64_t first = 0; first < request->n; first += LANES) {
        const int32_t *ids[LANES];
        NAME(candidates)(request, first, ids);
        NAME(item_rows)(&tower->base, ids, tower->base.items.bias, 0, use);
        lanes *hidden = (lanes *)use->both, *next = (lanes *)use->hidden;
        int64_t width = tower->base.items.outputs;
        for (int64_t each = 0; each < tower->n_item_layers; each++) {
            NAME(layer)(&tower->item_layers[each], hidden, next);
            width = tower->item_layers[each].outputs;
            hidden = next;
            next = (lanes *)(next == (lanes *)use->hidden ? use->next : use->hidden);
        }
        if (tower->rectified)
            NAME(rectify)(hidden, width);
        lanes score = (lanes){0} + vector[width];
        for (int64_t i = 0; i < width; i++)
            score += hidden[i] * vector[i];
        for (int64_t lane = 0; lane < LANES && first + lane < request->n; lane++)
            out[first + lane] = score[lane];
    }
}

/* --- the fine network ----------------------------------------------------------------------- */

/* All of an attention that depends on the user alone. by_key: of each entry (A, E) in tiles.
 * keyed: (length, A). values: (E, length) in tiles. key: room for (E,). */
static void NAME(prepare)(const struct base *base, const struct attention *of,
                          const struct request *request, float *key, struct prepared *out)
{
    const int64_t width = base->embedding, wide = rounded_up(of->width, WIDTH);
    const int64_t tiles = rounded_up(of->width, TILE) / TILE, block = tiles * width * TILE;
    const int64_t length = length_of(base, request, of->places[0]);
    out->length = length;
    memset(out->values, 0, 4 * (size_t)(rounded_up(width, TILE) * length));
    for (int64_t entry = 0; entry < length; entry++) {
        memset(key, 0, 4 * (size_t)width);
        for (int64_t each = 0; each < of->n_places; each++) {
            const int64_t place = of->places[each];
            const float *row = base->sequences[place].rows;
            row += request->listed[place].ids[entry] * width;
            for (int64_t i = 0; i < width; i++)
                key[i] += row[i];
        }
        float *by_key = out->by_key + entry * block;
        for (int64_t tile = 0; tile < tiles; tile++)
            for (int64_t i = 0; i < width; i++)
                for (int each = 0; each < TILE; each++) {
                    const int64_t at = (tile * width + i) * TILE + each;
                    by_key[at] = of->query[at] + key[i] * of->product[at];
                }
        memcpy(out->keyed + entry * wide, of->key_bias, 4 * (size_t)wide);
        NAME(add_product)(key, width, of->key, of->width, out->keyed + entry * wide);
        for (int64_t i = 0; i < width; i++)
            out->values[(i / TILE * length + entry) * TILE + i % TILE] = key[i];
    }
}

/* The mean of the user's entries, weighted for each candidate. query: (E,). out: (E,), with room
 * for whole tiles. */
static void NAME(attend)(const struct attention *of, const struct prepared *user,
                         const lanes *query, int64_t width, lanes *scores, lanes *out)
{
    const int64_t length = user->length, wide = rounded_up(of->width, WIDTH);
    const float *by_key = user->by_key;
    for (int64_t i = 0; i < rounded_up(width, TILE); i++)
        out[i] = (lanes){0};
    if (length == 0)
        return;
    lanes most = (lanes){0} - __builtin_inff();
    for (int64_t entry = 0; entry < length; entry++) {
        lanes score = {0};
        for (int64_t first = 0; first < of->width; first += TILE) {
            const float *keyed = user->keyed + entry * wide + first;
            lanes unit[TILE];
            for (int each = 0; each < TILE; each++)
                unit[each] = (lanes){0} + keyed[each];
            for (int64_t i = 0; i < width; i++, by_key += TILE)
                for (int each = 0; each < TILE; each++)
                    unit[each] += query[i] * by_key[each];
            for (int each = 0; each < TILE; each++)
                score += NAME(rectified)(unit[each]) * of->score[first + each];
        }
        scores[entry] = score;
        most = NAME(larger)(most, score);
    }
    lanes total = {0};
    for (int64_t entry = 0; entry < length; entry++)
        total += scores[entry] = NAME(exponential)(scores[entry] - most);
    NAME(dense)(scores, length, user->values, width, out);
    for (int64_t i = 0; i < width; i++)
        out[i] /= total;
}

/* The logits of LANES candidates: each task mixes the shared experts and its own. An expert's part
 * is its dot product with the task's head. mixed: the experts, then the gates. */
static inline lanes NAME(logit)(const struct fine *fine, const lanes *mixed, int64_t task)
{
    const int64_t shared = fine->shared, width = fine->expert;
    const lanes *gates = mixed + (shared + fine->tasks) * width + task * (shared + 1);
    const float *head = fine->heads + task * width;
    lanes most = gates[0], sum = {0}, total = {0};
    for (int64_t gate = 1; gate <= shared; gate++)
        most = NAME(larger)(most, gates[gate]);
    for (int64_t gate = 0; gate <= shared; gate++) {
        const lanes *expert = mixed + (gate < shared ? gate : shared + task) * width;
        const lanes share = NAME(exponential)(gates[gate] - most);
        lanes made = {0};
        for (int64_t i = 0; i < width; i++)
            made += expert[i] * head[i];
        total += share;
        sum += share * made;
    }
    return sum / total + fine->bias[task];
}

static void NAME(fine_block)(const struct fine *fine, const int32_t *const *ids,
                             struct scratch *use)
{
    const struct base *base = &fine->base;
    const int64_t width = base->embedding, outputs = base->items.outputs;
    lanes *both = (lanes *)use->both, *fields = (lanes *)use->hidden, *field = fields;
    lanes *next = (lanes *)use->next; /* first a query, then what is mixed */
    NAME(item_rows)(base, ids, use->row, 1, use);
    for (int64_t each = 0; each < fine->n_attended; each++, field += width) {
        const struct attention *attended = &fine->attended[each];
        NAME(embed)(attended->queries, attended->n_queries, width, ids, next);
        NAME(attend)(attended, &use->prepared[each], next, width, (lanes *)use->scores, field);
    }
    for (int64_t i = 0; i < width; i++) {
        const lanes total = both[outputs + i], squares = both[outputs + width + i];
        field[i] = (total * total - squares) * 0.5f;
    }
    NAME(dense)(fields, fine->bottom.inputs, fine->bottom.weight, outputs, both);
    NAME(layer)(&fine->mixing, both, next);
    NAME(rectify)(next, (fine->shared + fine->tasks) * fine->expert);
}

static void NAME(fine)(const struct fine *fine, const struct request *request,
                       struct scratch *use, float *out)
{
    NAME(user_row)(&fine->base, request, 1, use, use->row);
    for (int64_t each = 0; each < fine->n_attended; each++)
        NAME(prepare)(&fine->base, &fine->attended[each], request, use->other,
                      &use->prepared[each]);
    for (int64_t first = 0; first < request->n; first += LANES) {
        const int32_t *ids[LANES];
        NAME(candidates)(request, first, ids);
        NAME(fine_block)(fine, ids, use);
        for (int64_t task = 0; task < fine->tasks; task++) {
            const lanes logits = NAME(logit)(fine, (const lanes *)use->next, task);
            for (int64_t lane = 0; lane < LANES && first + lane < request->n; lane++)
                out[(first + lane) * fine->tasks + task] = logits[lane];
        }
    }
}

#undef lanes
#undef bits
