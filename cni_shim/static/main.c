/* The plugin's static executable: a Python interpreter that starts no further than the plugin needs.
 *
 * Py_InitializeFromConfig() is stopped after its core phase: types, builtins, sys. What it would do after that costs
 * more than all the plugin does (importlib with its finders, encodings, io, sys.std*), and most of it is for modules
 * in files, of which there are none here. So `import` is replaced: it knows the C modules in _PyImport_Inittab and
 * the plugin's own, which build.py compiles into frozen.h.
 *
 * What such an interpreter lacks: codecs other than UTF-8, ASCII and Latin-1 (those three are part of str and bytes),
 * files, tracebacks, the codec registry with its error handlers by name, except those that UTF-8 has built in (strict,
 * replace, ignore, surrogateescape, surrogatepass, backslashreplace). File names are UTF-8 with surrogateescape, as
 * everywhere, because of utf8_mode. */
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

#include "frozen.h" /* FROZEN_MODULES; SOURCES_DIGEST, SOCKET, SPOOL_DIR, LOG, ADD_SECONDS: the defaults */

/* Read and written by block.py, which has the same layout. volatile: what stands in the file counts, not what stands
 * here. */
static const volatile struct settings {
    char magic[16];
    uint64_t layout;
    char digest[32];
    char socket[108];
    char spool_dir[4096];
    char log[4096];
    char padding[4];
    double add_seconds;
} settings = {"\177ipamd-settings", 1, SOURCES_DIGEST, SOCKET, SPOOL_DIR, LOG, "", ADD_SECONDS};

/* The C modules. This table stands in for libpython's (config.c), so that no other module gets linked. */
PyObject *PyInit__signal(void), *PyInit__socket(void), *PyInit__struct(void);
PyObject *PyInit_errno(void), *PyInit_posix(void), *PyInit_time(void);
struct _inittab _PyImport_Inittab[] = {
    {"_signal", PyInit__signal},
    {"_socket", PyInit__socket},
    {"_struct", PyInit__struct},
    {"errno", PyInit_errno},
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
    Py_DECREF(code);
    if (result == NULL)
        return NULL;
    Py_DECREF(result);
    return module;
}

/* cni_shim.installed, from the settings in the executable. */
static PyObject *load_installed(PyObject *name) {
    PyObject *module = new_module(name);
    if (module == NULL)
        return NULL;
    struct settings here = settings;
    PyObject *values[] = {PyUnicode_DecodeFSDefault(here.socket), PyUnicode_DecodeFSDefault(here.spool_dir),
                          PyUnicode_DecodeFSDefault(here.log), PyFloat_FromDouble(here.add_seconds)};
    static const char *const names[] = {"SOCKET", "SPOOL_DIR", "LOG", "ADD_SECONDS"};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(values); i++) {
        if (values[i] == NULL || PyObject_SetAttrString(module, names[i], values[i]) < 0)
            return NULL;
        Py_DECREF(values[i]);
    }
    return module;
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
        return load_installed(name);
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

static void initialize(void) {
    PyPreConfig first;
    PyPreConfig_InitIsolatedConfig(&first);
    first.utf8_mode = 1;
    PyStatus status = Py_PreInitialize(&first);
    if (PyStatus_Exception(status))
        fail(status.err_msg);
    PyConfig config;
    PyConfig_InitIsolatedConfig(&config);
    config.use_hash_seed = 1; /* of 0: nothing here hashes what a stranger chose, and it saves a system call */
    config._init_main = 0;
    config._install_importlib = 0;
    status = Py_InitializeFromConfig(&config);
    if (PyStatus_Exception(status))
        fail(status.err_msg);
    PyGC_Disable(); /* the process ends before there is garbage to speak of */
    _PySignal_Init(0);
    modules = PyImport_GetModuleDict();
    static PyMethodDef import_method = {"__import__", (PyCFunction)(void *)import, METH_FASTCALL, NULL};
    static PyMethodDef setns_method = {"setns", posix_setns, METH_VARARGS, NULL};
    PyObject *posix = PyDict_SetItemString(PyEval_GetBuiltins(), "__import__", PyCFunction_New(&import_method, NULL)) < 0
                          ? NULL
                          : load(PyUnicode_FromString("posix"));
    if (posix == NULL || PyObject_SetAttrString(posix, "setns", PyCFunction_New(&setns_method, NULL)) < 0)
        fail("the module posix");
}

int main(void) {
    signal(SIGPIPE, SIG_IGN); /* as every Python does: a runtime that went away is an error of write() */
    initialize();
    PyObject *plugin = load(PyUnicode_FromString("cni_shim.main"));
    if (plugin == NULL)
        fail("the module cni_shim.main");
    PyObject_CallMethod(plugin, "main", NULL);
    fail("it came back"); /* it ends with _exit */
}
