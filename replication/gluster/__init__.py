"""A Gluster volume seen from a node of its pool: its address, what glusterd says of it, and a mount of it."""
