/* Plugins in C for the tests: good ones, and some that do what a plugin must not do. */
#include "dataflare.h"

#include <stdlib.h>

extern int PyGILState_Check(void); /* of the Python that loads this */

int first_word(const df_record *record, df_emitter *out, void *state) {
    const char *space = record->value.size > 0
        ? (const char *)memchr(record->value.data, ' ', (size_t)record->value.size)
        : NULL;
    (void)state;
    if (space == NULL) {
        return df_fail(out, 7, "the line has no word");
    }
    return df_forward(out, record, 0, space - record->value.data);
}

/* The value of `state`, a byte, as often as the value's bytes say. */
int repeat(const df_record *record, df_emitter *out, void *state) {
    ptrdiff_t i, count = 0;
    char *target;
    for (i = 0; i < record->value.size; i++) {
        count = count * 10 + record->value.data[i] - '0';
    }
    target = df_reserve(out, count);
    if (target == NULL) {
        return DF_ERROR;
    }
    memset(target, *(const char *)state, (size_t)count);
    return df_commit(out, count);
}

int show_state(const df_record *record, df_emitter *out, void *state) {
    (void)record;
    return df_emit(out, (const char *)&state, (ptrdiff_t)sizeof(state));
}

/* Whether Python's lock is held. */
int show_lock(const df_record *record, df_emitter *out, void *state) {
    (void)record;
    (void)state;
    return PyGILState_Check() ? df_emit(out, "held", 4) : df_emit(out, "free", 4);
}

int show_record(const df_record *record, df_emitter *out, void *state) {
    int64_t numbers[4];
    (void)state;
    numbers[0] = record->timestamp;
    numbers[1] = record->offset;
    numbers[2] = record->partition;
    numbers[3] = record->key.data == NULL ? -1 : (int64_t)record->key.size;
    return df_emit(out, (const char *)numbers, (ptrdiff_t)sizeof(numbers));
}

/* Counts its calls in `state`, and waits for another thread at a record "meet". */
typedef struct meeting {
    int64_t calls;
    int64_t here;
    int64_t met;
} meeting;

int meet(const df_record *record, df_emitter *out, void *state) {
    meeting *all = (meeting *)state;
    int64_t patience = (int64_t)1 << 34;
    (void)out;
    __atomic_fetch_add(&all->calls, 1, __ATOMIC_RELAXED);
    if (record->value.size == 4) {
        __atomic_fetch_add(&all->here, 1, __ATOMIC_SEQ_CST);
        while (__atomic_load_n(&all->here, __ATOMIC_SEQ_CST) < 2 && patience > 0) {
            patience--;
        }
        if (patience > 0) {
            __atomic_fetch_add(&all->met, 1, __ATOMIC_RELAXED);
        }
    }
    return DF_SKIP;
}

/* The first byte of a record says which rule is broken. */
int odd(const df_record *record, df_emitter *out, void *state) {
    (void)state;
    switch (record->value.size > 0 ? record->value.data[0] : '.') {
    case 'u': return 42;
    case 'm': return -1;
    case 's': return DF_SUCCESS;
    case 'c': return df_commit(out, 5);
    case 'r': return df_reserve(out, -7) == NULL ? DF_ERROR : DF_SUCCESS;
    case 'h': return df_reserve(out, PTRDIFF_MAX / 8) == NULL ? DF_ERROR : DF_SUCCESS;
    case 'f': return df_forward(out, record, 1, record->value.size);
    case 'e': return DF_ERROR;
    case 'x': return df_fail(out, -3, "a reason");
    case 'n': return df_fail(out, 0, NULL);
    case 'd': return DF_FILTERED;
    default: return DF_SKIP;
    }
}

int odd_batch(const df_batch *batch, df_output *out, void *state) {
    df_record record;
    memset(&record, 0, sizeof(record));
    while (out->position < batch->length) {
        int status;
        record.value = batch->values[out->position];
        if (record.value.size == 4 && memcmp(record.value.data, "stop", 4) == 0) {
            return 0;
        }
        out->emitter.value.data = NULL;
        status = odd(&record, &out->emitter, state);
        if (status == DF_SKIP) {
            df_pass(out, batch);
        } else if (status == DF_FILTERED) {
            df_drop(out, 1);
        } else {
            return status;
        }
    }
    return 0;
}

/* How many states there are, and a state with a copy of the configuration. */
int64_t states = 0;



static int make(void **state, df_view config, char *message) {
    char *copy;
    if (config.size > 0 && config.data[0] == '!') {
        if (config.size > 1) {
            memset(message, 'm', DF_MESSAGE_SIZE); /* no final zero */
        }
        return 1;
    }
    copy = (char *)malloc((size_t)config.size + 1);
    if (copy == NULL) {
        return 1;
    }
    memcpy(copy, config.data, (size_t)config.size);
    copy[config.size] = 0;
    states++;
    *state = copy;
    return 0;
}

static void unmake(void *state) {
    states--;
    free(state);
}

static int show_config(const df_record *record, df_emitter *out, void *state) {
    (void)record;
    return df_emit(out, (const char *)state, (ptrdiff_t)strlen((const char *)state));
}

df_plugin with_state = {DF_PLUGIN_HEAD, DF_THREAD_SAFE, 0, "with state", "Shows its configuration.",
                        show_config, NULL, make, unmake, NULL};
df_plugin with_batch = {DF_PLUGIN_HEAD, 0, 0, "odd", NULL, odd, odd_batch, NULL, NULL, NULL};
df_plugin bare = {DF_PLUGIN_HEAD, 0, 0, "b\xc3\xa4r", NULL, show_state, NULL, NULL, NULL, NULL};
