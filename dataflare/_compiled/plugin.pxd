# The native ABI. A plugin built against this file finds its base class by the class's *name*,
# which ends in the ABI's number, and looks it up when it is imported. So a plugin of another ABI
# is refused with a sentence before anything of it is called. Rules:
#
# - Never change a class below, nor a struct of dataflare.h, once it was released: an older plugin
#   reads and writes where its own file says. tests/cimport/abi.json has their layout.
# - A plugin in Cython looks up every class of this file and of those that this file cimports, also
#   where it uses none: so there is nothing here but the base classes.
# - `check_size error`: a plugin that was built for smaller or larger instances is refused when it
#   is imported, where Cython would only warn. It takes that option of `api` classes alone.
# - `c_end` stays behind all other methods of its class. A table of methods carries neither version
#   nor size; one in which something else stands at this place was built with other methods, and a
#   plugin that has it is refused when it is made: see `check_table`.
# - To add a method, derive NativePluginABI<n+1> from the present class and let `NativePlugin` in
#   dataflare/__init__.pxd be that; plugins of the old ABI go on working. It gets an end of its own.
# - To break with it, remove the old class: its name then raises the sentence. DF_ABI_VERSION of
#   dataflare.h, for plugins in C, is raised when one of the structs changes.
from dataflare._compiled.types cimport df_batch, df_emitter, df_output, df_record


cdef api class DataFlarePlugin [
    object DataFlare_DataFlarePlugin, type DataFlare_DataFlarePlugin_Type, check_size error
]:
    # PluginState; or the plugin in service whose member this is; None: nobody has set it yet.
    cdef object state


cdef api class NativePluginABI1(DataFlarePlugin) [
    object DataFlare_NativePluginABI1, type DataFlare_NativePluginABI1_Type, check_size error
]:
    # What the engine calls with the GIL held instead of without: for plugins that work on Python
    # objects. Set it in __cinit__ or __init__.
    cdef bint needs_gil

    cdef int c_process(self, const df_record *record, df_emitter *out) except? -1 nogil
    cdef int c_process_batch(self, const df_batch *batch, df_output *out) except? -1 nogil
    cdef void c_end(self) noexcept nogil  # nobody's: see above


cdef void fill_rest(df_record *record, const df_batch *batch, Py_ssize_t i) noexcept nogil
cdef object process_single(NativePluginABI1 plugin, object given, object guarded)
