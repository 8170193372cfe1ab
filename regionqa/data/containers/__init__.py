"""Files that datasets come in: JSON documents, pickles, Arrow tables, tar archives, images."""
