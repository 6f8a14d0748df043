/* Items out of a cache that another process writes: index, sequence numbers, spans of validity.
 * The format is that of aggregation/cache/record.py, index.py and memory.py. */
#include "kernels.h"

#include <string.h>

enum { SEQUENCE, ENTITY, FROM, UNTIL, NEWEST };      /* words of a record */
enum { PLACES = 8, WORDS = 2 * PLACES };             /* u4 of a bucket: tags, then slots */
enum { HELD, ABSENT, TORN, AGED };                   /* what became of an item */
enum { GROUP = 64, TRIES = 4, LINE = 64 / 8 };       /* ids on the way at once; words of a line */

/* A mapped file. record_words: of a record. capacity: records that it has room for. */
struct cache {
    const uint64_t *records;
    int64_t record_words, capacity;
};

EXPORT int64_t gather(const struct cache *cache, const uint32_t *buckets, int64_t level,
                      const int64_t *ids, int64_t n, int64_t now_ms, uint64_t *out,
                      int64_t *places);

/* An id's bucket, and its tag, which is never 0. */
struct key {
    uint64_t bucket;
    uint32_t tag;
};

static inline struct key key_of(int64_t id, int64_t level)
{
    uint64_t mixed = (uint64_t)id * 0x9E3779B97F4A7C15u;
    mixed ^= mixed >> 32;
    mixed *= 0xD6E8FEB86659FD93u;
    return (struct key){mixed >> (64 - level), (uint32_t)mixed | 1};
}

/* The tag was written after the slot and the record: whoever sees it sees them. */
static inline uint32_t seen(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

/* The slot of the first place in a bucket with that tag, -1 for none. */
static inline int64_t tagged(const uint32_t *bucket, uint32_t tag, int from, int *place)
{
    for (*place = from; *place < PLACES; ++*place)
        if (seen(bucket + *place) == tag)
            return seen(bucket + PLACES + *place);
    return -1;
}

static inline const uint64_t *record_at(const struct cache *cache, int64_t slot)
{
    return cache->records + slot * cache->record_words;
}

static inline int is_of(const struct cache *cache, int64_t slot, int64_t id)
{
    return slot >= 0 && slot < cache->capacity
           && (int64_t)__atomic_load_n(record_at(cache, slot) + ENTITY, __ATOMIC_RELAXED) == id;
}

/* The slot of an id, -1 where it is not there. Two ids may have one tag. */
static int64_t slot_of(const struct cache *cache, const uint32_t *buckets, int64_t level,
                       struct key key, int64_t id)
{
    const uint64_t last = ((uint64_t)1 << level) - 1;
    for (uint64_t step = 0; step <= last; step++) {
        const uint32_t *bucket = buckets + ((key.bucket + step) & last) * WORDS;
        for (int place = 0; place < PLACES; place++) {
            const int64_t slot = tagged(bucket, key.tag, place, &place);
            if (is_of(cache, slot, id))
                return slot;
        }
        if (seen(bucket + PLACES - 1) == 0) /* places fill from the left */
            return -1;
    }
    return -1;
}

/* Copies a record, whole: its sequence number was even and the same before and after. The fence
 * keeps the words from being read behind the second look. */
static int copied(const uint64_t *record, int64_t words, uint64_t *out, int64_t *retried)
{
    for (int turn = 0; turn <= TRIES; turn++) {
        *retried += turn > 0;
        const uint64_t before = __atomic_load_n(record + SEQUENCE, __ATOMIC_ACQUIRE);
        memcpy(out, record, (size_t)words * sizeof *out);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        const uint64_t after = __atomic_load_n(record + SEQUENCE, __ATOMIC_RELAXED);
        out[SEQUENCE] = before;
        if (before == after && (before & 1) == 0)
            return 1;
    }
    return 0;
}

/* Buckets, then records, are asked for while others are worked on. slots: the first place with the
 * id's tag, which is nearly always the right one. */
static void ahead(const struct cache *cache, const uint32_t *buckets, int64_t level,
                  const int64_t *ids, int64_t n, struct key *keys, int64_t *slots)
{
    for (int64_t i = 0; i < n; i++) {
        keys[i] = key_of(ids[i], level);
        __builtin_prefetch(buckets + keys[i].bucket * WORDS);
    }
    for (int64_t i = 0; i < n; i++) {
        int place;
        slots[i] = tagged(buckets + keys[i].bucket * WORDS, keys[i].tag, 0, &place);
        if (slots[i] < 0 || slots[i] >= cache->capacity)
            continue;
        const uint64_t *record = record_at(cache, slots[i]);
        for (int64_t word = 0; word < cache->record_words; word += LINE)
            __builtin_prefetch(record + word);
    }
}

/* The records of n ids at now_ms.
 * level: log2 of the buckets. out: (n, record_words); what is neither HELD nor AGED is zero.
 * places: (2, n): the slot of each, -1 where there is none, and what became of it; behind them the
 * newest event of all that are HELD, 0 for none, and how many copies were made again. Returns how
 * many are not HELD. */
int64_t gather(const struct cache *cache, const uint32_t *buckets, int64_t level,
               const int64_t *ids, int64_t n, int64_t now_ms, uint64_t *out, int64_t *places)
{
    const int64_t words = cache->record_words;
    struct key keys[GROUP];
    int64_t left = 0, newest = 0, retried = 0;
    for (int64_t start = 0; start < n; start += GROUP) {
        const int64_t m = n - start < GROUP ? n - start : GROUP;
        ahead(cache, buckets, level, ids + start, m, keys, places + start);
        for (int64_t i = start; i < start + m; i++) {
            uint64_t *record = out + i * words;
            int64_t state = ABSENT;
            if (!is_of(cache, places[i], ids[i]))
                places[i] = slot_of(cache, buckets, level, keys[i - start], ids[i]);
            if (places[i] >= 0)
                state = copied(record_at(cache, places[i]), words, record, &retried) ? HELD : TORN;
            if (state != HELD)
                memset(record, 0, (size_t)words * sizeof *record);
            else if ((int64_t)record[FROM] > now_ms || (int64_t)record[UNTIL] <= now_ms)
                state = AGED;
            else if ((int64_t)record[NEWEST] > newest)
                newest = (int64_t)record[NEWEST];
            places[n + i] = state;
            left += state != HELD;
        }
    }
    places[2 * n] = newest;
    places[2 * n + 1] = retried;
    return left;
}
