/* Numbers of any type in a row, wherever they lie, and in a record. */
#ifndef ENCORE_NUMBERS_H
#define ENCORE_NUMBERS_H

#include <string.h>

#include "rows.h"

static inline int64_t width_of(int64_t type) {
    switch (type) {
    case BOOL: case I8: case U8: return 1;
    case I16: case U16: return 2;
    case I32: case U32: case F32: return 4;
    default: return 8;
    }
}

#define LOAD(element, at) ({ element loaded; memcpy(&loaded, (at), sizeof loaded); loaded; })
#define STORE(element, to, value)                          \
    do {                                                   \
        const element stored = (element)(value);           \
        memcpy((to), &stored, sizeof stored);              \
    } while (0)

static inline int64_t whole_at(const uint8_t *at, int64_t type) {
    switch (type) {
    case BOOL: return *at != 0;
    case U8: return *at;
    case I8: return LOAD(int8_t, at);
    case I16: return LOAD(int16_t, at);
    case U16: return LOAD(uint16_t, at);
    case I32: return LOAD(int32_t, at);
    case U32: return LOAD(uint32_t, at);
    default: return LOAD(int64_t, at);
    }
}

static inline double float_at(const uint8_t *at, int64_t type) {
    switch (type) {
    case F32: return LOAD(float, at);
    case F64: return LOAD(double, at);
    case U64: return (double)LOAD(uint64_t, at);
    default: return (double)whole_at(at, type);
    }
}

static inline int64_t within(int64_t value, int64_t low, int64_t high) {
    return value < low ? low : value > high ? high : value;
}

/* `saturate.saturate` of a whole number. */
static inline void put_whole(uint8_t *to, int64_t type, int64_t value) {
    switch (type) {
    case BOOL: *to = value != 0; return;
    case I8: STORE(int8_t, to, within(value, INT8_MIN, INT8_MAX)); return;
    case U8: STORE(uint8_t, to, within(value, 0, UINT8_MAX)); return;
    case I16: STORE(int16_t, to, within(value, INT16_MIN, INT16_MAX)); return;
    case U16: STORE(uint16_t, to, within(value, 0, UINT16_MAX)); return;
    case I32: STORE(int32_t, to, within(value, INT32_MIN, INT32_MAX)); return;
    case U32: STORE(uint32_t, to, within(value, 0, UINT32_MAX)); return;
    case U64: STORE(int64_t, to, value < 0 ? 0 : value); return;
    case F32: STORE(float, to, value); return;
    case F64: STORE(double, to, value); return;
    default: STORE(int64_t, to, value);
    }
}

static inline void put_float(uint8_t *to, int64_t type, double value) {
    if (type == F32)
        STORE(float, to, value);
    else
        STORE(double, to, value);
}

/* Numbers as they are; whole ones of another width as numpy casts them, modulo 2^bits. A truth is
 * 0 or 1, whatever was stored. */
static inline void copy(uint8_t *to, int64_t type, const uint8_t *from, int64_t from_type,
                        int64_t count) {
    const int64_t width = width_of(type), step = width_of(from_type);
    if (type == from_type && type != BOOL) {
        memcpy(to, from, (size_t)(count * width));
        return;
    }
    for (int64_t at = 0; at < count; at++) {
        const uint64_t value = (uint64_t)whole_at(from + at * step, from_type);
        switch (width) {
        case 1: STORE(uint8_t, to + at, type == BOOL ? value != 0 : value); break;
        case 2: STORE(uint16_t, to + 2 * at, value); break;
        case 4: STORE(uint32_t, to + 4 * at, value); break;
        default: STORE(uint64_t, to + 8 * at, value);
        }
    }
}

#endif
