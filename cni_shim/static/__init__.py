"""The plugin as one static executable: a Python interpreter that has started already, with the plugin imported.

An interpreter's start is nearly all that the plugin costs, and it is the same each time. So it is done once, when
the executable is built, and the memory that it leaves is part of the file (main.c tells how, heap.c keeps that memory
in one place). The executable reads no file and no PYTHON* variable, and needs neither Python nor a C library on the
host: it runs in an empty chroot.

`build` makes it (`make shim`); `block` is the place in the file where `ipamd install` writes what it fixes for the
node, so that a node needs no compiler.
"""
