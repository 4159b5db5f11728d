"""Score: one criterion a file. Tensors in, scores out; nothing here knows diffusers or modules."""
