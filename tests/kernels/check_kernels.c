/* Compares every kernel, at every level this CPU has, with a naive loop on random input.
 *
 *     check_kernels [ROUNDS [SEED]]
 *
 * Input and output lie flush against a page that cannot be touched, in front of it or behind it in
 * turn, so that a byte read or written outside the range ends the program.  Exits with 1 after the
 * first difference and says what it was.
 */
#define _DEFAULT_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels.c" /* for find_linear, which is checked by itself too */

#define MAX_SIZE 20000
#define CANARY 0x5a
#define MARGIN 128 /* how far beside a range a stray write is looked for */

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s: round %ld: not %s\n", dfk_simd(), current_round, #condition);     \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static long current_round;
static uint64_t random_state;

/* xorshift64: G. Marsaglia, Journal of Statistical Software 8 (2003), issue 14. */
static uint64_t random_bits(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static ptrdiff_t below(ptrdiff_t limit)
{
    return (ptrdiff_t)((random_bits() >> 16) % (uint64_t)limit);
}

static ptrdiff_t random_size(void)
{
    switch (below(16)) {
    case 0:
        return below(MAX_SIZE);
    case 1:
        return below(3000);
    case 2:
    case 3:
        return below(10);
    default:
        return below(300);
    }
}

static void fill(char *data, ptrdiff_t size)
{
    static const char *alphabets[] = {
        "a", "\n", "ab", "aab", "abcdefgh", "x\n", "ab\r\n", "abc  012ER\n",
    };
    const size_t choice = (size_t)below(10);
    for (ptrdiff_t i = 0; i < size; i++) {
        if (choice < sizeof alphabets / sizeof alphabets[0]) {
            data[i] = alphabets[choice][below((ptrdiff_t)strlen(alphabets[choice]))];
        } else {
            data[i] = (char)random_bits();
        }
    }
}

/* A short pattern again and again, now and then disturbed: candidates fail late, so that most of
 * the search is done by the method that is linear in any case. */
static void fill_periodic(char *data, ptrdiff_t size)
{
    const ptrdiff_t period = 1 + below(size < 8 ? size : 8);
    const ptrdiff_t disturb = 4 + below(below(2) ? 100 : 2000);
    fill(data, period);
    for (ptrdiff_t i = period; i < size; i++) {
        data[i] = data[i - period];
    }
    for (ptrdiff_t i = below(disturb); i < size; i += 1 + below(disturb)) {
        data[i] = data[below(size)];
    }
}

/* Memory between two pages that cannot be touched. */
typedef struct arena {
    char *base;
    ptrdiff_t room;
    char *data; /* what is in use, at one of the ends */
    ptrdiff_t size;
    char *margin; /* on the side that has no guard page */
} arena;

static arena new_arena(ptrdiff_t room)
{
    const ptrdiff_t page = (ptrdiff_t)sysconf(_SC_PAGESIZE);
    room = (room + MARGIN + page - 1) / page * page;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    char *map = mmap(NULL, (size_t)(room + 2 * page), PROT_NONE, flags, -1, 0);
    if (map == MAP_FAILED || mprotect(map + page, (size_t)room, PROT_READ | PROT_WRITE) != 0) {
        perror("check_kernels");
        exit(2);
    }
    return (arena){.base = map + page, .room = room};
}

static char *take(arena *a, ptrdiff_t size)
{
    const int at_end = (int)below(2);
    a->data = at_end ? a->base + a->room - size : a->base;
    a->size = size;
    a->margin = at_end ? a->data - MARGIN : a->data + size;
    memset(a->margin, CANARY, MARGIN);
    return a->data;
}

static void check_margin(const arena *a)
{
    for (ptrdiff_t i = 0; i < MARGIN; i++) {
        CHECK(a->margin[i] == CANARY);
    }
}

static const char *naive_find(const char *needle, ptrdiff_t length, const char *data,
                              ptrdiff_t size)
{
    for (ptrdiff_t at = 0; at <= size - length; at++) {
        if (memcmp(data + at, needle, (size_t)length) == 0) {
            return data + at;
        }
    }
    return NULL;
}

static void check_find(arena *input, arena *pattern)
{
    const ptrdiff_t size = random_size();
    char *data = take(input, size);
    if (size > 0 && below(3) == 0) {
        fill_periodic(data, size);
    } else {
        fill(data, size);
    }
    ptrdiff_t length = below(3) ? below(12) : below(300);
    char *needle = take(pattern, length);
    if (below(3) && length <= size) {
        memcpy(needle, data + below(size - length + 1), (size_t)length);
    } else if (length > 0 && below(2)) {
        fill_periodic(needle, length);
    } else {
        fill(needle, length);
    }
    if (length > 0 && below(3) == 0) {
        needle[below(length)] = needle[below(length)];
    }
    /* Over each other, so that one place looks like the needle except for its beginning. */
    for (ptrdiff_t i = length <= size ? below(20) : 0, to = 0; i > 0; i--) {
        to += below(length + 1);
        to = to <= size - length ? to : below(size - length + 1);
        memcpy(data + to, needle, (size_t)length);
    }
    dfk_needle prepared;
    CHECK(dfk_needle_init(&prepared, needle, length) == 0);
    const char *at = data;
    for (int hits = 0; hits < 20; hits++) {
        const ptrdiff_t rest = data + size - at;
        const char *hit = naive_find(needle, length, at, rest);
        CHECK(dfk_find(&prepared, at, rest) == hit);
        CHECK(length == 0 || find_linear(&prepared, at, rest) == hit);
        if (hit == NULL || hit == data + size) {
            break;
        }
        at = hit + 1;
    }
}

/* Candidates that fail late, then a hit: everywhere around where the search changes its method. */
static void check_find_at_change(arena *input)
{
    char needle[42];
    for (ptrdiff_t size = (ptrdiff_t)sizeof needle; size < 1000; size += 2) {
        char *data = take(input, size);
        for (ptrdiff_t i = 0; i < size; i++) {
            data[i] = i % 2 && i < size - 1 ? 'b' : 'a';
        }
        const char *hit = data + size - sizeof needle;
        memcpy(needle, hit, sizeof needle);
        dfk_needle prepared;
        CHECK(dfk_needle_init(&prepared, needle, sizeof needle) == 0);
        CHECK(dfk_find(&prepared, data, size) == hit);
    }
}

/* Input on which candidates fail late; a search in quadratic time would not come to an end. */
static void check_find_is_linear(void)
{
    const ptrdiff_t size = 1 << 21;
    const ptrdiff_t length = 1 << 18;
    char *data = malloc((size_t)size);
    char *needle = malloc((size_t)length);
    if (data == NULL || needle == NULL) {
        perror("check_kernels");
        exit(2);
    }
    for (ptrdiff_t odd = 0; odd < length; odd += odd == 0 ? 1 : length / 2 - 1) {
        for (int flipped = 0; flipped < 2; flipped++) {
            memset(data, 'a', (size_t)size);
            memset(needle, 'a', (size_t)length);
            (flipped ? data + size - length : needle)[odd] = 'b';
            for (ptrdiff_t i = length - 1; flipped && i < size; i += length - 1) {
                data[i] = 'b';
            }
            dfk_needle prepared;
            CHECK(dfk_needle_init(&prepared, needle, length) == 0);
            CHECK(dfk_find(&prepared, data, size) == NULL);
            data[size - length - 1] = 'c';
            memcpy(data + size - length, needle, (size_t)length);
            CHECK(dfk_find(&prepared, data, size) == data + size - length);
        }
    }
    free(data);
    free(needle);
}

static char naive_upper(char c)
{
    return c >= 'a' && c <= 'z' ? (char)(c - 32) : c;
}

static char naive_lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
}

static void check_case(arena *input, arena *output)
{
    const ptrdiff_t size = random_size();
    const int up = (int)below(2);
    char *src = take(input, size);
    for (ptrdiff_t i = 0; i < size; i++) {
        src[i] = (char)random_bits();
    }
    char *dst = take(output, size);
    (up ? dfk_upper : dfk_lower)(dst, src, size);
    for (ptrdiff_t i = 0; i < size; i++) {
        CHECK(dst[i] == (up ? naive_upper : naive_lower)(src[i]));
    }
    check_margin(output);
    (up ? dfk_upper : dfk_lower)(src, src, size);
    CHECK(size == 0 || memcmp(src, dst, (size_t)size) == 0);
    check_margin(input);
}

static void check_lines(arena *input, arena *views, arena *output)
{
    const ptrdiff_t size = random_size();
    const int crlf = (int)below(2);
    char *data = take(input, size);
    fill(data, size);

    ptrdiff_t newlines = 0;
    for (ptrdiff_t i = 0; i < size; i++) {
        newlines += data[i] == '\n';
    }
    CHECK(dfk_count(data, size, '\n') == newlines);
    const ptrdiff_t lines = newlines + (size > 0 && data[size - 1] != '\n');
    const ptrdiff_t capacity = below(8) ? lines : below(lines + 1);
    df_view *out = (df_view *)(void *)take(views, capacity * (ptrdiff_t)sizeof(df_view));
    CHECK(dfk_split(data, size, crlf, out, capacity) == capacity);
    check_margin(views);
    ptrdiff_t start = 0;
    ptrdiff_t total = 0;
    for (ptrdiff_t i = 0; i < capacity; i++) {
        ptrdiff_t end = start;
        while (end < size && data[end] != '\n') {
            end++;
        }
        const int stripped = crlf && end < size && end > start && data[end - 1] == '\r';
        CHECK(out[i].data == data + start);
        CHECK(out[i].size == end - start - stripped);
        total += out[i].size;
        start = end + 1;
    }
    CHECK(dfk_total(out, capacity) == total);

    /* Join a selection of the lines, some cut short or moved on, some replaced by bytes from
     * elsewhere or by nothing. */
    ptrdiff_t count = 0;
    const ptrdiff_t keep = 1 + below(4);
    const ptrdiff_t change = 1 + below(40);
    for (ptrdiff_t i = 0; i < capacity; i++) {
        if (below(keep) != 0) {
            continue;
        }
        df_view line = out[i];
        if (below(change) == 0 && line.size > 0) {
            line.size--;
            line.data += below(2);
        } else if (below(change) == 0) {
            line = below(2) ? (df_view){"elsewhere", 9} : (df_view){NULL, 0};
        }
        out[count++] = line;
    }
    static const char *separators[] = {"", "\n", "\r\n", "a", ", and then "};
    const char *sep = separators[below(5)];
    const ptrdiff_t sep_size = (ptrdiff_t)strlen(sep);
    const ptrdiff_t joined = dfk_total(out, count) + count * sep_size;
    char *dst = take(output, joined);
    dfk_join(dst, out, count, sep, sep_size);
    const char *at = dst;
    for (ptrdiff_t i = 0; i < count; i++) {
        CHECK(out[i].size == 0 || memcmp(at, out[i].data, (size_t)out[i].size) == 0);
        at += out[i].size;
        CHECK(memcmp(at, sep, (size_t)sep_size) == 0);
        at += sep_size;
    }
    check_margin(output);
}

int main(int argc, char **argv)
{
    const long rounds = argc > 1 ? strtol(argv[1], NULL, 10) : 20000;
    const uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    arena input = new_arena(MAX_SIZE);
    arena pattern = new_arena(300);
    arena views = new_arena(MAX_SIZE * (ptrdiff_t)sizeof(df_view));
    arena output = new_arena(MAX_SIZE * 20);

    CHECK(strcmp(dfk_simd(), dfk_level(0)) == 0);
    CHECK(dfk_select("unknown") == -1);
    CHECK(dfk_needle_init(&(dfk_needle){0}, "", -1) == -1);
    for (int i = 0; dfk_level(i) != NULL; i++) {
        CHECK(dfk_select(dfk_level(i)) == 0);
        CHECK(strcmp(dfk_simd(), dfk_level(i)) == 0);
        random_state = seed * 0x9e3779b97f4a7c15u | 1;
        for (current_round = 0; current_round < rounds; current_round++) {
            check_find(&input, &pattern);
            check_case(&input, &output);
            check_lines(&input, &views, &output);
        }
        check_find_at_change(&input);
        check_find_is_linear();
        puts(dfk_simd());
    }
    return 0;
}
