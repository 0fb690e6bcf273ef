"""What was pruned runs faster on an ordinary CPU: sparse kernels, chosen by measurement, layer by layer."""
