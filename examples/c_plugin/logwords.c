/* A Python extension that brings a plugin: `logwords.plugin` is the capsule. */
#include <Python.h>

#include "dataflare.h"

/* Filters by the number of words.  A whole batch at a time, which saves a call per record. */
static int is_long(const df_view *value) {
    ptrdiff_t i, spaces = 0;
    for (i = 0; i < value->size; i++) {
        spaces += value->data[i] == ' ';
    }
    return spaces >= 2;
}

static int process(const df_record *record, df_emitter *out, void *state) {
    (void)out;
    (void)state;
    return is_long(&record->value) ? DF_SKIP : DF_FILTERED;
}

static int process_batch(const df_batch *batch, df_output *out, void *state) {
    (void)state;
    while (out->position < batch->length) { /* it need not begin at 0 */
        if (is_long(&batch->values[out->position])) {
            df_pass(out, batch);
        } else {
            df_drop(out, 1);
        }
    }
    return 0;
}

static const df_plugin plugin = {
    DF_PLUGIN_HEAD, DF_THREAD_SAFE, 0,    "three words", "Keeps lines of three words and more.",
    process,        process_batch,  NULL, NULL,          NULL,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "logwords", NULL, -1, NULL, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_logwords(void) {
    PyObject *made = PyModule_Create(&module);
    PyObject *capsule = PyCapsule_New((void *)&plugin, DF_PLUGIN_CAPSULE, NULL);
    if (made == NULL || capsule == NULL || PyModule_AddObjectRef(made, "plugin", capsule) < 0) {
        Py_CLEAR(made);
    }
    Py_XDECREF(capsule);
    return made;
}
