/* The byte kernels of the built-in plugins and of the batch: plain C, nothing of Python, no state
 * but the instruction set selected, no allocation.
 *
 * Each kernel exists once per instruction set; the best one this CPU has is selected when the
 * library is loaded.  No kernel reads or writes outside the ranges it is given.
 */
#ifndef DATAFLARE_KERNELS_H
#define DATAFLARE_KERNELS_H

#include <stddef.h>

#include "dataflare.h"

/* Several extension modules may carry their own copy of the kernels. */
#pragma GCC visibility push(hidden)

/* A byte string to search for, with what the search needs to know of it.
 *
 * `rare` and `other` are the positions of its two rarest bytes in text (equal when size is 1);
 * `critical` and `period` are its critical factorisation, see needle.h. */
typedef struct dfk_needle {
    const char *data;
    ptrdiff_t size;
    ptrdiff_t rare;
    ptrdiff_t other;
    ptrdiff_t critical;
    ptrdiff_t period;
} dfk_needle;

/* Prepare a needle, in linear time.  The bytes are not copied: they must outlive the needle.
 * 0, or -1 when `size` is negative. */
int dfk_needle_init(dfk_needle *needle, const char *data, ptrdiff_t size);

/* The first occurrence of the needle, or NULL.  An empty needle stands at `data`.
 * The time is linear in `size`, whatever the bytes are. */
const char *dfk_find(const dfk_needle *needle, const char *data, ptrdiff_t size);

/* Change the case of the ASCII letters; every other byte is copied as it is.
 * `dst` is `src` itself or does not overlap it. */
void dfk_upper(char *dst, const char *src, ptrdiff_t size);
void dfk_lower(char *dst, const char *src, ptrdiff_t size);

/* How often `byte` occurs. */
ptrdiff_t dfk_count(const char *data, ptrdiff_t size, char byte);

/* The lines of a block, without their terminator; returns how many were written to `out`.
 *
 * A line ends with '\n', with `crlf` also with "\r\n".  What follows the last '\n', unless it is
 * empty, is a line as it stands.  One more than the number of '\n' is always enough capacity; the
 * split stops when `out` is full. */
ptrdiff_t dfk_split(const char *data, ptrdiff_t size, int crlf, df_view *out, ptrdiff_t capacity);

/* Write every value, each followed by the separator: dfk_total + count * sep_size bytes. */
void dfk_join(char *dst, const df_view *values, ptrdiff_t count, const char *sep,
              ptrdiff_t sep_size);

/* The sum of the sizes. */
ptrdiff_t dfk_total(const df_view *values, ptrdiff_t count);

/* The instruction set in use: "avx512", "avx2", "sse2", "neon" or "scalar". */
const char *dfk_simd(void);

/* Use another one.  0, or -1 when the name is unknown or this CPU lacks it.  Not to be called
 * while a kernel runs in another thread. */
int dfk_select(const char *name);

/* The instruction sets of this CPU, best first; NULL from the index on where they end. */
const char *dfk_level(int index);

#pragma GCC visibility pop

#endif
