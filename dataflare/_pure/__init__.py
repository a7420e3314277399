"""The pure-Python backend: the same names and the same behaviour as the compiled one."""
