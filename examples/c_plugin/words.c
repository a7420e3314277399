/* Plugins in C, without a line of Python: a shared library, loaded by ctypes or cffi. */
#include "dataflare.h"

#include <stdlib.h>

/* The first word of a line; nothing is copied. */
int first_word(const df_record *record, df_emitter *out, void *state) {
    const char *space = NULL;
    (void)state;
    if (record->value.size > 0) {
        space = (const char *)memchr(record->value.data, ' ', (size_t)record->value.size);
    }
    if (space == NULL) {
        return df_fail(out, 1, "the line has too few words");
    }
    return df_forward(out, record, 0, space - record->value.data);
}

/* Keeps the lines that are longer than the ptrdiff_t that `state` leads to. */
int longer_than(const df_record *record, df_emitter *out, void *state) {
    (void)out;
    return record->value.size > *(const ptrdiff_t *)state ? DF_SKIP : DF_FILTERED;
}

/* Puts a prefix in front of each line.  A descriptor says more than a pointer: the sizes of the
 * structs it was built with, how the state is made and freed, whether threads may share it. */
typedef struct prefix {
    size_t size;
    char text[1]; /* `size` bytes, and a zero */
} prefix;

static int prefix_init(void **state, df_view config, char message[DF_MESSAGE_SIZE]) {
    prefix *made;
    if (config.size == 0) {
        strcpy(message, "the configuration is the prefix, and it is empty");
        return -1;
    }
    made = (prefix *)malloc(sizeof(prefix) + (size_t)config.size);
    if (made == NULL) {
        strcpy(message, "no memory for the prefix");
        return -1;
    }
    made->size = (size_t)config.size;
    memcpy(made->text, config.data, made->size);
    *state = made;
    return 0;
}

static int prefix_process(const df_record *record, df_emitter *out, void *state) {
    const prefix *front = (const prefix *)state;
    ptrdiff_t size = (ptrdiff_t)front->size + record->value.size;
    char *target = df_reserve(out, size);
    if (target == NULL) {
        return DF_ERROR; /* the reason is noted */
    }
    memcpy(target, front->text, front->size);
    if (record->value.size > 0) {
        memcpy(target + front->size, record->value.data, (size_t)record->value.size);
    }
    return df_commit(out, size);
}

const df_plugin prefix_plugin = {
    DF_PLUGIN_HEAD,
    DF_THREAD_SAFE,
    0,
    "prefix",
    "Puts a prefix in front of each line.",
    prefix_process,
    NULL,
    prefix_init,
    free,
    NULL,
};
