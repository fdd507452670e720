"""One file a backend; see ``genhoi_kernels.backends.registry`` for what each has to offer."""
