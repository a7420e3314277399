/* Which kernels there are, and which are in use. */
#include "kernels.h"

#include <stdint.h>
#include <string.h>

#include "needle.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>
#endif

/* What is shorter than the narrowest vector goes byte by byte. */

static const char *find_bytes(const dfk_needle *needle, const char *data, ptrdiff_t size)
{
    for (ptrdiff_t at = 0; at <= size - needle->size; at++) {
        if (data[at + needle->rare] == needle->data[needle->rare]
            && memcmp(data + at, needle->data, (size_t)needle->size) == 0) {
            return data + at;
        }
    }
    return NULL;
}

static inline void upper_bytes(char *dst, const char *src, ptrdiff_t size)
{
    for (ptrdiff_t i = 0; i < size; i++) {
        char c = src[i];
        dst[i] = c >= 'a' && c <= 'z' ? (char)(c - ('a' - 'A')) : c;
    }
}

static inline void lower_bytes(char *dst, const char *src, ptrdiff_t size)
{
    for (ptrdiff_t i = 0; i < size; i++) {
        char c = src[i];
        dst[i] = c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c;
    }
}

static inline void copy_bytes(char *dst, const char *src, ptrdiff_t size)
{
    for (ptrdiff_t i = 0; i < size; i++) {
        dst[i] = src[i];
    }
}

static inline int equal_words(const char *a, const char *b)
{
    uint64_t x;
    uint64_t y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return x == y;
}

/* Whether the needle stands at `at`; `spent` counts the bytes compared.  Calls no memcmp, before
 * which the vectors of the caller would have to be saved. */
static inline int matches(const dfk_needle *needle, const char *at, ptrdiff_t *spent)
{
    const char *data = needle->data;
    const ptrdiff_t size = needle->size;
    ptrdiff_t i = 0;
    while (size - i >= 8 && equal_words(at + i, data + i)) {
        i += 8;
    }
    while (i < size && at[i] == data[i]) {
        i++;
    }
    *spent += i;
    return i == size;
}

/* How many bytes may be compared in vain in the first `at` bytes: many candidates that fail late
 * would take quadratic time, so beyond this the search goes on in linear time. */
static inline ptrdiff_t budget(ptrdiff_t at)
{
    return 1024 + 4 * at;
}

static inline df_view line(const char *start, const char *end, int crlf)
{
    ptrdiff_t size = end - start;
    if (crlf && size > 0 && end[-1] == '\r') {
        size--;
    }
    return (df_view){start, size};
}

#define LEVEL scalar
#define NARROWER bytes
#define TARGET
#define WIDTH 8
#define LANE 8
#define MASK(equal) mask_scalar((uint64_t)(equal))
static inline uint64_t mask_scalar(uint64_t equal)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    equal = __builtin_bswap64(equal);
#endif
    return equal & 0x0101010101010101;
}
#include "kernels_impl.h"

#if defined(__x86_64__)

#define LEVEL sse2
#define NARROWER scalar
#define TARGET
#define WIDTH 16
#define LANE 1
#define MASK(equal) ((uint64_t)(unsigned)_mm_movemask_epi8((__m128i)(equal)))
#include "kernels_impl.h"

#define LEVEL avx2
#define NARROWER sse2
#define TARGET __attribute__((target("avx2,bmi")))
#define WIDTH 32
#define LANE 1
#define MASK(equal) ((uint64_t)(unsigned)_mm256_movemask_epi8((__m256i)(equal)))
#include "kernels_impl.h"

#define LEVEL avx512
#define NARROWER avx2
#define TARGET __attribute__((target("avx512bw,avx2,bmi")))
#define WIDTH 64
#define LANE 1
#define MASK(equal) ((uint64_t)_mm512_movepi8_mask((__m512i)(equal)))
#include "kernels_impl.h"

#elif defined(__aarch64__) && defined(__ARM_NEON)

#define LEVEL neon
#define NARROWER scalar
#define TARGET
#define WIDTH 16
#define LANE 4
#define MASK(equal) mask_neon((uint16x8_t)(equal))
/* The narrowing shift leaves four bits of each byte. */
static inline uint64_t mask_neon(uint16x8_t equal)
{
    uint8x8_t nibbles = vshrn_n_u16(equal, 4);
    return vget_lane_u64(vreinterpret_u64_u8(nibbles), 0) & 0x1111111111111111;
}
#include "kernels_impl.h"

#endif

typedef struct level {
    const char *name;
    const char *(*find)(const dfk_needle *, const char *, ptrdiff_t);
    void (*upper)(char *, const char *, ptrdiff_t);
    void (*lower)(char *, const char *, ptrdiff_t);
    ptrdiff_t (*count)(const char *, ptrdiff_t, char);
    ptrdiff_t (*split)(const char *, ptrdiff_t, int, df_view *, ptrdiff_t);
    void (*join)(char *, const df_view *, ptrdiff_t, const char *, ptrdiff_t);
} level;

#define LEVEL_OF(name)                                                                             \
    {                                                                                              \
        #name, find_##name, upper_##name, lower_##name, count_##name, split_##name, join_##name    \
    }

/* Best first. */
static const level levels[] = {
#if defined(__x86_64__)
    LEVEL_OF(avx512),
    LEVEL_OF(avx2),
    LEVEL_OF(sse2),
#elif defined(__aarch64__) && defined(__ARM_NEON)
    LEVEL_OF(neon),
#endif
    LEVEL_OF(scalar),
};
static const int level_count = (int)(sizeof levels / sizeof levels[0]);

static const level *active = &levels[sizeof levels / sizeof levels[0] - 1];

/* How many of the best levels this CPU lacks. */
static int lacking(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi");
    return !avx2 ? 2 : __builtin_cpu_supports("avx512bw") ? 0 : 1;
#else
    return 0;
#endif
}

__attribute__((constructor)) static void select_best(void)
{
    active = &levels[lacking()];
}

const char *dfk_simd(void)
{
    return active->name;
}

const char *dfk_level(int index)
{
    return index >= 0 && index < level_count - lacking() ? levels[index + lacking()].name : NULL;
}

int dfk_select(const char *name)
{
    for (int i = lacking(); i < level_count; i++) {
        if (strcmp(levels[i].name, name) == 0) {
            active = &levels[i];
            return 0;
        }
    }
    return -1;
}

int dfk_needle_init(dfk_needle *needle, const char *data, ptrdiff_t size)
{
    if (size < 0) {
        return -1;
    }
    *needle = (dfk_needle){.data = data, .size = size};
    if (size > 0) {
        needle->rare = rarest(data, size, -1);
        needle->other = rarest(data, size, needle->rare);
        factorise(needle);
    }
    return 0;
}

const char *dfk_find(const dfk_needle *needle, const char *data, ptrdiff_t size)
{
    return needle->size == 0 ? data : active->find(needle, data, size);
}

void dfk_upper(char *dst, const char *src, ptrdiff_t size)
{
    active->upper(dst, src, size);
}

void dfk_lower(char *dst, const char *src, ptrdiff_t size)
{
    active->lower(dst, src, size);
}

ptrdiff_t dfk_count(const char *data, ptrdiff_t size, char byte)
{
    return active->count(data, size, byte);
}

ptrdiff_t dfk_split(const char *data, ptrdiff_t size, int crlf, df_view *out, ptrdiff_t capacity)
{
    return active->split(data, size, crlf, out, capacity);
}

void dfk_join(char *dst, const df_view *values, ptrdiff_t count, const char *sep,
              ptrdiff_t sep_size)
{
    active->join(dst, values, count, sep, sep_size);
}

ptrdiff_t dfk_total(const df_view *values, ptrdiff_t count)
{
    ptrdiff_t total = 0;
    for (ptrdiff_t i = 0; i < count; i++) {
        total += values[i].size;
    }
    return total;
}
