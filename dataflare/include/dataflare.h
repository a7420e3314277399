/* DataFlare: what a native plugin sees.  C99, C++11 and Cython; nothing of Python is needed.
 *
 * A plugin gets one record, looks at it, and answers with a status:
 *
 *   DF_SUCCESS   a new value goes on; it was handed over by df_commit, df_emit or df_forward
 *   DF_FILTERED  the record is dropped
 *   DF_SKIP      the record goes on unchanged
 *   DF_ERROR     the record failed; df_fail says why
 *
 * Ownership
 *   df_record    points into the user's memory: valid, and read-only, until the call returns.
 *   df_emitter   belongs to the engine and is valid until the call returns.  Bytes committed to it
 *                belong to the result of the batch and live as long as that does.
 *
 * The structs are part of the native ABI: none of them is ever changed under the same number.  A
 * plugin in C hands itself over as a df_plugin, at the end of this file, or as a plain df_process.
 */
#ifndef DATAFLARE_H
#define DATAFLARE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The native ABI.  A plugin in Cython carries the same number in the name of its base class. */
#define DF_ABI_VERSION 1

typedef enum df_status {
    DF_SUCCESS = 0,
    DF_FILTERED = 1,
    DF_SKIP = 2,
    DF_ERROR = 3
} df_status;

/* Bytes somewhere in memory that somebody else owns.  `data` NULL: there are none (no key). */
typedef struct df_view {
    const char *data;
    ptrdiff_t size;
} df_view;

typedef struct df_record {
    df_view value;
    df_view key;       /* data NULL: the record has no key */
    int64_t timestamp; /* nanoseconds since the epoch, 0: not given */
    int64_t offset;
    int32_t partition;
} df_record;

/* Records as columns.  A column that no record uses is NULL: no keys, every number 0. */
typedef struct df_batch {
    ptrdiff_t length;
    const df_view *values;     /* [length] */
    const df_view *keys;       /* [length] or NULL */
    const int64_t *timestamps; /* [length] or NULL */
    const int64_t *offsets;    /* [length] or NULL */
    const int32_t *partitions; /* [length] or NULL */
    df_view block; /* if data is not NULL: all values lie inside it, in rising order, apart */
} df_batch;

/* Where a plugin writes.  Invariants: `cursor` .. `limit` is free and writable; `reserved` is what
 * the last df_reserve promised and df_commit has not used up; `value` is what this record sends on,
 * data NULL until it is decided. */
typedef struct df_emitter {
    char *cursor;
    char *limit;
    ptrdiff_t reserved;
    df_view value;
    int borrowed; /* not 0: some value of this batch leads into the memory of the records */
    int (*grow)(struct df_emitter *, ptrdiff_t size); /* 0, or -1 and the reason is noted */
    void (*fail)(struct df_emitter *, int code, const char *message);
} df_emitter;

/* What becomes of a batch; only plugins that take a whole batch at once see it.  Invariants:
 * `status` of the first `position` records is decided, and of these exactly `length` go on:
 * values[0] .. values[length - 1], in the order of the records. */
typedef struct df_output {
    df_emitter emitter; /* stays first */
    ptrdiff_t position;
    ptrdiff_t total; /* records of the batch */
    ptrdiff_t length;
    uint8_t *status; /* [total] */
    df_view *values; /* [total] */
} df_output;

/* Fail the record: `code` is the plugin's own number, `message` a C string (copied). */
static inline int df_fail(df_emitter *out, int code, const char *message) {
    out->fail(out, code, message);
    return DF_ERROR;
}

/* Room for `size` bytes, or NULL when there is no memory or `size` is negative (return DF_ERROR
 * then: the reason is noted).  Reserving again gives the earlier room up. */
static inline char *df_reserve(df_emitter *out, ptrdiff_t size) {
    if (size < 0 || size > out->limit - out->cursor) {
        if (out->grow(out, size) < 0) {
            return NULL;
        }
    }
    out->reserved = size;
    return out->cursor;
}

/* The first `size` bytes of the room reserved are the record's new value. */
static inline int df_commit(df_emitter *out, ptrdiff_t size) {
    if (size < 0 || size > out->reserved) {
        return df_fail(out, 0, "the plugin committed a size that it had not reserved");
    }
    out->value.data = out->cursor;
    out->value.size = size;
    out->cursor += size;
    out->reserved = 0;
    return DF_SUCCESS;
}

/* Copy `size` bytes: they are the record's new value. */
static inline int df_emit(df_emitter *out, const char *data, ptrdiff_t size) {
    char *target = df_reserve(out, size);
    if (target == NULL) {
        return DF_ERROR;
    }
    if (size > 0) {
        memcpy(target, data, (size_t)size);
    }
    return df_commit(out, size);
}

/* Part of the record's own value, without a copy, is its new value. */
static inline int df_forward(df_emitter *out, const df_record *record, ptrdiff_t start,
                             ptrdiff_t size) {
    if (start < 0 || size < 0 || start > record->value.size
        || size > record->value.size - start) {
        return df_fail(out, 0, "the plugin forwarded bytes that are not in the record");
    }
    out->value.data = record->value.data + start;
    out->value.size = size;
    out->borrowed = 1;
    return DF_SUCCESS;
}

/* The next record goes on as `value`: bytes committed to out->emitter. */
static inline void df_put(df_output *out, df_view value) {
    if (out->position < out->total) {
        out->status[out->position++] = DF_SUCCESS;
        out->values[out->length++] = value;
    }
}

/* The next record goes on unchanged. */
static inline void df_pass(df_output *out, const df_batch *batch) {
    if (out->position < out->total) {
        out->values[out->length++] = batch->values[out->position];
        out->status[out->position++] = DF_SKIP;
        out->emitter.borrowed = 1;
    }
}

/* The next `count` records are dropped. */
static inline void df_drop(df_output *out, ptrdiff_t count) {
    if (count > out->total - out->position) {
        count = out->total - out->position;
    }
    if (count > 0) {
        memset(out->status + out->position, DF_FILTERED, (size_t)count);
        out->position += count;
    }
}

/* One record.  Returns a df_status.  Called without Python's GIL, or with it: a plugin that needs
 * Python takes it by PyGILState_Ensure, and leaves no exception behind.
 *
 *   record   the engine's, read-only, until the call returns
 *   out      the engine's, until the call returns
 *   state    the plugin's own; nobody else looks into it */
typedef int (*df_process)(const df_record *record, df_emitter *out, void *state);

/* A whole batch: decides the records from out->position on, in order, by df_put, df_pass and
 * df_drop.  Returns 0 when all are decided; anything else fails the record at out->position, for
 * the reason that df_fail(&out->emitter, ...) gave, and the call is made again for those behind. */
typedef int (*df_process_batch)(const df_batch *batch, df_output *out, void *state);

/* Room for the message of a df_init, its final zero included. */
#define DF_MESSAGE_SIZE 256

/* Makes the state of one plugin.  `*state` comes in as df_plugin.state says and goes out as what
 * process gets.  `config` is any text the user gave, empty if none; it is the caller's and gone
 * when the call returns.  Returns 0, or anything else after writing why to `message`: there is no
 * plugin then, and cleanup is not called. */
typedef int (*df_init)(void **state, df_view config, char message[DF_MESSAGE_SIZE]);

/* Frees what df_init made.  Called once, when the plugin is gone and none of its calls runs. */
typedef void (*df_cleanup)(void *state);

/* df_plugin.flags: several threads may run one plugin, that is, one state, at the same time. */
#define DF_THREAD_SAFE 1u

/* The name of the capsule that a df_plugin travels in.  The version is in the struct, not in the
 * name, so that a plugin of another version is told from something that is no plugin. */
#define DF_PLUGIN_CAPSULE "dataflare.plugin"

/* A plugin, as NativePlugin.from_capsule takes it.  One descriptor makes any number of plugins,
 * each with a state of its own if there is an init.
 *
 * Invariants, checked when it is taken: the sizes are those this header gives to the structs;
 * `name` and `process` are not NULL; no flag is set but those above.
 *
 * Owners: the descriptor, its strings and the functions are the capsule's (most often static in a
 * library), and stay valid and unchanged as long as it; a plugin keeps its capsule.  `state` is
 * the plugin author's: without an init it must stay valid as long as the capsule, with one it is
 * freed by cleanup.
 *
 * The first two fields stay first in every version.  Fields are only ever added at the end, in the
 * same version; a descriptor that is shorter counts as having zeros there, one that is longer is
 * taken if it has. */
typedef struct df_plugin {
    uint32_t abi_version; /* DF_ABI_VERSION */
    uint32_t struct_size; /* of this struct */
    uint32_t record_size;
    uint32_t batch_size;
    uint32_t emitter_size;
    uint32_t output_size;
    uint32_t flags;
    uint32_t reserved;       /* 0 */
    const char *name;        /* UTF-8 */
    const char *description; /* UTF-8, one line, or NULL */
    df_process process;
    df_process_batch process_batch; /* or NULL: process, record by record */
    df_init init;                   /* or NULL: `state` is used as it is */
    df_cleanup cleanup;             /* or NULL */
    void *state;
} df_plugin;

/* The fields of a df_plugin in front of its flags: df_plugin p = {DF_PLUGIN_HEAD, 0, 0, "name"}; */
#define DF_PLUGIN_HEAD                                                                      \
    DF_ABI_VERSION, (uint32_t)sizeof(df_plugin), (uint32_t)sizeof(df_record),               \
        (uint32_t)sizeof(df_batch), (uint32_t)sizeof(df_emitter), (uint32_t)sizeof(df_output)

#ifdef __cplusplus
}
#endif

#endif
