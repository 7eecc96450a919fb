"""HDF5 recordings: ALOHA, robomimic, ManiSkill and others of their kind."""
