"""C kernels under thin Cython: digest, compare, pack. No policy, no files, no sockets."""
