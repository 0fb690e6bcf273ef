"""Which weights live: schedules, scores, masks, cuts, pools, and the sparsifier that joins them."""
