"""One file a backend; see ``genhoi_kernels.registry`` for what each has to offer."""
