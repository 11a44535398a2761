"""The engine on a GPU: rounds as CUDA graphs over batches of sequences. Nothing here runs without Triton."""
