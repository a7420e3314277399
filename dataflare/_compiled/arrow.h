/* Arrow's C data and stream interfaces, as they are published, and the loops between their buffers
 * and columns of views.  Plain C: nothing of Python, no allocation, no state.
 *
 * What comes from a producer may lie anywhere, so it is loaded by memcpy, which needs no alignment.
 * Loops that can meet nonsense return the index of the first element that is, or -1.
 */
#ifndef DATAFLARE_ARROW_H
#define DATAFLARE_ARROW_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "dataflare.h"

#ifndef ARROW_C_DATA_INTERFACE
#define ARROW_C_DATA_INTERFACE

#define ARROW_FLAG_NULLABLE 2

struct ArrowSchema {
    const char *format;
    const char *name;
    const char *metadata;
    int64_t flags;
    int64_t n_children;
    struct ArrowSchema **children;
    struct ArrowSchema *dictionary;
    void (*release)(struct ArrowSchema *);
    void *private_data;
};

struct ArrowArray {
    int64_t length;
    int64_t null_count;
    int64_t offset;
    int64_t n_buffers;
    int64_t n_children;
    const void **buffers;
    struct ArrowArray **children;
    struct ArrowArray *dictionary;
    void (*release)(struct ArrowArray *);
    void *private_data;
};

#endif /* ARROW_C_DATA_INTERFACE */

#ifndef ARROW_C_STREAM_INTERFACE
#define ARROW_C_STREAM_INTERFACE

struct ArrowArrayStream {
    int (*get_schema)(struct ArrowArrayStream *, struct ArrowSchema *out);
    int (*get_next)(struct ArrowArrayStream *, struct ArrowArray *out);
    const char *(*get_last_error)(struct ArrowArrayStream *);
    void (*release)(struct ArrowArrayStream *);
    void *private_data;
};

#endif /* ARROW_C_STREAM_INTERFACE */

#define DFA_SHORT 12 /* a value of so many bytes or less stands in its view itself */

/* A piece of memory that the batch owns; `used` bytes of it are referred to by views that were
 * written, as variadic buffer `index`, or -1 if by none. */
typedef struct dfa_segment {
    const char *data;
    ptrdiff_t size;
    ptrdiff_t used;
    int32_t index;
} dfa_segment;

static inline int32_t dfa_load32(const char *from, ptrdiff_t index) {
    int32_t number;
    memcpy(&number, from + 4 * index, 4);
    return number;
}

static inline int64_t dfa_load64(const char *from, ptrdiff_t index) {
    int64_t number;
    memcpy(&number, from + 8 * index, 8);
    return number;
}

static inline int dfa_bit(const uint8_t *bits, int64_t index) {
    return bits[index >> 3] >> (index & 7) & 1;
}

/* An integer of `width` bytes; unsigned ones of 64 bits come out as they lie in memory. */
static inline int64_t dfa_integer(const char *from, ptrdiff_t index, int width, int is_signed) {
    switch (width) {
    case 1: {
        uint8_t number = (uint8_t)from[index];
        return is_signed ? (int8_t)number : number;
    }
    case 2: {
        uint16_t number;
        memcpy(&number, from + 2 * index, 2);
        return is_signed ? (int16_t)number : number;
    }
    case 4:
        /* Each by itself: together they would be unsigned. */
        return is_signed ? (int64_t)dfa_load32(from, index)
                         : (int64_t)(uint32_t)dfa_load32(from, index);
    default:
        return dfa_load64(from, index);
    }
}

/* Views of values that lie one behind the other; `offsets` has count + 1 entries. */
static ptrdiff_t dfa_split(df_view *out, const char *offsets, int width, const char *data,
                           ptrdiff_t count) {
    int64_t bad = 0;
    if (width == 4) {
        int32_t start = dfa_load32(offsets, 0);
        bad = start;
        for (ptrdiff_t i = 0; i < count; i++) {
            const int32_t stop = dfa_load32(offsets, i + 1);
            out[i].data = (const char *)((uintptr_t)data + (uintptr_t)(intptr_t)start);
            out[i].size = (ptrdiff_t)stop - start;
            bad |= (int64_t)stop - start;
            start = stop;
        }
    } else {
        int64_t start = dfa_load64(offsets, 0);
        bad = start;
        for (ptrdiff_t i = 0; i < count; i++) {
            const int64_t stop = dfa_load64(offsets, i + 1);
            out[i].data = (const char *)((uintptr_t)data + (uintptr_t)start);
            out[i].size = (int64_t)((uint64_t)stop - (uint64_t)start);
            bad |= out[i].size | stop;
            start = stop;
        }
    }
    if (bad >= 0) {
        return -1;
    }
    for (ptrdiff_t i = 0; i < count; i++) {
        const int64_t start = dfa_integer(offsets, i, width, 1);
        if (start < 0 || dfa_integer(offsets, i + 1, width, 1) < start) {
            return i;
        }
    }
    return 0;
}

/* Views of values of one size. */
static void dfa_slice(df_view *out, const char *data, ptrdiff_t size, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++) {
        out[i].data = data + i * size;
        out[i].size = size;
    }
}

/* Views of the values that Arrow's views at `views` mean; null ones are not looked at. */
static ptrdiff_t dfa_follow(df_view *out, const char *views, ptrdiff_t count,
                            const uint8_t *validity, int64_t bit, const void **buffers,
                            const char *sizes, int64_t n_buffers) {
    for (ptrdiff_t i = 0; i < count; i++) {
        const char *view = views + 16 * i;
        const int32_t size = dfa_load32(view, 0);
        out[i].data = view;
        out[i].size = 0;
        if (validity != NULL && !dfa_bit(validity, bit + i)) {
            continue;
        }
        if (size < 0) {
            return i;
        }
        if (size <= DFA_SHORT) {
            out[i].data = view + 4;
        } else {
            const int32_t index = dfa_load32(view, 2);
            const int32_t start = dfa_load32(view, 3);
            if (index < 0 || index >= n_buffers || start < 0 || buffers[index] == NULL
                || (int64_t)start + size > dfa_load64(sizes, index)) {
                return i;
            }
            out[i].data = (const char *)buffers[index] + start;
        }
        out[i].size = size;
    }
    return -1;
}

/* Views of the values of a dictionary by their indices; null ones are not looked at. */
static ptrdiff_t dfa_look_up(df_view *out, const char *indices, int width, int is_signed,
                             ptrdiff_t count, const uint8_t *validity, int64_t bit,
                             const df_view *dictionary, int64_t length) {
    for (ptrdiff_t i = 0; i < count; i++) {
        out[i].data = indices;
        out[i].size = 0;
        if (validity != NULL && !dfa_bit(validity, bit + i)) {
            continue;
        }
        const int64_t index = dfa_integer(indices, i, width, is_signed);
        if (index < 0 || index >= length) {
            return i;
        }
        out[i] = dictionary[index];
    }
    return -1;
}

/* Where the bitmap has a 0, the view leads to `mark` and has no size. How many these are. */
static ptrdiff_t dfa_mark_nulls(df_view *out, ptrdiff_t count, const uint8_t *validity,
                                int64_t bit, const char *mark) {
    ptrdiff_t nulls = 0;
    for (ptrdiff_t i = 0; i < count; i++) {
        if (((bit + i) & 7) == 0) {
            while (i + 8 <= count && validity[(bit + i) >> 3] == 0xff) {
                i += 8;
            }
            if (i == count) {
                break;
            }
        }
        if (!dfa_bit(validity, bit + i)) {
            out[i].data = mark;
            out[i].size = 0;
            nulls++;
        }
    }
    return nulls;
}

/* Integers, times `factor`; a null one is 0.  Stops at what does not fit in 64 bits. */
static ptrdiff_t dfa_numbers(int64_t *out, const char *data, int width, int is_signed,
                             ptrdiff_t count, const uint8_t *validity, int64_t bit,
                             int64_t factor) {
    for (ptrdiff_t i = 0; i < count; i++) {
        out[i] = 0;
        if (validity != NULL && !dfa_bit(validity, bit + i)) {
            continue;
        }
        const int64_t number = dfa_integer(data, i, width, is_signed);
        if ((width == 8 && !is_signed && number < 0)
            || __builtin_mul_overflow(number, factor, &out[i])) {
            return i;
        }
    }
    return -1;
}

static ptrdiff_t dfa_narrow(int32_t *out, const int64_t *numbers, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++) {
        if (numbers[i] < INT32_MIN || numbers[i] > INT32_MAX) {
            return i;
        }
        out[i] = (int32_t)numbers[i];
    }
    return -1;
}

/* How many of the values lead to `mark`. */
static ptrdiff_t dfa_count_nulls(const df_view *values, ptrdiff_t count, const char *mark) {
    ptrdiff_t nulls = 0;
    for (ptrdiff_t i = 0; i < count; i++) {
        nulls += values[i].data == mark;
    }
    return nulls;
}

/* Arrow's bitmap of which values do not lead to `mark`; (count + 7) / 8 bytes. */
static void dfa_write_bitmap(uint8_t *bits, const df_view *values, ptrdiff_t count,
                             const char *mark) {
    memset(bits, 0, (size_t)(count + 7) / 8);
    for (ptrdiff_t i = 0; i < count; i++) {
        bits[i >> 3] |= (uint8_t)((values[i].data != mark) << (i & 7));
    }
}

/* The last segment that begins at `data` or before. `segments` is sorted. */
static inline dfa_segment *dfa_find(dfa_segment *segments, ptrdiff_t count, const char *data) {
    ptrdiff_t low = 0, high = count;
    while (low < high) {
        const ptrdiff_t middle = (low + high) / 2;
        if ((uintptr_t)segments[middle].data <= (uintptr_t)data) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low > 0 ? &segments[low - 1] : NULL;
}

static inline int dfa_holds(const dfa_segment *segment, df_view value) {
    const uintptr_t start = (uintptr_t)value.data - (uintptr_t)segment->data;
    return start <= (uintptr_t)segment->size && start <= INT32_MAX
        && (uintptr_t)value.size <= (uintptr_t)segment->size - start;
}

static inline void dfa_write_view(char *view, df_view value, int32_t index, int32_t start) {
    const int32_t size = (int32_t)value.size;
    memcpy(view, &size, 4);
    if (size <= DFA_SHORT) {
        memset(view + 4, 0, DFA_SHORT);
        if (size > 0) { /* else there may be no address */
            memcpy(view + 4, value.data, (size_t)size);
        }
    } else {
        memcpy(view + 4, value.data, 4);
        memcpy(view + 8, &index, 4);
        memcpy(view + 12, &start, 4);
    }
}

/* Arrow's views of values that stay where they are. One that is in no segment gets the buffer -1,
 * and its size is added to `rest`. */
static ptrdiff_t dfa_write_views(char *views, const df_view *values, ptrdiff_t count,
                                 dfa_segment *segments, ptrdiff_t n_segments, int32_t *n_used,
                                 int64_t *rest) {
    dfa_segment *last = NULL;
    for (ptrdiff_t i = 0; i < count; i++) {
        const df_view value = values[i];
        int32_t index = -1, start = 0;
        if (value.size > INT32_MAX) {
            return i;
        }
        if (value.size > DFA_SHORT) {
            if (last == NULL || !dfa_holds(last, value)) {
                last = dfa_find(segments, n_segments, value.data);
            }
            if (last != NULL && dfa_holds(last, value)) {
                const ptrdiff_t stop = value.data - last->data + value.size;
                if (last->index < 0) {
                    last->index = (*n_used)++;
                }
                if (stop > last->used) {
                    last->used = stop;
                }
                index = last->index;
                start = (int32_t)(value.data - last->data);
            } else {
                last = NULL;
                *rest += value.size;
            }
        }
        dfa_write_view(views + 16 * i, value, index, start);
    }
    return -1;
}

/* How many bytes the values from `start` on that have the buffer -1 fill, up to `limit`. */
static int64_t dfa_fill_size(const char *views, ptrdiff_t start, ptrdiff_t count, int64_t limit) {
    int64_t size = 0;
    for (ptrdiff_t i = start; i < count; i++) {
        const int32_t more = dfa_load32(views + 16 * i, 0);
        if (more > DFA_SHORT && dfa_load32(views + 16 * i, 2) == -1) {
            if (size > limit - more) {
                break;
            }
            size += more;
        }
    }
    return size;
}

/* Copy these values into a buffer of that size, which has the index `index`; where it is full. */
static ptrdiff_t dfa_fill(char *views, const df_view *values, ptrdiff_t start, ptrdiff_t count,
                          char *buffer, int64_t size, int32_t index) {
    int64_t used = 0;
    for (ptrdiff_t i = start; i < count; i++) {
        if (values[i].size > DFA_SHORT && dfa_load32(views + 16 * i, 2) == -1) {
            if (used + values[i].size > size) {
                return i;
            }
            memcpy(buffer + used, values[i].data, (size_t)values[i].size);
            dfa_write_view(views + 16 * i, values[i], index, (int32_t)used);
            used += values[i].size;
        }
    }
    return count;
}

/* How many values from the first on lie one directly behind the other, and where they begin; empty
 * ones may lie anywhere. */
static ptrdiff_t dfa_adjacent(const df_view *values, ptrdiff_t count, const char **begin) {
    const char *next = NULL;
    ptrdiff_t i = 0;
    *begin = NULL;
    for (; i < count; i++) {
        if (values[i].size > 0) {
            if (*begin == NULL) {
                *begin = values[i].data;
            } else if (values[i].data != next) {
                break;
            }
            next = values[i].data + values[i].size;
        }
    }
    return i;
}

/* Arrow's offsets, count + 1 of 4 or of 8 bytes, and their last.  They are of no use if that does
 * not fit. */
static int64_t dfa_write_offsets(char *offsets, int width, const df_view *values,
                                 ptrdiff_t count) {
    int64_t stop = 0;
    if (width == 4) {
        int32_t *out = (int32_t *)offsets;
        for (ptrdiff_t i = 0; i < count; i++) {
            out[i] = (int32_t)stop;
            stop += values[i].size;
        }
        out[count] = (int32_t)stop;
    } else {
        int64_t *out = (int64_t *)offsets;
        for (ptrdiff_t i = 0; i < count; i++) {
            out[i] = stop;
            stop += values[i].size;
        }
        out[count] = stop;
    }
    return stop;
}

/* Copy values one behind the other; empty ones may have no address. */
static void dfa_join(char *target, const df_view *values, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++) {
        if (values[i].size > 0) {
            memcpy(target, values[i].data, (size_t)values[i].size);
            target += values[i].size;
        }
    }
}

/* How many of the values from `start` on have at most `limit` bytes together. */
static ptrdiff_t dfa_fitting(const df_view *values, ptrdiff_t start, ptrdiff_t count,
                             int64_t limit) {
    ptrdiff_t i = start;
    for (; i < count && values[i].size <= limit; i++) {
        limit -= values[i].size;
    }
    return i - start;
}

/* Whether the bytes are UTF-8, as Unicode's table 3-7 has it. */
static int dfa_is_text(const unsigned char *data, ptrdiff_t size) {
    ptrdiff_t i = 0;
    while (i < size) {
        uint64_t word;
        while (i + 8 <= size && (memcpy(&word, data + i, 8), (word & 0x8080808080808080u) == 0)) {
            i += 8;
        }
        if (i == size) {
            break;
        }
        const unsigned char lead = data[i];
        unsigned char low = 0x80, high = 0xBF;
        ptrdiff_t more;
        if (lead < 0x80) {
            i++;
            continue;
        }
        if (lead >= 0xC2 && lead <= 0xDF) {
            more = 1;
        } else if ((lead & 0xF0) == 0xE0) {
            more = 2;
            low = lead == 0xE0 ? 0xA0 : low;
            high = lead == 0xED ? 0x9F : high;
        } else if (lead >= 0xF0 && lead <= 0xF4) {
            more = 3;
            low = lead == 0xF0 ? 0x90 : low;
            high = lead == 0xF4 ? 0x8F : high;
        } else {
            return 0;
        }
        if (size - i <= more || data[i + 1] < low || data[i + 1] > high) {
            return 0;
        }
        for (ptrdiff_t j = 2; j <= more; j++) {
            if ((data[i + j] & 0xC0) != 0x80) {
                return 0;
            }
        }
        i += more + 1;
    }
    return 1;
}

/* The first value that is not UTF-8, or -1. */
static ptrdiff_t dfa_check_text(const df_view *values, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++) {
        if (!dfa_is_text((const unsigned char *)values[i].data, values[i].size)) {
            return i;
        }
    }
    return -1;
}

#endif /* DATAFLARE_ARROW_H */
