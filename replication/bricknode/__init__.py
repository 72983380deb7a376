"""The program on a node of a Gluster pool that tells what its bricks record: started over ssh by a key that can do nothing else.

It travels as a zipapp: the standard library, a few modules of replication that need no more, and Python >= 3.9.
"""
