"""How content travels: stream, rsync, tar, and which file goes by which."""
