"""Neural networks: kernels, the parts of a block, mixers along time, and the models built from them."""
