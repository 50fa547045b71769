"""The plugin as one static executable: the interpreter and the plugin's modules in a single ELF file.

An interpreter that starts as usual spends most of its time on what the plugin never uses: importlib and its path
finders, the codec registry, `io` and the standard streams. This one stops after the core of its initialisation, and
`main.c` gives it an importer of its own for the few C modules and the frozen ones. It reads no file and no PYTHON*
variable, and needs neither Python nor a C library on the host: it runs in an empty chroot.

`build` makes it (`make shim`); `block` is the place in the file where `ipamd install` writes what it fixes for the
node, so that a node needs no compiler.
"""
