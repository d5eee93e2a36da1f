"""The composition roots: one module builds one function's use case, once per sandbox."""
