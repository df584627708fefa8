"""HDF5 files: LIBERO's, robomimic's, and those that Atlas records."""
