/* The plugin's static executable: a Python interpreter that has started already.
 *
 * It is linked twice. The first executable starts the interpreter, imports the plugin's modules, and then, instead of
 * working, writes out the memory in which all of that stands: the section `interpreter` (interpreter.ld), which holds
 * the interpreter's variables and its heap (heap.c). build.py puts that into the executable in place of the section's
 * first content, and what comes out is the second executable: the kernel maps it with everything in its place, and
 * the plugin's first function can be called. (Emacs was built so for thirty years.) It needs fixed addresses, hence
 * -no-pie, and no pointer into the C library's own data (the interpreter keeps none). What belongs to the
 * process comes anew (resume()): the thread, the environment, the settings in the file.
 *
 * The start that is recorded is a short one: Py_InitializeFromConfig() is stopped after its core phase (types,
 * builtins, sys). The rest is for modules in files, and there are none here. So `import` is replaced: it knows
 * the C modules in _PyImport_Inittab and the plugin's own, which build.py compiles into frozen.h.
 *
 * What such an interpreter lacks: codecs other than UTF-8, ASCII and Latin-1 (those three are part of str and bytes),
 * files, sys.std*, tracebacks. File names are UTF-8 with surrogateescape, because of utf8_mode. */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <marshal.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <unistd.h>

#if PY_VERSION_HEX >> 16 != 0x030b
#error "this file follows the start of CPython 3.11; other versions start differently"
#endif

struct frozen_module {
    const char *name;
    const unsigned char *code; /* as marshal writes it */
    int size;
};

#include "frozen.h" /* FROZEN_MODULES; SOURCES_DIGEST, SOCKET, SPOOL_DIR, LOG, DAEMON_SET, ADD_SECONDS: the defaults */

/* Read and written by block.py, which has the same layout. volatile: what stands in the file counts, not what stands
 * here. */
static const volatile struct settings {
    char magic[16];
    uint64_t layout;
    char digest[32];
    char socket[108];
    char spool_dir[4096];
    char log[4096];
    uint32_t daemon_set;
    double add_seconds;
} settings = {"\177ipamd-settings", 1, SOURCES_DIGEST, SOCKET, SPOOL_DIR, LOG, DAEMON_SET, ADD_SECONDS};

/* The C modules. This table stands in for libpython's (config.c), so that no other module gets linked. */
PyObject *PyInit__signal(void), *PyInit__socket(void), *PyInit__struct(void);
PyObject *PyInit_errno(void), *PyInit_fcntl(void), *PyInit_posix(void), *PyInit_time(void);
struct _inittab _PyImport_Inittab[] = {
    {"_signal", PyInit__signal},
    {"_socket", PyInit__socket},
    {"_struct", PyInit__struct},
    {"errno", PyInit_errno},
    {"fcntl", PyInit_fcntl},
    {"posix", PyInit_posix},
    {"time", PyInit_time},
    {NULL, NULL},
};

/* The frozen part of the standard library: none of it. These stand in for libpython's frozen.c and deepfreeze.c. */
struct _module_alias;
static const struct _frozen no_modules[1];
const struct _frozen *_PyImport_FrozenBootstrap = no_modules, *_PyImport_FrozenStdlib = no_modules;
const struct _frozen *_PyImport_FrozenTest = no_modules, *PyImport_FrozenModules;
const struct _module_alias *_PyImport_FrozenAliases;

int _Py_Deepfreeze_Init(void) { return 0; }
void _Py_Deepfreeze_Fini(void) {}

int _PySignal_Init(int install_handlers); /* else part of the phase that is left out */

int heap_is_here(void);

extern char __start_interpreter[], __stop_interpreter[]; /* by the linker */

static int prepared;      /* as recorded: all below is in place */
static PyObject *modules; /* sys.modules, borrowed */

/* A C module: made and entered into sys.modules. Both kinds of initialisation, PEP 489. */
static PyObject *load_builtin(PyObject *name, PyObject *(*init)(void)) {
    PyObject *made = init();
    if (made == NULL || !PyObject_TypeCheck(made, &PyModuleDef_Type)) {
        if (made != NULL && PyObject_SetItem(modules, name, made) < 0)
            Py_CLEAR(made);
        return made;
    }
    PyModuleDef *definition = (PyModuleDef *)made;
    PyObject *spec = PyModule_NewObject(name); /* any object will do that has a name */
    if (spec == NULL || PyObject_SetAttrString(spec, "name", name) < 0)
        return NULL;
    PyObject *module = PyModule_FromDefAndSpec(definition, spec);
    Py_DECREF(spec);
    if (module == NULL || PyObject_SetItem(modules, name, module) < 0 || PyModule_ExecDef(module, definition) < 0)
        return NULL;
    return module;
}

static PyObject *new_module(PyObject *name) {
    PyObject *module = PyModule_NewObject(name);
    if (module == NULL || PyObject_SetItem(modules, name, module) < 0 ||
        PyDict_SetItemString(PyModule_GetDict(module), "__builtins__", PyEval_GetBuiltins()) < 0)
        return NULL;
    return module;
}

static PyObject *load_frozen(PyObject *name, const struct frozen_module *frozen) {
    PyObject *module = new_module(name);
    PyObject *code = PyMarshal_ReadObjectFromString((const char *)frozen->code, frozen->size);
    if (module == NULL || code == NULL)
        return NULL;
    PyObject *namespace = PyModule_GetDict(module);
    PyObject *result = PyEval_EvalCode(code, namespace, namespace);
    if (result == NULL)
        return NULL;
    Py_DECREF(result);
    return module;
}

/* Give cni_shim.installed the settings in the executable. */
static int fill_installed(PyObject *installed) {
    struct settings here = settings;
    PyObject *values[] = {PyUnicode_DecodeFSDefault(here.socket), PyUnicode_DecodeFSDefault(here.spool_dir),
                          PyUnicode_DecodeFSDefault(here.log), PyFloat_FromDouble(here.add_seconds),
                          PyBool_FromLong(here.daemon_set)};
    static const char *const names[] = {"SOCKET", "SPOOL_DIR", "LOG", "ADD_SECONDS", "DAEMON_SET"};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(values); i++)
        if (values[i] == NULL || PyObject_SetAttrString(installed, names[i], values[i]) < 0)
            return -1;
    return 0;
}

/* A module by its full name: a new reference. */
static PyObject *load(PyObject *name) {
    PyObject *module = PyDict_GetItemWithError(modules, name);
    if (module != NULL)
        return Py_NewRef(module);
    const char *wanted = PyErr_Occurred() ? NULL : PyUnicode_AsUTF8(name);
    if (wanted == NULL)
        return NULL;
    for (const struct _inittab *entry = _PyImport_Inittab; entry->name != NULL; entry++)
        if (strcmp(entry->name, wanted) == 0)
            return load_builtin(name, entry->initfunc);
    for (const struct frozen_module *entry = FROZEN_MODULES; entry->name != NULL; entry++)
        if (strcmp(entry->name, wanted) == 0)
            return load_frozen(name, entry);
    if (strcmp(wanted, "cni_shim.installed") == 0)
        return new_module(name); /* resume() fills it */
    PyErr_Format(PyExc_ImportError, "the executable holds no module %U", name);
    return NULL;
}

/* builtins.__import__(name, globals, locals, fromlist, level), as far as the plugin's modules use it: `import a`,
 * `from a.b import c` and, from the one package, `from cni_shim import module`. build.py refuses other forms. */
static PyObject *import(PyObject *self, PyObject *const *arguments, Py_ssize_t count) {
    PyObject *module = load(arguments[0]);
    if (module == NULL || count < 4 || !PyTuple_Check(arguments[3]) ||
        PyUnicode_CompareWithASCIIString(arguments[0], "cni_shim") != 0)
        return module;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(arguments[3]); i++) {
        PyObject *name = PyTuple_GET_ITEM(arguments[3], i);
        PyObject *full_name = PyUnicode_FromFormat("cni_shim.%U", name);
        PyObject *submodule = full_name == NULL ? NULL : load(full_name);
        if (submodule == NULL || PyObject_SetAttr(module, name, submodule) < 0)
            return NULL;
        Py_DECREF(full_name);
        Py_DECREF(submodule);
    }
    return module;
}

/* posix.setns(fd, nstype), which Python has since 3.12. */
static PyObject *posix_setns(PyObject *self, PyObject *arguments) {
    int descriptor, kind;
    if (!PyArg_ParseTuple(arguments, "ii", &descriptor, &kind))
        return NULL;
    if (setns(descriptor, kind) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

/* Before the plugin's own handling of errors is there: an error object of code 999, as cni_shim/errors.py has it. */
static _Noreturn void fail(const char *what) {
    printf("{\"cniVersion\":\"1.0.0\",\"code\":999,\"msg\":\"the plugin can't start: %s\"}\n", what);
    fflush(stdout);
    _exit(1);
}

static void *arena_of_heap(void *context, size_t size) { return malloc(size); }
static void arena_to_heap(void *context, void *arena, size_t size) { free(arena); }

/* The interpreter's start, once and for all: when the executable is built. */
static void start(void) {
    PyPreConfig first;
    PyPreConfig_InitIsolatedConfig(&first);
    first.utf8_mode = 1;
    first.allocator = PYMEM_ALLOCATOR_MALLOC; /* all in our heap, close together: fewer pages to copy when written */
    PyStatus status = Py_PreInitialize(&first);
    if (PyStatus_Exception(status))
        fail(status.err_msg);
    PyObjectArenaAllocator arenas = {NULL, arena_of_heap, arena_to_heap}; /* of frames' memory, else mapped */
    PyObject_SetArenaAllocator(&arenas);
    PyConfig config;
    PyConfig_InitIsolatedConfig(&config);
    config.use_hash_seed = 1; /* of 0: a recorded one is no secret, and nothing here hashes what a stranger chose */
    config._init_main = 0;
    config._install_importlib = 0;
    status = Py_InitializeFromConfig(&config);
    if (PyStatus_Exception(status))
        fail(status.err_msg);
    PyGC_Disable(); /* the process ends before there is garbage to speak of */
    _PySignal_Init(0);
}

/* The importer, posix.setns(), and all modules: none depends on the node when it is imported (build.py sees to it). */
static int import_all(void) {
    static PyMethodDef import_method = {"__import__", (PyCFunction)(void *)import, METH_FASTCALL, NULL};
    static PyMethodDef setns_method = {"setns", posix_setns, METH_VARARGS, NULL};
    modules = PyImport_GetModuleDict();
    if (PyDict_SetItemString(PyEval_GetBuiltins(), "__import__", PyCFunction_New(&import_method, NULL)) < 0)
        return -1;
    /* What is not valid UTF-8 is a matter for the registry of codecs, if only to raise the error. It imports this: */
    if (new_module(PyUnicode_FromString("encodings")) == NULL || PyCodec_LookupError("strict") == NULL)
        return -1;
    PyObject *posix = load(PyUnicode_FromString("posix"));
    if (posix == NULL || PyObject_SetAttrString(posix, "setns", PyCFunction_New(&setns_method, NULL)) < 0)
        return -1;
    for (const struct _inittab *entry = _PyImport_Inittab; entry->name != NULL; entry++)
        if (load(PyUnicode_FromString(entry->name)) == NULL)
            return -1;
    if (load(PyUnicode_FromString("cni_shim.installed")) == NULL)
        return -1;
    for (const struct frozen_module *entry = FROZEN_MODULES; entry->name != NULL; entry++)
        if (load(PyUnicode_FromString(entry->name)) == NULL)
            return -1;
    return 0;
}

/* Write the section `interpreter` to standard output: its content in the executable to come. */
static _Noreturn void record(void) {
    start();
    if (import_all() < 0) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        fail(value != NULL && PyUnicode_Check(value) ? PyUnicode_AsUTF8(value) : "a module can't be imported");
    }
    if (!heap_is_here())
        fail("the heap of the executable is too small (HERE in heap.c)");
    prepared = 1;
    for (char *byte = __start_interpreter; byte < __stop_interpreter;) {
        ssize_t written = write(STDOUT_FILENO, byte, __stop_interpreter - byte);
        if (written < 0)
            _exit(1);
        byte += written;
    }
    _exit(0);
}

/* What belongs to the process. It is another than the recorded one, as a child is after fork(): another thread, locks
 * that nobody holds. */
static int resume(void) {
    PyOS_AfterFork_Child();
    PyObject *variables = PyDict_New();
    for (char **variable = environ; *variable != NULL; variable++) {
        const char *equals = strchr(*variable, '=');
        if (equals == NULL)
            continue;
        PyObject *name = PyBytes_FromStringAndSize(*variable, equals - *variable);
        if (PyDict_SetDefault(variables, name, PyBytes_FromString(equals + 1)) == NULL)
            return -1;
    }
    PyObject *posix = PyDict_GetItemString(modules, "posix");
    if (PyObject_SetAttrString(posix, "environ", variables) < 0)
        return -1;
    return fill_installed(PyDict_GetItemString(modules, "cni_shim.installed"));
}

int main(void) {
    if (!prepared)
        record();
    signal(SIGPIPE, SIG_IGN); /* as every Python does: a runtime that went away is an error of write() */
    PyObject *plugin = resume() < 0 ? NULL : load(PyUnicode_FromString("cni_shim.main"));
    if (plugin == NULL)
        fail("a module can't be imported");
    PyObject_CallMethod(plugin, "main", NULL);
    fail("it came back"); /* it ends with _exit */
}
