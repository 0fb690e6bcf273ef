"""Images: in memory, in folders and tar files, in shards from elsewhere; what a model sees of each."""
