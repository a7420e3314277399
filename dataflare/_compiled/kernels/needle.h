/* What a search knows of its needle: the bytes to look for first, and a search in linear time for
 * the input on which looking for them does not help.  Private to kernels.c.
 */
#ifndef DATAFLARE_NEEDLE_H
#define DATAFLARE_NEEDLE_H

#include <string.h>

#include "kernels.h"

/* The bytes of logs, JSON, source code and prose, commonest first; any other byte is rarer. */
static const char COMMON_BYTES[] =
    " e0t1ao2in\"rs3ld5:c4,u-m6pf.789hg_y\n/\tb=vw\0{}[]()'k;ESTAICNRODLPMxFUG\\B>zHq<j"
    "\x80\xe2\xc3\xd0\xd1\xe3\xe4\xe5\xe6V+WY&%*KX@?#Jr!|$ZQ~`^\xff";

/* Higher is rarer. */
static ptrdiff_t rarity(char byte)
{
    const ptrdiff_t length = (ptrdiff_t)sizeof COMMON_BYTES - 1;
    const char *place = memchr(COMMON_BYTES, byte, (size_t)length);
    return place == NULL ? length : place - COMMON_BYTES;
}

/* Where the rarest byte stands, one different from the byte at `taken` if there is one. */
static ptrdiff_t rarest(const char *data, ptrdiff_t size, ptrdiff_t taken)
{
    ptrdiff_t best = size - 1;
    ptrdiff_t best_rarity = -1;
    for (ptrdiff_t i = 0; i < size; i++) {
        if (taken >= 0 && data[i] == data[taken]) {
            continue;
        }
        ptrdiff_t candidate = rarity(data[i]);
        if (candidate > best_rarity) {
            best = i;
            best_rarity = candidate;
        }
    }
    return best;
}

/* Two-way string matching: M. Crochemore and D. Perrin, Journal of the ACM 38 (1991), 651-675.
 *
 * The needle is cut at a critical position, where the local period is the period of the whole.
 * Compare the right part from left to right, then the left part from right to left: a mismatch in
 * the right part moves the needle past it, one in the left part by the period. */

/* Start of the greatest suffix, in the order of the bytes or in the reverse one, and its period. */
static ptrdiff_t greatest_suffix(const unsigned char *data, ptrdiff_t size, int reverse,
                                 ptrdiff_t *period)
{
    ptrdiff_t start = 0;
    ptrdiff_t challenger = 1;
    ptrdiff_t equal = 0; /* how many bytes of the two suffixes are known to be equal */
    *period = 1;
    while (challenger + equal < size) {
        unsigned char ours = data[start + equal];
        unsigned char theirs = data[challenger + equal];
        if (ours == theirs) {
            equal++;
            if (equal == *period) {
                challenger += equal;
                equal = 0;
            }
        } else if ((theirs < ours) != reverse) {
            challenger += equal + 1;
            equal = 0;
            *period = challenger - start;
        } else {
            start = challenger;
            challenger = start + 1;
            equal = 0;
            *period = 1;
        }
    }
    return start;
}

static void factorise(dfk_needle *needle)
{
    const unsigned char *data = (const unsigned char *)needle->data;
    ptrdiff_t period;
    ptrdiff_t reverse_period;
    ptrdiff_t start = greatest_suffix(data, needle->size, 0, &period);
    ptrdiff_t reverse_start = greatest_suffix(data, needle->size, 1, &reverse_period);
    needle->critical = start > reverse_start ? start : reverse_start;
    needle->period = start > reverse_start ? period : reverse_period;
}

static const char *find_linear(const dfk_needle *needle, const char *data, ptrdiff_t size)
{
    const char *pattern = needle->data;
    const ptrdiff_t length = needle->size;
    const ptrdiff_t critical = needle->critical;
    ptrdiff_t period = needle->period;
    ptrdiff_t overlap = length - period; /* how much is known to match after a move by the period */
    if (memcmp(pattern, pattern + period, (size_t)critical) != 0) {
        /* The period is that of the right part only; the needle's own is at least this: */
        period = (critical > length - critical ? critical : length - critical) + 1;
        overlap = 0;
    }
    ptrdiff_t known = 0;
    for (ptrdiff_t at = 0; at <= size - length;) {
        ptrdiff_t i = critical > known ? critical : known;
        while (i < length && pattern[i] == data[at + i]) {
            i++;
        }
        if (i < length) {
            at += i - critical + 1;
            known = 0;
            continue;
        }
        i = critical;
        while (i > known && pattern[i - 1] == data[at + i - 1]) {
            i--;
        }
        if (i <= known) {
            return data + at;
        }
        at += period;
        known = overlap;
    }
    return NULL;
}

#endif
