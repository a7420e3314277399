/* The kernels, once for every instruction set.  Included by kernels.c with these defined, and
 * undefined again here:
 *
 *   LEVEL           suffix of the functions below
 *   NARROWER        suffix of the level that takes over what is shorter than a vector
 *   TARGET          attribute of a function that may use the instruction set
 *   WIDTH           bytes in a vector
 *   LANE            bits that MASK gives to a byte
 *   MASK(equal)     uint64_t: the lowest bit of each lane tells whether the byte of `equal`, which
 *                   is all ones or zero, is set
 */

#define PASTE_(name, level) name##_##level
#define PASTE(name, level) PASTE_(name, level)
#define OWN(name) PASTE(name, LEVEL)
#define NARROW(name) PASTE(name, NARROWER)
#define VEC OWN(vec)
#define UVEC OWN(uvec)

/* As many bytes as fit into one mask. */
#define SPAN (64 / LANE)

/* Comparison gives signed lanes; arithmetic wants unsigned ones, which may wrap. */
typedef int8_t VEC __attribute__((vector_size(WIDTH)));
typedef uint8_t UVEC __attribute__((vector_size(WIDTH)));

#define LOAD(vector, from) memcpy(&(vector), (from), WIDTH)
#define STORE(to, vector) memcpy((to), &(vector), WIDTH)
#define SPLAT(byte) ((VEC){0} + (int8_t)(byte))

/* Which of the SPAN bytes at `at` are `byte`. */
TARGET static inline uint64_t OWN(places)(const char *at, char byte)
{
    const VEC wanted = SPLAT(byte);
    uint64_t mask = 0;
    for (int i = 0; i < SPAN; i += WIDTH) {
        VEC v;
        LOAD(v, at + i);
        mask |= MASK(v == wanted) << i;
    }
    return mask;
}

/* At which of the `span` bytes at `at` both rare bytes of the needle are in place. */
TARGET static inline uint64_t OWN(candidates)(const dfk_needle *needle, const char *at, int span)
{
    const VEC rare_byte = SPLAT(needle->data[needle->rare]);
    const VEC other_byte = SPLAT(needle->data[needle->other]);
    uint64_t mask = 0;
    for (int i = 0; i < span; i += WIDTH) {
        VEC rare;
        VEC other;
        LOAD(rare, at + needle->rare + i);
        LOAD(other, at + needle->other + i);
        mask |= MASK((rare == rare_byte) & (other == other_byte)) << i;
    }
    return mask;
}

/* The first of the candidates at which the needle stands, or NULL. */
TARGET static inline const char *OWN(verified)(const dfk_needle *needle, const char *at,
                                               uint64_t mask, ptrdiff_t *spent)
{
    for (; mask != 0; mask &= mask - 1) {
        const char *candidate = at + __builtin_ctzll(mask) / LANE;
        if (matches(needle, candidate, spent)) {
            return candidate;
        }
    }
    return NULL;
}

TARGET static const char *OWN(find)(const dfk_needle *needle, const char *data, ptrdiff_t size)
{
    const ptrdiff_t starts = size - needle->size + 1;
    if (starts < WIDTH) {
        return NARROW(find)(needle, data, size);
    }
    ptrdiff_t spent = 0;
    ptrdiff_t at = 0;
    for (; starts - at >= SPAN; at += SPAN) {
        const uint64_t mask = OWN(candidates)(needle, data + at, SPAN);
        if (mask != 0) {
            const char *hit = OWN(verified)(needle, data + at, mask, &spent);
            if (hit != NULL) {
                return hit;
            }
            if (spent > budget(at)) {
                at += SPAN;
                return find_linear(needle, data + at, size - at);
            }
        }
    }
    for (; at < starts; at += WIDTH) {
        if (starts - at < WIDTH) {
            at = starts - WIDTH; /* overlaps what has been searched */
        }
        const uint64_t mask = OWN(candidates)(needle, data + at, WIDTH);
        if (mask != 0) {
            const char *hit = OWN(verified)(needle, data + at, mask, &spent);
            if (hit != NULL) {
                return hit;
            }
        }
    }
    return NULL;
}

/* Each lane counts for itself, up to 255, since a comparison gives -1 where it holds. */
TARGET static ptrdiff_t OWN(count)(const char *data, ptrdiff_t size, char byte)
{
    const VEC wanted = SPLAT(byte);
    ptrdiff_t total = 0;
    ptrdiff_t at = 0;
    while (size - at >= WIDTH) {
        const ptrdiff_t vectors = (size - at) / WIDTH;
        const ptrdiff_t end = at + WIDTH * (vectors < 255 ? vectors : 255);
        UVEC lanes = {0};
#pragma GCC unroll 4 /* too little in the loop for its branch otherwise */
        for (; at < end; at += WIDTH) {
            VEC v;
            LOAD(v, data + at);
            lanes -= (UVEC)(v == wanted);
        }
        for (int i = 0; i < WIDTH; i++) {
            total += lanes[i];
        }
    }
    for (; at < size; at++) {
        total += data[at] == byte;
    }
    return total;
}

TARGET static ptrdiff_t OWN(split)(const char *data, ptrdiff_t size, int crlf, df_view *out,
                                   ptrdiff_t capacity)
{
    const char *start = data;
    const char *end = data + size;
    const char *at = data;
    ptrdiff_t count = 0;
    for (; end - at >= SPAN; at += SPAN) {
        for (uint64_t mask = OWN(places)(at, '\n'); mask != 0; mask &= mask - 1) {
            if (count == capacity) {
                return count;
            }
            const char *stop = at + __builtin_ctzll(mask) / LANE;
            out[count++] = line(start, stop, crlf);
            start = stop + 1;
        }
    }
    for (; at < end && count < capacity; at++) {
        if (*at == '\n') {
            out[count++] = line(start, at, crlf);
            start = at + 1;
        }
    }
    if (start < end && count < capacity) {
        out[count++] = line(start, end, 0);
    }
    return count;
}

/* The last vector may overlap the one before it.  It is loaded first, since dst may be src. */
#define MAP(name, FUNCTION)                                                                        \
    TARGET static inline void OWN(name)(char *dst, const char *src, ptrdiff_t size)                \
    {                                                                                              \
        if (size < WIDTH) {                                                                        \
            NARROW(name)(dst, src, size);                                                          \
            return;                                                                                \
        }                                                                                          \
        VEC last;                                                                                  \
        LOAD(last, src + size - WIDTH);                                                            \
        for (ptrdiff_t at = 0; at < size - WIDTH; at += WIDTH) {                                   \
            VEC v;                                                                                 \
            LOAD(v, src + at);                                                                     \
            v = FUNCTION(v);                                                                       \
            STORE(dst + at, v);                                                                    \
        }                                                                                          \
        last = FUNCTION(last);                                                                     \
        STORE(dst + size - WIDTH, last);                                                           \
    }

/* The 26 bytes up to `z` are moved to the greatest signed ones, so that one comparison tells. */
#define FLIP(v, z)                                                                                 \
    ((v) ^ (((VEC)((UVEC)(v) + (uint8_t)(127 - (z))) > SPLAT(127 - 26)) & SPLAT('a' - 'A')))
#define UPPER(v) FLIP(v, 'z')
#define LOWER(v) FLIP(v, 'Z')
#define SAME(v) (v)

MAP(upper, UPPER)
MAP(lower, LOWER)
MAP(copy, SAME)

TARGET static void OWN(join)(char *dst, const df_view *values, ptrdiff_t count, const char *sep,
                             ptrdiff_t sep_size)
{
    for (ptrdiff_t i = 0; i < count; i++) {
        const ptrdiff_t size = values[i].size;
        OWN(copy)(dst, values[i].data, size);
        dst += size;
        copy_bytes(dst, sep, sep_size);
        dst += sep_size;
    }
}

#undef LEVEL
#undef NARROWER
#undef TARGET
#undef WIDTH
#undef LANE
#undef MASK
#undef PASTE_
#undef PASTE
#undef OWN
#undef NARROW
#undef VEC
#undef UVEC
#undef SPAN
#undef LOAD
#undef STORE
#undef SPLAT
#undef MAP
#undef FLIP
#undef UPPER
#undef LOWER
#undef SAME
